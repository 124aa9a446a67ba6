#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How alike the ranks start, how fast a rank's death ends the others, and how soon the job goes on.

    recovery.py [--sizes 2 4 8 16 32] [--rounds 3]

The last rank kills itself with SIGKILL. Measured, by stamps of one clock, on containers of the test rig:

    start skew     from the first rank's start to the last one's
    others told    from the death to the SIGTERM of the last other rank, while run.yml looks on
    … detached     the same with nobody looking on
    run.yml ends   from the death to the end of run.yml, the cause said and the artifacts collected
    runs again     from the death to the last rank's start in the job that goes on, with run.yml -e resume
    by itself      from the death to the last rank's start in the next attempt of the job, while run.yml looks on
    … detached     the same with nobody looking on

Needs a Docker engine (rig.py up) on this machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cluster import FOLDER, PROJECT, REPOSITORY, RUNS, Cluster, cluster, run

NETWORK = "thunderhead-bench-recovery"
SUBNET = "198.18.22"
STAMPS = FOLDER / "stamps"
LIMIT_SECONDS = 120
OPTIONS = ["-e", f"project_dir={PROJECT}"]
COLUMNS = ("start skew", "others told", "… detached", "run.yml ends", "runs again", "by itself", "… detached")


def stamps(what: str) -> dict[str, int]:
    """What the nodes have stamped: host to nanoseconds."""
    return {path.stem: int(path.read_text()) for path in STAMPS.glob(f"[!.]*.{what}")}


def await_stamps(what: str, count: int) -> dict[str, int]:
    """Return the stamps once there are `count`."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(found := stamps(what)) < count:
        if time.monotonic() > deadline:
            sys.exit(f"only {len(found)} of {count} nodes stamped {what!r} within {LIMIT_SECONDS} s")
        time.sleep(0.01)
    return found


def clear() -> None:
    """Forget all stamps."""
    for path in STAMPS.iterdir():
        path.unlink()


def start(nodes: Cluster, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin a run.yml."""
    command = [*nodes.playbook("run.yml"), *OPTIONS, *arguments]
    with (FOLDER / "recovery.log").open("ab") as output:
        return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def latest(script: str) -> str:
    """Return the id of the last job with that script."""
    return max(path.name for path in RUNS.iterdir() if f"-{script}-" in path.name)


def kill_last(nodes: Cluster) -> tuple[int, float]:
    """Have the last rank die; return when it did, and how long it took until all others were told to stop."""
    victim = list(nodes.nodes)[-1]
    (STAMPS / f"{victim}.die").touch()
    died = await_stamps("died", 1)[victim]
    told = max(await_stamps("told", len(nodes.nodes) - 1).values())
    return died, (told - died) / 1e9


def measure(nodes: Cluster) -> list[float]:
    """One round: seconds, as in COLUMNS."""
    count = len(nodes.nodes)
    clear()
    attached = start(nodes, "-e", "script=steady.py")
    started = await_stamps("started", count).values()
    skew = (max(started) - min(started)) / 1e9
    time.sleep(3)  # a job in the middle of its work
    died, told = kill_last(nodes)
    if attached.wait(LIMIT_SECONDS) != 2:
        sys.exit(f"run.yml ended with {attached.returncode}, not with 2; see {FOLDER / 'recovery.log'}")
    ended = (time.time_ns() - died) / 1e9
    job = latest("steady")
    clear()
    again = start(nodes, "-e", f"resume={job}")
    resumed = (max(await_stamps("resumed", count).values()) - died) / 1e9
    kill_last(nodes)
    again.wait(LIMIT_SECONDS)
    clear()
    run([*nodes.playbook("run.yml"), *OPTIONS, "-e", "script=steady.py", "-e", "detach=true"])
    await_stamps("started", count)
    time.sleep(3)
    _died, alone = kill_last(nodes)
    run([*nodes.playbook("stop.yml"), "-e", f"job={latest('steady')}"])
    return [skew, told, alone, ended, resumed, measure_attempt(nodes), measure_attempt(nodes, "-e", "detach=true")]


def measure_attempt(nodes: Cluster, *options: str) -> float:
    """Return how long after the death of the last rank the last one starts in the next attempt, in seconds."""
    count = len(nodes.nodes)
    clear()
    run_yml = start(nodes, "-e", "script=trains.py", *options)
    await_stamps("started", count)
    time.sleep(3)
    died, _told = kill_last(nodes)
    resumed = max(await_stamps("resumed", count).values())
    (STAMPS / "end").touch()
    if run_yml.wait(LIMIT_SECONDS):
        sys.exit(f"run.yml ended with {run_yml.returncode}; see {FOLDER / 'recovery.log'}")
    run([*nodes.playbook("logs.yml"), "-e", f"job={latest('trains')}"])  # it has ended
    return (resumed - died) / 1e9


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=FOLDER / "recovery.json", help="every measurement, as JSON")
    options = parser.parse_args()
    STAMPS.mkdir(parents=True, exist_ok=True)
    STAMPS.chmod(0o777)  # jobs write as a user of their own
    results: dict[int, list[list[float]]] = {}
    for size in options.sizes:
        with cluster(NETWORK, SUBNET, size, "--volume", f"{STAMPS}:/stamps") as nodes:
            results[size] = [measure(nodes) for _ in range(options.rounds)]
        medians = [statistics.median(column) for column in zip(*results[size], strict=True)]
        print(
            f"{size} nodes: " + ", ".join(f"{name} {value:.2f}" for name, value in zip(COLUMNS, medians, strict=True))
        )
    print(f"\n| nodes | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for size, rounds in results.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(f"| {size} | {' | '.join(f'{value:.2f} s' for value in medians)} |")
    document = {"cores": os.cpu_count(), "unit": "s", "columns": COLUMNS, "rounds": results}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nmedians of {options.rounds} rounds; every measurement: {options.output}")


if __name__ == "__main__":
    main()
