#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes until a script runs on every node: this project against a shell loop of ssh, pdsh and mpirun.

    launch.py [--nodes 16] [--rounds 5] [--before COMMIT]

Measures from the command to the time stamp of the last node, on containers of the test rig; a run counts only if every
node left its stamp. All ways log in to the same user with the same key and ssh configuration, and take turns in every
round. Cold: no SSH connection is open. Warm: those of the run before are (ControlPersist, for every way).
This project is measured with the script of the run before, and with one that was edited since, which has to travel
(and lies outside of git, where a snapshot takes less).
What any playbook takes is measured beside them, by one without tasks; with --before, so is this project at that commit.
Needs a Docker engine (rig.py up), pdsh, and an mpirun of the nodes' version (Debian bookworm's, 4.1).
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import FOLDER, PROJECT, SSH_CONFIG, Cluster, cluster, run, versions

STAMPS = FOLDER / "stamps"
NETWORK = "thunderhead-bench"
SUBNET = "198.18.20"
STAMP = "python3 /bench/stamp.py"
FLOOR = "ssh loop"  # what the others are compared with: the fastest there is without a daemon on the nodes
EMPTY = "no tasks"
EMPTY_PLAYBOOK = "- hosts: cluster\n  gather_facts: false\n  tasks: []\n"


@dataclass(frozen=True)
class Start:
    """One start of a script on all nodes.

    Attributes:
        seconds: from the command to the last node's stamp; of a playbook without tasks, to its end.
        skew: seconds from the first node's stamp to the last's; None without stamps.
    """

    seconds: float
    skew: float | None


class Bench:
    """The ways to launch something on all nodes.

    Attributes:
        cluster: the nodes.
        nodes: host name to address.
        versions: name to folder of this project, at this commit and maybe at another.
        edited: folder for a script that is another in each run, as where a user edits it.
        warm: whether connections stay open from one run to the next.
    """

    def __init__(self, cluster: Cluster, versions: dict[str, Path], edited: Path) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.versions = versions
        self.edited = edited
        self.warm = False

    def ways(self) -> dict[str, Callable[[], list[str]]]:
        """Each way's name and its command."""
        ways = {FLOOR: self.loop, "pdsh": self.pdsh, "mpirun": self.mpirun, EMPTY: self.no_tasks}
        for name, version in self.versions.items():
            ways[name] = functools.partial(self.thunderhead, version, PROJECT)
            ways[f"{name}, edited"] = functools.partial(self.thunderhead, version, self.edited)
        return ways

    def ssh_options(self) -> str:
        """What every way but Ansible gives to ssh; Ansible keeps connections open by itself."""
        path = f"ControlPath={self.cluster.control}/%C"
        keep = f" -o ControlMaster=auto -o ControlPersist=600 -o {path}" if self.warm else ""
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

    def thunderhead(self, version: Path, project: Path) -> list[str]:
        """This project, with a script that the nodes have from the run before, or that was edited since."""
        if project == self.edited:
            shutil.copytree(PROJECT, project, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            (project / "stamp.py").write_text(f"{(PROJECT / 'stamp.py').read_text()}\n# {time.time_ns()}\n")
        command = [*self.cluster.playbook("run.yml"), "-e", "script=stamp.py", "-e", f"project_dir={project}"]
        return ["env", "--chdir", str(version), *command]

    def no_tasks(self) -> list[str]:
        """A playbook that does nothing: what Ansible itself takes."""
        playbook = FOLDER / "no_tasks.yml"
        playbook.write_text(EMPTY_PLAYBOOK)
        return self.cluster.playbook(str(playbook))

    def measure(self, way: str) -> Start:
        """Run one way once; of a playbook without tasks, to its end."""
        if not self.warm:
            self.cluster.disconnect()
        for stamp in STAMPS.iterdir():
            stamp.unlink()
        command = self.ways()[way]()
        start = time.time_ns()
        run(command)
        if way == EMPTY:
            return Start((time.time_ns() - start) / 1e9, None)
        stamps = {stamp.name: int(stamp.read_text()) for stamp in STAMPS.iterdir()}
        if missing := self.nodes.keys() - stamps.keys():
            sys.exit(f"{way} ended without having run on {', '.join(sorted(missing))}")
        return Start((max(stamps.values()) - start) / 1e9, (max(stamps.values()) - min(stamps.values())) / 1e9)


def table(starts: dict[str, list[Start]]) -> str:
    """The rounds of every way ({way: starts}) as text; ratio and difference are medians over the rounds."""
    lines = [f"{'':20}{'min':>8}{'median':>8}{'max':>8}{'skew':>8}   x {FLOOR}"]
    for way, rounds in starts.items():
        seconds = [one.seconds for one in rounds]
        skews = [one.skew for one in rounds if one.skew is not None]
        skew = f"{statistics.median(skews):8.2f}" if skews else f"{'-':>8}"
        ratio = statistics.median(own / floor.seconds for own, floor in zip(seconds, starts[FLOOR], strict=True))
        middle = statistics.median(seconds)
        lines.append(f"{way:20}{min(seconds):8.2f}{middle:8.2f}{max(seconds):8.2f}{skew}{ratio:8.2f}")
    for way in ("", ", edited") if "before" in starts else ():
        pairs = zip(starts[f"before{way}"], starts[f"thunderhead{way}"], strict=True)
        difference = statistics.median(now.seconds - before.seconds for before, now in pairs)
        lines.append(f"thunderhead{way} takes {difference:+.2f} s, compared with before (median of the rounds)")
    return "\n".join(lines)


def measure_all(count: int, rounds: int, compared: dict[str, Path]) -> dict[str, dict[str, list[Start]]]:
    """Start the nodes, measure every way cold and warm, and remove them; state to way to starts, one per round."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    STAMPS.chmod(0o777)  # the ways write as different users
    results: dict[str, dict[str, list[Start]]] = {}
    volumes = ["--volume", f"{STAMPS}:/stamps", "--volume", f"{PROJECT}:/bench:ro"]
    edited_code = tempfile.TemporaryDirectory()
    with edited_code as edited, cluster(NETWORK, SUBNET, count, "--image", "bench", *volumes) as nodes:
        bench = Bench(nodes, compared, Path(edited))
        ways = list(bench.ways())
        for state in ("cold", "warm"):
            bench.warm = state == "warm"
            for way in ways:  # not counted: opens the connections, fills the caches
                bench.measure(way)
            results[state] = {way: [] for way in ways}
            for number in range(rounds):
                for way in ways if number % 2 else ways[::-1]:  # so that none always follows the same one
                    results[state][way].append(bench.measure(way))
            print(f"\n{state}: seconds from command to last of {count} nodes, {rounds} rounds")
            print(table(results[state]), flush=True)
    return results


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--before", metavar="COMMIT", help="measure this project at that commit, too, on nodes set up by this one"
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "launch.json", help="every measurement, as JSON")
    options = parser.parse_args()
    tools = {"pdsh": "pdsh", "mpirun": "openmpi-bin"}
    if missing := [package for tool, package in tools.items() if not shutil.which(tool)]:
        sys.exit(f"the comparison needs {' and '.join(tools)}; as root: apt-get install {' '.join(missing)}")

    with versions(options.before) as compared:
        results = measure_all(options.nodes, options.rounds, compared)
    rounds = {
        state: {way: [asdict(one) for one in starts] for way, starts in ways.items()} for state, ways in results.items()
    }
    document = {"nodes": options.nodes, "cores": os.cpu_count(), "unit": "s", "rounds": rounds}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nevery measurement: {options.output}")


if __name__ == "__main__":
    main()
