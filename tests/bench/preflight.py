#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long preflight.yml takes for a healthy cluster, and what its short form costs a run.yml.

    preflight.py [--nodes 16] [--rounds 15]

On containers of the test rig, all on this machine, with one environment for all of them: each imports torch by itself.
The import by itself, while nothing else runs, tells what of the time is this machine's. Then run.yml, by turns with the
checks and without (-e skip): seconds from the command to the last node's stamp.
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

from cluster import FOLDER, PROJECT, REPOSITORY, Cluster, cluster, rig, run

NETWORK = "thunderhead-bench-preflight"
SUBNET = "198.18.24"
STAMPS = FOLDER / "stamps"
ENVIRONMENTS = FOLDER / "envs"
WAYS: dict[str, list[str]] = {"with the checks": [], "without": ["-e", "skip=software,hardware,time"]}
# As the nodes of tests/preflight: a container's /dev/shm is small, and the rig gives it its name at 127.0.1.1.
MEND = "mount -o remount,size=1g /dev/shm; sed '/^127[.]0[.]1[.]1/d' /etc/hosts >/tmp/hosts; cat /tmp/hosts >/etc/hosts"


def set_up(nodes: Cluster) -> None:
    """Give all nodes the environment that the first one installs, and make them healthy."""
    rig("wheels")
    for name in nodes.nodes:
        run(["docker", "exec", f"{nodes.network}-{name}", "sh", "-c", MEND])
    wheels = ["-e", '{"python_env_find_links": ["/wheels"], "python_env_index_url": "none"}']
    for limit in ([next(iter(nodes.nodes))], list(nodes.nodes)):
        run([*nodes.playbook("setup.yml"), *wheels, "--limit", ",".join(limit)])


def import_seconds(nodes: Cluster) -> float:
    """How long one node takes to import torch while the others rest."""
    python = "/opt/thunderhead/env/bin/python"
    command = ["docker", "exec", f"{nodes.network}-{next(iter(nodes.nodes))}", python, "-B", "-c", "import torch"]
    begin = time.monotonic()
    run(command)
    return time.monotonic() - begin


def examine(nodes: Cluster, *arguments: str) -> float:
    """Run preflight.yml, which must find nothing; its seconds."""
    begin = time.monotonic()
    output = subprocess.run(
        [*nodes.playbook("preflight.yml"), "-e", "format=json", *arguments],
        check=False,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout
    seconds = time.monotonic() - begin
    found = next((json.loads(line) for line in output.splitlines() if line.startswith("{")), None)
    if found is None:
        sys.exit(f"preflight.yml found nothing to say:\n{output}")
    if wrong := [one for one in found["checks"] if one["status"] in ("failed", "warning")]:
        sys.exit(f"preflight.yml found something on a healthy cluster:\n{json.dumps(wrong, indent=2)}")
    return seconds


def start(nodes: Cluster, arguments: list[str]) -> float:
    """Run run.yml; the seconds from its command to the last node's stamp."""
    for stamp in STAMPS.iterdir():
        stamp.unlink()
    begin = time.time_ns()
    run([*nodes.playbook("run.yml"), "-e", "script=stamp.py", "-e", f"project_dir={PROJECT}", *arguments])
    stamps = [int(stamp.read_text()) for stamp in STAMPS.iterdir()]
    if len(stamps) != len(nodes.nodes):
        sys.exit(f"run.yml ended, but only {len(stamps)} of {len(nodes.nodes)} nodes left a stamp")
    return (max(stamps) - begin) / 1e9


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=FOLDER / "preflight.json", help="every measurement, as JSON")
    options = parser.parse_args()
    for folder in (STAMPS, ENVIRONMENTS):
        folder.mkdir(parents=True, exist_ok=True)
    STAMPS.chmod(0o777)  # jobs write as a user of their own
    volumes = ["--volume", f"{STAMPS}:/stamps", "--volume", f"{ENVIRONMENTS}:/opt/thunderhead/envs"]
    with cluster(NETWORK, SUBNET, options.nodes, *volumes, set_up=set_up) as nodes:
        alone = min(import_seconds(nodes) for _ in range(3))
        whole = [examine(nodes) for _ in range(3)]
        light = [examine(nodes, "-e", "skip=collective,software") for _ in range(3)]
        print(f"\n{options.nodes} healthy nodes: seconds of preflight.yml, medians of 3")
        print(f"{'all checks':40}{statistics.median(whole):6.1f}")
        print(f"{'without those that import torch':40}{statistics.median(light):6.1f}")
        print(f"{'one import of torch, by itself':40}{alone:6.1f}", flush=True)
        for arguments in WAYS.values():  # not counted: fills the caches
            start(nodes, arguments)
        rounds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in sorted(WAYS, reverse=number % 2 == 0):  # neither always comes after the other
                rounds[way].append(start(nodes, WAYS[way]))
    print(f"\nseconds from run.yml to the last stamp, {options.rounds} rounds")
    for way, seconds in rounds.items():
        print(f"{way:16}{min(seconds):8.2f}{statistics.median(seconds):8.2f}{max(seconds):8.2f}")
    more = statistics.median(own - less for own, less in zip(*rounds.values(), strict=True))
    print(f"the checks take {more:.2f} s (target: under 0.3)")
    document = {"nodes": options.nodes, "cores": os.cpu_count(), "unit": "s", "import": alone, "run": rounds}
    options.output.write_text(json.dumps({**document, "preflight": whole, "without torch": light}, indent=2) + "\n")
    print(f"\nevery measurement: {options.output}")


if __name__ == "__main__":
    main()
