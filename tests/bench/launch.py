#!/usr/bin/env python3
"""How long it takes until a script runs on every node: this project against a shell loop of ssh, pdsh and mpirun.

    launch.py [--nodes 16] [--rounds 5]

Measures from the command to the time stamp of the last node, on containers of the test rig; a run counts only if every
node left its stamp. All ways log in to the same user with the same key and ssh configuration, and take turns in every
round. Cold: no SSH connection is open. Warm: those of the run before are (ControlPersist, for every way).
Needs a Docker engine (rig.py up), pdsh, and an mpirun of the nodes' version (Debian bookworm's, 4.1).
"""

import argparse
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RIG = REPOSITORY / "tests" / "docker" / "rig.py"
SSH_CONFIG = REPOSITORY / ".cache" / "ssh" / "config"
FOLDER = REPOSITORY / ".cache" / "bench"
STAMPS = FOLDER / "stamps"
NETWORK = "thunderhead-bench"
SUBNET = "198.18.20"
STAMP = "python3 /bench/stamp.py"
LIMIT_SECONDS = 300
FLOOR = "ssh loop"  # what the others are compared with: the fastest there is without a daemon on the nodes


class Bench:
    """The nodes, and the ways to launch something on all of them.

    Attributes:
        nodes: host name to address.
        control: folder of the SSH connections that stay open.
        warm: whether connections stay open from one run to the next.
    """

    def __init__(self, count: int, control: Path) -> None:
        self.nodes = {f"node{number:02}": f"{SUBNET}.{10 + number}" for number in range(count)}
        self.control = control
        self.warm = False

    def ways(self) -> dict[str, Callable[[], list[str]]]:
        """Each way's name and its command."""
        return {FLOOR: self.loop, "pdsh": self.pdsh, "mpirun": self.mpirun, "thunderhead": self.thunderhead}

    def ssh_options(self) -> str:
        """What every way but Ansible gives to ssh; Ansible keeps connections open by itself."""
        keep = f" -o ControlMaster=auto -o ControlPersist=600 -o ControlPath={self.control}/%C" if self.warm else ""
        return f"-F {SSH_CONFIG}{keep}"

    def loop(self) -> list[str]:
        """The shell: `ssh NODE … &` for each, then `wait`."""
        addresses = " ".join(self.nodes.values())
        return ["sh", "-c", f"for node in {addresses}; do ssh {self.ssh_options()} $node {STAMP} & done; wait"]

    def pdsh(self) -> list[str]:
        """Pdsh with a fanout that reaches all nodes at once."""
        nodes = ",".join(self.nodes.values())
        environment = f"PDSH_SSH_ARGS_APPEND={self.ssh_options()}"
        return ["env", environment, "pdsh", "-R", "ssh", "-l", "admin", "-f", str(len(self.nodes)), "-w", nodes, STAMP]

    def mpirun(self) -> list[str]:
        """Open MPI, one process on each node."""
        hosts = FOLDER / "hosts"
        hosts.write_text("".join(f"{address} slots=1\n" for address in self.nodes.values()))
        return [
            *("mpirun", "--allow-run-as-root", "--hostfile", str(hosts), "-np", str(len(self.nodes))),
            *("--mca", "plm_rsh_agent", f"ssh {self.ssh_options()}"),
            *("--mca", "oob_tcp_if_include", f"{SUBNET}.0/24"),  # else it tries every bridge of this machine first
            *STAMP.split(),
        ]

    def thunderhead(self) -> list[str]:
        """This project."""
        project = Path(__file__).parent
        return [*self.playbook("run.yml"), "-e", "script=stamp.py", "-e", f"project_dir={project}"]

    def playbook(self, name: str) -> list[str]:
        """An `ansible-playbook` on the nodes, with the settings of the repository's ansible.cfg."""
        inventory = FOLDER / "inventory.json"
        hosts = {name: {"ansible_host": address} for name, address in self.nodes.items()}
        inventory.write_text(json.dumps({"cluster": {"hosts": hosts, "vars": {"job_runs_dir": str(FOLDER / "runs")}}}))
        ssh_args = f"ANSIBLE_SSH_ARGS=-F '{SSH_CONFIG}' -o ControlMaster=auto -o ControlPersist=600"
        tool = Path(sys.executable).parent / "ansible-playbook"
        return ["env", ssh_args, f"ANSIBLE_SSH_CONTROL_PATH_DIR={self.control}", str(tool), "-i", str(inventory), name]

    def measure(self, way: str) -> float:
        """Run one way once; the seconds from its command to the last node's stamp."""
        if not self.warm:
            self.disconnect()
        for stamp in STAMPS.iterdir():
            stamp.unlink()
        command = self.ways()[way]()
        start = time.time_ns()
        run(command)
        stamps = {stamp.name: int(stamp.read_text()) for stamp in STAMPS.iterdir()}
        if missing := self.nodes.keys() - stamps.keys():
            sys.exit(f"{way} ended without having run on {', '.join(sorted(missing))}")
        return (max(stamps.values()) - start) / 1e9

    def disconnect(self) -> None:
        """Close every SSH connection that was left open."""
        for connection in self.control.iterdir():
            close = ["ssh", "-F", str(SSH_CONFIG), "-o", f"ControlPath={connection}", "-O", "exit", f"{SUBNET}.10"]
            subprocess.run(close, check=False, capture_output=True)


def run(command: list[str]) -> None:
    """Run a command that has to succeed; otherwise show what it said and end."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            process = subprocess.run(
                command,
                check=False,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=LIMIT_SECONDS,
            )
            end = f"exited with {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            end = f"did not end within {LIMIT_SECONDS} s"
        if end:
            output.seek(0)
            sys.exit(f"`{' '.join(command)}` {end}:\n{output.read()}")


def rig(*arguments: str) -> None:
    """Have the test rig do something; it says itself what goes wrong."""
    if subprocess.run([sys.executable, RIG, *arguments], check=False).returncode:
        sys.exit(1)


def table(times: dict[str, list[float]]) -> str:
    """The rounds of every way ({way: seconds per round}) as text; the ratio is the median over the rounds."""
    lines = [f"{'':14}{'min':>8}{'median':>8}{'max':>8}   x {FLOOR}"]
    for way, seconds in times.items():
        ratio = statistics.median(own / floor for own, floor in zip(seconds, times[FLOOR], strict=True))
        lines.append(f"{way:14}{min(seconds):8.2f}{statistics.median(seconds):8.2f}{max(seconds):8.2f}{ratio:8.2f}")
    return "\n".join(lines)


def measure_all(count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Start the nodes, measure every way cold and warm, and remove them; state to way to seconds per round."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    STAMPS.chmod(0o777)  # the ways write as different users
    results: dict[str, dict[str, list[float]]] = {}
    # A short path: the name of a socket is limited to some hundred characters.
    with tempfile.TemporaryDirectory(prefix="thunderhead-", ignore_cleanup_errors=True) as control:
        bench = Bench(count, Path(control))
        ways = list(bench.ways())
        volumes = ["--volume", f"{STAMPS}:/stamps", "--volume", f"{Path(__file__).parent}:/bench:ro"]
        begin = time.monotonic()
        nodes = [f"{name}={address}" for name, address in bench.nodes.items()]
        rig("create", NETWORK, "--image", "bench", *volumes, *nodes)
        print(f"{count} nodes answer after {time.monotonic() - begin:.1f} s", flush=True)
        try:
            # Nothing to install: what is measured is the launch.
            requirements = FOLDER / "requirements.txt"
            requirements.write_text("# nothing\n")
            run([*bench.playbook("setup.yml"), "-e", f"python_env_requirements={requirements}"])
            for state in ("cold", "warm"):
                bench.warm = state == "warm"
                for way in ways:  # not counted: opens the connections, fills the caches
                    bench.measure(way)
                results[state] = {way: [] for way in ways}
                for _ in range(rounds):
                    for way in ways:
                        results[state][way].append(bench.measure(way))
                print(f"\n{state}: seconds from command to last of {count} nodes, {rounds} rounds")
                print(table(results[state]), flush=True)
        finally:
            bench.disconnect()
            rig("remove", NETWORK)
    return results


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=FOLDER / "launch.json", help="every measurement, as JSON")
    options = parser.parse_args()
    tools = {"pdsh": "pdsh", "mpirun": "openmpi-bin"}
    if missing := [package for tool, package in tools.items() if not shutil.which(tool)]:
        sys.exit(f"the comparison needs {' and '.join(tools)}; as root: apt-get install {' '.join(missing)}")

    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another bench-launch runs in this checkout; two at once would measure each other")
        results = measure_all(options.nodes, options.rounds)
    document = {"nodes": options.nodes, "cores": os.cpu_count(), "unit": "s", "rounds": results}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nevery measurement: {options.output}")


if __name__ == "__main__":
    main()
