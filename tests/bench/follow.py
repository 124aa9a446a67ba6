#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to follow a job: CPU time on the nodes and on the controller, and how fast logs come home.

    follow.py [--nodes 16] [--seconds 60] [--bytes 1000000000] [--before COMMIT]

CPU: while rank 0 prints 100 lines a second and the others nothing. A node's share is all that its container used, less
the script and less what the same container uses without a job; the controller's is ansible-playbook, its worker and
every ssh. With --before, this project at that commit is measured so on the same nodes first; each is measured once.
Logs: 4 ranks print so many bytes as fast as they can, once with a terminal that takes everything and once with one that
reads 10 KB a second; the logs that came home are compared with the nodes' by SHA-256.
Needs a Docker engine (rig.py up) on this machine, and disk for 8 times --bytes. The exit status is 1 if bytes were
lost; that a target is missed is only said.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster import FOLDER, LIMIT_SECONDS, PROJECT, REPOSITORY, RUNS, Cluster, cluster, versions

NETWORK = "thunderhead-bench-follow"
SUBNET = "198.18.21"
SCRIPT = "talk.py"
LINES_PER_SECOND = 100
SETTLE_SECONDS = 5
"""After the start, and before the end, of what is measured."""
RANKS = 4
"""How many print as fast as they can."""
SLOW_BYTES_PER_SECOND = 10_000
LOOK_SECONDS = 0.2
CGROUPS = Path("/sys/fs/cgroup")
TICKS = os.sysconf("SC_CLK_TCK")

NODE_PERCENT, CONTROLLER_PERCENT, CONTROLLER_MB = 2, 10, 200
"""Targets: of a core, and of memory for each of ansible-playbook's processes."""


# ------------------------------------------------------------------------------------------------------ what is counted


@dataclass
class Process:
    """A process as /proc/<pid>/stat has it; ``seconds`` is its CPU time and that of its children that have ended."""

    parent: int
    seconds: float


def processes() -> dict[int, Process]:
    """Every process on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            found[int(folder.name)] = Process(int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return found


def below(root: int, all_of_them: dict[int, Process]) -> Iterator[int]:
    """The ids of a process and of all below it."""
    yield root
    for pid, process in all_of_them.items():
        if process.parent == root:
            yield from below(pid, all_of_them)


class Node:
    """A node's CPU accounts."""

    def __init__(self, container: str) -> None:
        self.container = container
        pid = docker("inspect", "--format", "{{.State.Pid}}", container)
        groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        identity = docker("inspect", "--format", "{{.Id}}", container)
        path = next((groups[name] for name in groups if "cpuacct" in name.split(",")), groups.get("", ""))
        # systemd moves itself into a group below the container's.
        top = path[1 : path.index(identity) + len(identity)]
        if (account := CGROUPS / "cpuacct" / top / "cpuacct.usage").exists():  # version 1, ns
            self._account, self._pattern, self._unit = account, r"(\d+)", 1e9
        else:  # version 2, µs; some name the folder docker-<id>.scope
            folder = next(folder for folder in (CGROUPS / top, CGROUPS / f"{top}.scope") if folder.exists())
            self._account, self._pattern, self._unit = folder / "cpu.stat", r"usage_usec (\d+)", 1e6

    def seconds(self) -> float:
        """CPU time of everything in the container so far."""
        match = re.search(self._pattern, self._account.read_text())
        assert match, f"{self._account} has no CPU time"
        return int(match[1]) / self._unit

    def script_pids(self) -> list[int]:
        """This machine's ids of the script's processes there."""
        lines = docker("top", self.container, "-eo", "pid,args").splitlines()[1:]
        return [int(line.split()[0]) for line in lines if SCRIPT in line]


@dataclass
class Reading:
    """CPU seconds at one moment."""

    moment: float
    nodes: list[float]
    scripts: list[float]
    controller: float


@dataclass
class Transfer:
    """One run of ranks that print as fast as they can.

    Attributes:
        seconds: from the command to its end.
        script_seconds: what the slowest rank's script took.
        main_mb: peak memory of ansible-playbook, MB.
        worker_mb: likewise of the process that the action runs in.
        lost: the logs that came home incomplete or changed.
    """

    seconds: float
    script_seconds: float
    main_mb: float
    worker_mb: float
    lost: list[str] = field(default_factory=list)


def docker(*arguments: str) -> str:
    """Run docker and return what it printed."""
    result = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"`docker {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout.strip()


# ------------------------------------------------------------------------------------------------------- the controller


class Playbook:
    """A run.yml that is being watched, with a terminal that takes so many bytes a second (0: all there are)."""

    def __init__(
        self, nodes: Cluster, arguments: str, terminal: int = 0, limit: str = "", version: Path = REPOSITORY
    ) -> None:
        RUNS.mkdir(parents=True, exist_ok=True)
        self._before = set(RUNS.iterdir())
        self._control = str(nodes.control)
        options = [
            "-e",
            f"script={SCRIPT}",
            "-e",
            f"project_dir={PROJECT}",
            "-e",
            json.dumps({"script_args": arguments}),
        ]
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            [*nodes.playbook("run.yml"), *options, "-e", "collect=none", *(["--limit", limit] if limit else [])],
            cwd=version,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._tail = b""
        self._reader = threading.Thread(target=self._read, args=(terminal,), daemon=True)
        self._reader.start()

    def _read(self, bytes_per_second: int) -> None:
        assert self.process.stdout
        while data := self.process.stdout.read(bytes_per_second // 10 or 2**20):
            self._tail = (self._tail + data)[-4000:]
            if bytes_per_second:
                time.sleep(len(data) / bytes_per_second)

    def seconds(self) -> float:
        """CPU time of ansible-playbook, all below it, and the ssh connections that were opened for it."""
        now = processes()
        own = set(below(self.process.pid, now))
        own |= {pid for pid in now if self._control in command_line(pid)}
        return sum(now[pid].seconds for pid in own if pid in now)

    def wait(self, limit_seconds: float) -> tuple[float, float, float]:
        """Wait for its end; return how long it ran, seconds, and the peak memory of it and of its worker, MB."""
        peaks: dict[int, float] = {}
        while self.process.poll() is None:
            if time.monotonic() > self.begin + limit_seconds:
                self.process.terminate()
                self._fail(f"did not end within {limit_seconds:.0f} s")
            for pid in below(self.process.pid, processes()):
                if "ansible-playbook" in command_line(pid):
                    peaks[pid] = max(peaks.get(pid, 0), peak_mb(pid))
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - self.begin
        if self.process.returncode:
            self._fail(f"exited with {self.process.returncode}")
        main = peaks.pop(self.process.pid, 0)
        return seconds, main, max(peaks.values(), default=0)

    def _fail(self, end: str) -> None:
        self._reader.join(10)
        sys.exit(f"run.yml {end}:\n{self._tail.decode(errors='replace')}")

    def job(self) -> Path:
        """The folder of its job."""
        return next(folder for folder in RUNS.iterdir() if folder not in self._before)


def command_line(pid: int) -> str:
    """A process's command line, or "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def peak_mb(pid: int) -> float:
    """The most memory that a process has had so far, MB (10^6 bytes)."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) * 1.024e-3 if match else 0


# --------------------------------------------------------------------------------------------------------- measurements


def measure_cpu(nodes: Cluster, seconds: float, version: Path) -> dict[str, list[float]]:
    """Who used how much with this project at ``version``, in % of a core: {what: per node, or one figure}."""
    accounts = [Node(f"{nodes.network}-{host}") for host in nodes.nodes]

    def read(playbook: Playbook | None, scripts: list[list[int]]) -> Reading:
        now = processes()
        return Reading(
            time.monotonic(),
            [account.seconds() for account in accounts],
            [sum(now[pid].seconds for pid in pids if pid in now) for pids in scripts],
            playbook.seconds() if playbook else 0,
        )

    def percent(before: Reading, after: Reading, what: str) -> list[float]:
        passed = after.moment - before.moment
        return [
            100 * (late - early) / passed
            for early, late in zip(getattr(before, what), getattr(after, what), strict=True)
        ]

    time.sleep(SETTLE_SECONDS)
    none: list[list[int]] = [[] for _ in accounts]
    before = read(None, none)
    time.sleep(seconds / 2)
    idle = percent(before, read(None, none), "nodes")

    length = seconds + 3 * SETTLE_SECONDS
    playbook = Playbook(nodes, f"--lines {LINES_PER_SECOND} --seconds {length}", version=version)
    scripts = none
    while not all(scripts):
        if playbook.process.poll() is not None:
            playbook.wait(0)
        time.sleep(LOOK_SECONDS)
        scripts = [account.script_pids() for account in accounts]
    time.sleep(SETTLE_SECONDS)
    before = read(playbook, scripts)
    time.sleep(seconds)
    after = read(playbook, scripts)
    playbook.wait(length + LIMIT_SECONDS)
    busy, script = percent(before, after, "nodes"), percent(before, after, "scripts")
    return {
        "busy": busy,
        "idle": idle,
        "script": script,
        "ours": [max(b - i - s, 0) for b, i, s in zip(busy, idle, script, strict=True)],
        "controller": [100 * (after.controller - before.controller) / (after.moment - before.moment)],
    }


def measure_transfer(nodes: Cluster, size: int, terminal: int) -> Transfer:
    """Let RANKS nodes print ``size`` bytes each; compare the logs."""
    hosts = list(nodes.nodes)[:RANKS]
    os.sync()  # what was written before must not be in the way
    playbook = Playbook(nodes, f"--bytes {size}", terminal, ",".join(hosts))
    seconds, main, worker = playbook.wait(LIMIT_SECONDS + RANKS * size / 1e6)
    folder = playbook.job()
    record = json.loads((folder / "job.json").read_text())
    transfer = Transfer(seconds, max(rank["seconds"] for rank in record["ranks"]), main, worker)
    for rank, host in enumerate(hosts):
        log = folder / "logs" / f"rank{rank}-{host}.log"
        with log.open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
        container, job = f"{nodes.network}-{host}", f"/opt/thunderhead/jobs/{folder.name}"
        there = docker("exec", container, "sha256sum", f"{job}/log").split()[0]
        if here != there or log.stat().st_size != size:
            transfer.lost.append(f"{log} ({log.stat().st_size} bytes)")
            continue
        log.unlink()
        docker("exec", container, "rm", f"{job}/log")
    return transfer


def cpu_table(cpu: dict[str, list[float]]) -> str:
    """The figures of ``measure_cpu`` as text."""
    columns = ("busy", "idle", "script", "ours")
    rows = ["", f"{'':20}" + "".join(f"{name:>8}" for name in columns) + "   target"]
    quiet = {name: cpu[name][1:] for name in columns}
    for title, figures in (
        ("head", [cpu[name][0] for name in columns]),
        ("quiet node, median", [statistics.median(quiet[name]) for name in columns]),
        ("quiet node, most", [max(quiet[name]) for name in columns]),
    ):
        rows.append(f"{title:20}" + "".join(f"{figure:8.2f}" for figure in figures) + f"   under {NODE_PERCENT}")
    rows.append(f"{'controller':20}{cpu['controller'][0]:32.2f}   under {CONTROLLER_PERCENT}")
    return "\n".join(rows)


def transfer_table(transfers: dict[str, Transfer], size: int) -> str:
    """The figures of ``measure_transfer`` as text."""
    rows = ["", f"{'terminal':10}{'s':>8}{'MB/s':>8}{'script s':>10}{'main MB':>9}{'worker MB':>11}   lost"]
    for name, one in transfers.items():
        speed = RANKS * size / one.seconds / 1e6
        rows.append(
            f"{name:10}{one.seconds:8.1f}{speed:8.1f}{one.script_seconds:10.1f}{one.main_mb:9.0f}{one.worker_mb:11.0f}"
            f"   {', '.join(one.lost) or 'nothing'}"
        )
    rows.append(f"target: under {CONTROLLER_MB} MB each")
    ratio = transfers["slow"].script_seconds / transfers["fast"].script_seconds
    rows.append(f"the script with a slow terminal takes {ratio:.2f} times as long as with a fast one")
    return "\n".join(rows)


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="how long CPU time is measured")
    parser.add_argument(
        "--bytes", type=int, default=10**9, help="what each of the ranks prints; 0: measure CPU time only"
    )
    parser.add_argument("--before", metavar="COMMIT", help="measure CPU time of this project at that commit, too")
    parser.add_argument("--output", type=Path, default=FOLDER / "follow.json", help="every figure, as JSON")
    options = parser.parse_args()
    if options.nodes < RANKS:
        sys.exit(f"--nodes is {options.nodes}; it takes {RANKS} or more")

    with versions(options.before) as compared, cluster(NETWORK, SUBNET, options.nodes) as nodes:
        cpu = {}
        for name, version in compared.items():
            cpu[name] = measure_cpu(nodes, options.seconds, version)
            print(
                f"\n{name}: {options.nodes} nodes, rank 0 prints {LINES_PER_SECOND} lines a second, "
                f"{options.seconds:.0f} s: CPU time in % of a core"
            )
            print(cpu_table(cpu[name]), flush=True)
        transfers = {}
        if options.bytes:
            for name, terminal in (("fast", 0), ("slow", SLOW_BYTES_PER_SECOND)):
                transfers[name] = measure_transfer(nodes, options.bytes, terminal)
            print(f"\n{RANKS} ranks print {options.bytes:,} bytes each")
            print(transfer_table(transfers, options.bytes), flush=True)
    document = {
        "nodes": options.nodes,
        "cores": os.cpu_count(),
        "seconds": options.seconds,
        "cpu_percent": cpu,
        "bytes": options.bytes,
        "ranks": RANKS,
        "transfers": {name: asdict(one) for name, one in transfers.items()},
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nevery figure: {options.output}")
    if any(one.lost for one in transfers.values()):
        sys.exit("bytes were lost, see above")


if __name__ == "__main__":
    main()
