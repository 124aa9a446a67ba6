# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three machines as `setup.yml` leaves them, with torch, and without what the rig's containers are known for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "chaos"))

from machines import Cluster, Node  # noqa: E402

NETWORK = "thunderhead-preflight"
SUBNET = "198.18.30"
SETUP_SECONDS = 900
# A container's /dev/shm has 64 MB, and the rig gives each its name at 127.0.1.1: two of the defects.
MEND = "mount -o remount,size=1g /dev/shm; sed '/^127[.]0[.]1[.]1/d' /etc/hosts >/tmp/hosts; cat /tmp/hosts >/etc/hosts"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep", action="store_true", help="leave the nodes running, and use those that run already")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three healthy nodes; who plants a defect takes it away."""
    keep = request.config.getoption("--keep")
    made = Cluster(["node0", "node1", "node2"], NETWORK, SUBNET)
    try:
        made.create(reuse=keep)
        made.everywhere(lambda node: node.execute("sh", "-c", MEND))
        setup = made.playbook("setup.yml")
        assert setup.wait(SETUP_SECONDS) == 0, setup.text
        yield made
    finally:
        if not keep:
            made.remove()
        made.close()


@pytest.fixture(autouse=True)
def healed(cluster: Cluster) -> Iterator[None]:
    """What a test broke is whole again after it."""
    yield
    cluster.describe()
    cluster.everywhere(Node.heal)
    cluster.disconnect()
