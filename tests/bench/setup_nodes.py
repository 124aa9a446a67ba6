#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long setup.yml takes on fresh nodes, and again, against the same installation by parallel ssh and uv by hand.

    setup_nodes.py [--nodes 8] [--rounds 3]

Each round makes new containers of the test rig for each way, in random order. What is installed is requirements.txt,
from a folder of wheels that all nodes see; uv's cache is empty on each. By hand: ssh to all nodes at once, which makes
an environment and has uv, which every node sees, install; with compiled bytecode as setup.yml does, and without.
Needs a Docker engine (rig.py up) on this machine.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cluster import FOLDER, REPOSITORY, SSH_CONFIG, Cluster, cluster, rig, run

NETWORK = "thunderhead-bench-setup"
SUBNET = "198.18.25"
WHEELS = ["-e", '{"python_env_find_links": ["/wheels"], "python_env_index_url": "none"}']


def seconds(command: list[str]) -> float:
    """Run a command that has to succeed; how long it took."""
    begin = time.monotonic()
    run(command)
    return time.monotonic() - begin


def setup_yml(nodes: Cluster) -> float:
    """Run setup.yml."""
    return seconds([*nodes.playbook("setup.yml"), *WHEELS])


def by_hand(nodes: Cluster, options: str) -> float:
    """Install by a shell loop of ssh; uv and the list are in /bench of every node."""
    install = (
        "sudo python3 -m venv --without-pip /opt/hand && "
        f"sudo /bench/uv pip install --quiet --python /opt/hand/bin/python --no-index --find-links /wheels {options} "
        "--requirement /bench/requirements.txt"
    )
    addresses = " ".join(nodes.nodes.values())
    loop = f"for node in {addresses}; do ssh -F {SSH_CONFIG} $node '{install}' & all=\"$all $!\"; done; "
    return seconds(["sh", "-c", f'{loop}for one in $all; do wait "$one" || exit 1; done'])


WAYS: dict[str, Callable[[Cluster], float]] = {
    "setup.yml": setup_yml,
    "by hand, compiled": lambda nodes: by_hand(nodes, "--compile-bytecode"),
    "by hand": lambda nodes: by_hand(nodes, ""),
}
AGAIN = "setup.yml again"


def main() -> None:
    """Read the command line, measure, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=FOLDER / "setup.json", help="every measurement, as JSON")
    options = parser.parse_args()
    rig("wheels")
    hand = FOLDER / "hand"
    hand.mkdir(parents=True, exist_ok=True)
    (hand / "requirements.txt").write_bytes((REPOSITORY / "requirements.txt").read_bytes())
    (hand / "uv").write_bytes((REPOSITORY / ".venv" / "bin" / "uv").read_bytes())
    (hand / "uv").chmod(0o755)
    times: dict[str, list[float]] = {way: [] for way in [*WAYS, AGAIN]}
    for _ in range(options.rounds):
        for way in random.sample([*WAYS], len(WAYS)):
            volume = ["--volume", f"{hand}:/bench:ro"]
            with cluster(NETWORK, SUBNET, options.nodes, *volume, set_up=lambda _nodes: None) as nodes:
                times[way].append(WAYS[way](nodes))
                if way == "setup.yml":
                    times[AGAIN].append(setup_yml(nodes))
    print(f"\n{options.nodes} fresh nodes on {os.cpu_count()} cores: seconds, {options.rounds} rounds")
    for way, took in times.items():
        ratio = statistics.median(own / least for own, least in zip(times["setup.yml"], took, strict=True))
        print(f"{way:20}{min(took):8.1f}{statistics.median(took):8.1f}{max(took):8.1f}   setup.yml takes x{ratio:5.2f}")
    document = {"nodes": options.nodes, "cores": os.cpu_count(), "unit": "s", "rounds": times}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nevery measurement: {options.output}")


if __name__ == "__main__":
    main()
