# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes, and everything that can happen to a machine: each fault is undone by `heal`, whatever a test did."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from playbook import Playbook

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "chaos"
RIG = REPOSITORY / "tests" / "docker" / "rig.py"
PROJECT = Path(__file__).resolve().parent / "project"
NETWORK = "thunderhead-chaos"
SUBNETS = ("198.18.54", "198.18.55")
"""Of the machines of each process that runs tests."""
USER = "thunderhead"  # the account that jobs run as
JOBS = "/opt/thunderhead/jobs"

NODE_TIMEOUT_SECONDS = 6
GRACE_SECONDS = 2

T = TypeVar("T")

# Prints a line for each process of job argv[1], as its control group or its environment tells; without the dead.
OF_JOB = """\
import os, sys
job = sys.argv[1]
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        words = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()
        group = open(f'/proc/{pid}/cgroup').read()
        environment = open(f'/proc/{pid}/environ', 'rb').read().split(b'\\0')
        command = open(f'/proc/{pid}/cmdline', 'rb').read().replace(b'\\0', b' ').decode()
    except OSError:
        continue
    mine = any(word.startswith(b'JOB_DIR=') and word.endswith(b'/' + job.encode()) for word in environment)
    if words[0] not in 'ZX' and (f'thunderhead-{job}.scope' in group or mine):
        print(pid, words[1], command.strip())
"""
# A firewall that swallows everything: to its peers, a machine whose cable was pulled.
CUT = """\
table inet cut {
    chain in { type filter hook input priority -400; policy drop; iif lo accept; }
    chain out { type filter hook output priority -400; policy drop; oif lo accept; }
}
"""


def docker(*arguments: str, check: bool = True, text: str | None = None) -> str:
    """Run `docker` and return what it printed."""
    result = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True)
    assert not check or result.returncode == 0, f"docker {' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result.stdout


def until(condition: Callable[[], T], what: str, seconds: float = 30) -> T:
    """Wait for `condition` to hold and return its value; fail with `what` did not come true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


class Node:
    """One container: a machine with systemd and sshd."""

    def __init__(self, name: str, address: str, network: str) -> None:
        self.name = name
        self.address = address
        self.container = f"{network}-{name}"
        self._broken: list[Callable[[], Any]] = []

    def __repr__(self) -> str:
        return self.name

    def execute(self, *command: str, check: bool = True, text: str | None = None, user: str = "root") -> str:
        """Run a command on it, past SSH, and return what it printed."""
        interactive = ["--interactive"] if text is not None else []
        return docker("exec", f"--user={user}", *interactive, self.container, *command, check=check, text=text)

    def put(self, path: Path, folder: str) -> None:
        """Copy a file of this machine into a folder of the node's."""
        self.execute("mkdir", "-p", folder)
        docker("cp", str(path), f"{self.container}:{folder}/")

    def processes(self, job: str) -> list[str]:
        """Return "pid parent command" of every process of the job, the supervisor too."""
        return self.execute("python3", "-I", "-S", "-c", OF_JOB, job).splitlines()

    def scripts(self, job: str, script: str) -> list[int]:
        """Return the ids of the job's processes that run the script."""
        return [int(line.split()[0]) for line in self.processes(job) if script in line.split()]

    def state(self, job: str) -> dict[str, Any]:
        """Return what the supervisor has written down."""
        found: dict[str, Any] = json.loads(self.execute("cat", f"{JOBS}/{job}/state.json"))
        return found

    def await_log(self, job: str, line: str) -> None:
        """Return when the job's log has the line."""
        grep = ["docker", "exec", self.container, "grep", "-qxF", line, f"{JOBS}/{job}/log"]
        until(lambda: subprocess.run(grep, capture_output=True).returncode == 0, f"{line!r} in the log of {self}")

    def jobs(self) -> list[str]:
        """Return what lies in the folder of the jobs."""
        names = self.execute("ls", JOBS).split()
        return sorted(name for name in names if not name.endswith((".started", ".log")))  # beside each job's folder

    def touch(self, job: str, name: str) -> None:
        """Make a file in the job's working directory."""
        self.execute("touch", str(PurePosixPath(JOBS, job, "work", name)))

    def kill_processes(self, job: str, script: str, signal: str = "KILL") -> None:
        """Send a signal to the processes that run the script."""
        pids = self.scripts(job, script)
        assert pids, f"{self} runs no {script}"
        self.execute("kill", f"-{signal}", *map(str, pids))

    def kill_unit(self, job: str) -> None:
        """Kill everything of the job at once, its supervisor too."""
        self.execute("systemctl", "kill", "--signal=KILL", f"thunderhead-{job}.scope")

    # ----------------------------------------------------------------------------------------------------- breaking it

    def freeze(self) -> None:
        """Stop the machine in its tracks."""
        self._broken.append(lambda: docker("unpause", self.container, check=False))

        def is_frozen() -> bool:
            docker("pause", self.container, check=False)  # runc gives up now and then where processes are busy
            return docker("inspect", "--format", "{{.State.Paused}}", self.container).strip() == "true"

        until(is_frozen, f"{self} is frozen")

    def power_off(self) -> None:
        """Pull the plug."""
        self._broken.append(lambda: docker("start", self.container))
        docker("kill", self.container)

    def reboot(self) -> None:
        """Shut it down in an orderly way, and start it again."""
        self._broken.append(lambda: docker("start", self.container))
        docker("restart", "--time", "20", self.container)

    def cut(self) -> None:
        """Pull the cable: nothing gets in or out, and nobody is told."""
        self._broken.append(lambda: self.execute("nft", "delete", "table", "inet", "cut", check=False))
        self.execute("nft", "-f", "-", text=CUT)

    def mend(self) -> None:
        """Plug the cable in again."""
        self.execute("nft", "delete", "table", "inet", "cut")

    def thaw(self) -> None:
        """Let the machine go on."""
        docker("unpause", self.container)

    def lose_packets(self, percent: int, seconds: float) -> tuple[int, float]:
        """Have the network lose so much of what it sends and gets, for a while.

        Returns:
            How many packets were lost, and for how long it was, in seconds: on a busy machine longer.
        """
        lose = f"numgen random mod 100 < {percent} counter drop"
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -400; {way} lo accept; {lose}; }}\n"
            for hook, way in (("input", "iif"), ("output", "oif"))
        )
        # In one command: to call docker takes a second where all nodes compute.
        script = (
            f"trap 'nft delete table inet losing' EXIT; cat /proc/uptime; nft -f - ; sleep {seconds}; "
            "nft list table inet losing; cat /proc/uptime"
        )
        said = self.execute("sh", "-ec", script, text=f"table inet losing {{ {chains} }}")
        began, ended = (float(line.split()[0]) for line in said.splitlines() if re.fullmatch(r"[\d.]+ [\d.]+", line))
        return sum(map(int, re.findall(r"packets (\d+)", said))), ended - began

    def shift_clocks(self) -> None:
        """Have the programs that start from now on follow a clock that can be set: see clock_offset.c."""
        library = CACHE / f"{self.container}.clock_offset.so"
        source = Path(__file__).with_name("clock_offset.c")
        subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
        self.put(library, "/usr/local/lib")
        self._broken.append(lambda: self.execute("rm", "-f", "/etc/ld.so.preload", "/run/clock_offset"))
        self.execute("sh", "-c", f"echo /usr/local/lib/{library.name} > /etc/ld.so.preload")
        self.execute("systemctl", "restart", "ssh")

    def set_clock(self, seconds: int) -> None:
        """Set its clock, as an administrator does that finds it so far off."""
        before = time.time()
        self.execute("sh", "-c", f"echo {seconds} > /run/clock_offset")
        now = float(self.execute("python3", "-I", "-S", "-c", "import time; print(time.time())"))
        assert abs(now - before - seconds) < 60, f"the clock of {self} is {now - before:.0f} s off, not {seconds}"

    def drop_connections(self) -> None:
        """Restart sshd and end all its sessions, as an upgrade or an impatient administrator does."""
        self.execute("sh", "-c", "systemctl restart ssh; pkill -KILL sshd; systemctl restart ssh")
        self.await_sshd()

    def kill_agents(self, job: str) -> int:
        """Kill the agents that answer at this moment, not the job's supervisor and inspector; return how many."""
        of_job = {line.split()[0] for line in self.processes(job)}
        agents = [pid for pid in self.execute("pgrep", "-f", "^python3 -I -S -c", check=False).split()]
        agents = [pid for pid in agents if pid not in of_job]
        if agents:
            self.execute("kill", "-KILL", *agents, check=False)
        return len(agents)

    def end_sessions(self) -> None:
        """End sshd's sessions, whatever they are at, and leave sshd alone."""
        self.execute("pkill", "-KILL", "-f", "^sshd(-session)?: admin", check=False)

    @contextlib.contextmanager
    def without(self, program: str) -> Iterator[None]:
        """Have a program be gone for a while."""
        self.execute("mv", program, f"{program}.away")
        try:
            yield
        finally:
            self.execute("mv", f"{program}.away", program)

    @contextlib.contextmanager
    def closed(self, rule: str) -> Iterator[None]:
        """Have a firewall treat what comes to sshd by a rule of nft; between the nodes everything goes on."""
        rules = f"table inet closed {{ chain in {{ type filter hook input priority -300; tcp dport 22 {rule}; }}; }}"
        self.execute("nft", "-f", "-", text=rules)
        try:
            yield
        finally:
            self.execute("nft", "delete", "table", "inet", "closed")

    @contextlib.contextmanager
    def cut_after(self, count: int) -> Iterator[None]:
        """Have the cable be pulled once so many bytes have left over SSH."""
        rule = f"tcp sport 22 quota over {count} bytes drop"
        rules = f"table inet drained {{ chain out {{ type filter hook output priority -400; {rule}; }}; }}"
        self.execute("nft", "-f", "-", text=rules)
        try:
            yield
        finally:
            self.execute("nft", "delete", "table", "inet", "drained")

    def small_disk(self, folder: str, megabytes: int) -> None:
        """Make `folder` a cluster_dir on a small disk of its own, with the environment that is there already."""
        self._broken.append(lambda: self.execute("umount", "--lazy", folder, check=False))
        self.execute(
            *("sh", "-ec"),
            f"mkdir -p {folder}; mount -t tmpfs -o size={megabytes}m,mode=755 tmpfs {folder}; cd {folder}; "
            "mkdir jobs bundles; chmod 711 jobs; chmod 700 bundles; ln -s /opt/thunderhead/env env; "
            "cp /opt/thunderhead/.thunderhead .",
        )

    def change_host_key(self) -> None:
        """Have it introduce itself as another machine would."""
        conf = "/etc/ssh/sshd_config.d/node.conf"
        own, other = "/etc/node/host_key", "/root/other_host_key"
        restart = "systemctl restart ssh"
        self._broken.append(lambda: self.execute("sh", "-c", f"sed -i 's#{other}#{own}#' {conf}; {restart}"))
        make = f"test -e {other} || ssh-keygen -q -t ed25519 -N '' -f {other}"
        self.execute("sh", "-ec", f"{make}; sed -i 's#{own}#{other}#' {conf}; {restart}")
        self.await_sshd()

    # ----------------------------------------------------------------------------------------------------- mending it

    def await_sshd(self) -> None:
        """Return when sshd answers."""
        banner = ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 22), 1).recv(4)"]
        until(
            lambda: subprocess.run(["docker", "exec", self.container, *banner], capture_output=True).returncode == 0,
            f"sshd of {self} answers",
        )

    def heal(self) -> bool:
        """Make the machine usable again; return whether there was anything to mend."""
        broken, self._broken = self._broken, []
        for mend in reversed(broken):
            mend()
        if broken:
            self.await_sshd()
        return bool(broken)

    def mend_all(self) -> None:
        """Make the machine usable whatever an earlier session did to it."""
        docker("unpause", self.container, check=False)
        docker("start", self.container)
        for table in ("cut", "losing"):
            self.execute("nft", "delete", "table", "inet", table, check=False)
        self.execute("rm", "-f", "/etc/ld.so.preload", "/run/clock_offset")
        self.await_sshd()
        self.end_jobs()

    def end_jobs(self) -> str:
        """End whatever a job left here, so that the next test can begin; return what it was."""
        left = self.execute("ps", "--no-headers", "-o", "pid,args", "-u", USER, check=False)
        if left:
            self.execute("pkill", "-KILL", "-u", USER, check=False)
        return left


class Cluster:
    """The nodes together, and the command line of their user.

    Attributes:
        nodes: in rank order.
        runs: where the records of this test's jobs go.
        requirements: arguments of setup.yml: what is installed on the nodes.
    """

    requirements = ("-e", f"python_env_requirements={PROJECT.parent}/requirements.txt")

    def __init__(self, names: Sequence[str], network: str, subnet: str) -> None:
        self.network = network
        self.nodes = [Node(name, f"{subnet}.{10 + number}", network) for number, name in enumerate(names)]
        self.runs = CACHE / "runs"
        self.playbooks: list[Playbook] = []
        # A short path: the name of a socket is limited to some hundred characters.
        self._control = tempfile.TemporaryDirectory(prefix="thunderhead-", ignore_cleanup_errors=True)
        self.inventory = CACHE / f"inventory-{network}.json"
        CACHE.mkdir(parents=True, exist_ok=True)
        self.describe()

    def describe(self, **about: dict[str, Any]) -> None:
        """Write the inventory, with further variables for some of the nodes."""
        variables = {
            "python_env_find_links": ["/wheels"],
            "python_env_index_url": "none",
            "job_node_timeout_seconds": NODE_TIMEOUT_SECONDS,
            "job_stop_grace_seconds": GRACE_SECONDS,
        }
        hosts = {node.name: {"ansible_host": node.address, **about.get(node.name, {})} for node in self.nodes}
        self.inventory.write_text(json.dumps({"cluster": {"hosts": hosts, "vars": variables}}))

    def create(self, reuse: bool) -> None:
        """Start the containers, with packages in their /wheels; those of the last time, if they may be used again."""
        subprocess.run([sys.executable, RIG, "wheels"], check=True)
        names = docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"label=thunderhead={self.network}").split()
        if reuse and {node.container for node in self.nodes} <= set(names):
            self.everywhere(Node.mend_all)
            return
        nodes = [f"{node.name}={node.address}" for node in self.nodes]
        subprocess.run([sys.executable, RIG, "create", self.network, *nodes], check=True)

    def remove(self) -> None:
        subprocess.run([sys.executable, RIG, "remove", self.network], check=True)

    def playbook(self, name: str, *arguments: str, terminal: bool = False, runs: Path | None = None) -> Playbook:
        """Start an `ansible-playbook` of the repository, as its user does."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        ssh = f'-F "{REPOSITORY}/.cache/ssh/config" -o ControlMaster=auto -o ControlPersist=10m'
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            # As in ansible.cfg, but with the rig's keys.
            "ANSIBLE_SSH_ARGS": f"{ssh} -o ServerAliveInterval=10 -o ServerAliveCountMax=3",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": self._control.name,
            "ANSIBLE_HOME": str(CACHE / "ansible"),
            "COLUMNS": "1000",
            "TERM": "xterm",
        }
        tool = str(Path(sys.executable).parent / "ansible-playbook")
        record = ["-e", f"job_runs_dir={runs or self.runs}"]
        started = Playbook(
            [tool, "-i", str(self.inventory), str(REPOSITORY / name), *record, *arguments],
            {**kept, **settings},
            REPOSITORY,
            terminal,
        )
        self.playbooks.append(started)
        return started

    def run(self, script: str, *arguments: str, terminal: bool = False, runs: Path | None = None) -> Playbook:
        """Start a job with a script of tests/chaos/project."""
        project = ["-e", f"project_dir={PROJECT}", "-e", f"script={script}"]
        return self.playbook("run.yml", *project, *arguments, terminal=terminal, runs=runs)

    def record(self, job: str) -> dict[str, Any]:
        """Return job.json."""
        found: dict[str, Any] = json.loads((self.runs / job / "job.json").read_text())
        return found

    def await_record(self, job: str, state: str) -> dict[str, Any]:
        """Return job.json once it says so: whoever writes it may outlive ansible-playbook by a moment."""
        until(lambda: self.record(job)["state"] == state, f"job.json of {job} says {state}", 10)
        return self.record(job)

    def log(self, job: str, node: Node) -> str:
        """Return a rank's log as the controller has it."""
        return (self.runs / job / "logs" / f"rank{self.nodes.index(node)}-{node.name}.log").read_text()

    def everywhere(self, call: Callable[[Node], T], nodes: Sequence[Node] | None = None) -> list[T]:
        """Return what `call` returns for each node, asked at the same time."""
        wanted = self.nodes if nodes is None else nodes
        with ThreadPoolExecutor(max(1, len(wanted))) as threads:
            return list(threads.map(call, wanted))

    def left(self, job: str, nodes: Sequence[Node] | None = None) -> list[str]:
        """Return the job's processes on these nodes (all of them) as "node: pid parent command"."""
        wanted = self.nodes if nodes is None else nodes
        found = self.everywhere(lambda node: node.processes(job), wanted)
        return [f"{node}: {line}" for node, lines in zip(wanted, found, strict=True) for line in lines]

    def await_nothing_left(self, job: str, seconds: float, nodes: Sequence[Node] | None = None) -> None:
        """Return when no process of the job lives any more."""
        deadline = time.monotonic() + seconds
        while left := self.left(job, nodes):
            assert time.monotonic() < deadline, f"after {seconds:.0f} s there is still: {left}"

    def heal(self) -> None:
        """After a test: everything runs, answers, and is free, whatever the test did."""
        for playbook in self.playbooks:
            playbook.kill()
        self.playbooks = []
        mended = self.everywhere(Node.heal)
        if any(mended):
            self.disconnect()  # a connection to what was frozen or cut would have to be given up by ssh first
        self.everywhere(Node.end_jobs)

    def kill_connections(self) -> int:
        """Kill the ssh processes that keep the connections open; return how many there were."""
        found = subprocess.run(["pgrep", "-f", f"^ssh: {self._control.name}"], capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        return len(found.stdout.split())

    def disconnect(self) -> None:
        """Close the SSH connections that were left open."""
        for connection in Path(self._control.name).iterdir():
            subprocess.run(["ssh", "-o", f"ControlPath={connection}", "-O", "exit", "node"], capture_output=True)
            connection.unlink(missing_ok=True)

    def close(self) -> None:
        self.disconnect()
        self._control.cleanup()
