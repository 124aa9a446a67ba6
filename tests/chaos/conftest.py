# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chaos tests share: three machines that any of them may break, and that are mended after each.

Most of a test is waiting, so two may run at once (`--numprocesses 2 --dist loadgroup`: each gets the next one that is
free), each with machines of its own.
"""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import CACHE, NETWORK, RIG, SUBNETS, Cluster
from measuring import Measurements, Timeline


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep", action="store_true", help="leave the nodes running, and use those that run already")
    parser.addoption("--minutes", type=float, default=0.5, help="for which a healthy job has to outlive what happens")
    parser.addoption("--rounds", type=int, default=0, help="of failing polls, on four nodes of their own")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rounds: a measurement that goes on for as many rounds as --rounds says")
    config.addinivalue_line("markers", "alone: takes what all machines share, so no other test may run meanwhile")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Measurements(CACHE / "measurements.jsonl"))


def pytest_sessionstart(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and not session.config.option.collectonly:  # once: two would do it at the same time
        subprocess.run([sys.executable, RIG, "prepare"], check=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--rounds"):  # a measurement, not a test
        items[:] = [item for item in items if item.get_closest_marker("rounds") is None]
    items.sort(key=lambda item: item.get_closest_marker("torch") is not None)  # stable: those last, else as they stand


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest, worker_id: str) -> Iterator[Cluster]:
    """Three nodes that were set up, without torch."""
    keep = request.config.getoption("--keep")
    number = 0 if worker_id == "master" else int(worker_id.removeprefix("gw"))
    made = Cluster(["node0", "node1", "node2"], f"{NETWORK}-{number}", SUBNETS[number])
    try:
        made.create(reuse=keep)
        setup = made.playbook("setup.yml", *made.requirements)
        assert setup.wait(300) == 0, setup.text
        yield made
    finally:
        if not keep:
            made.remove()
        made.close()


@pytest.fixture
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wait for a test that has to run alone, or, as such a test, for those that run."""
    with (CACHE / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture
def cluster(machines: Cluster, turn: None, tmp_path: Path) -> Iterator[Cluster]:
    """The nodes, free and whole, with no jobs on record."""
    machines.runs = tmp_path / "runs"
    yield machines
    machines.heal()


@pytest.fixture
def timeline(request: pytest.FixtureRequest) -> Timeline:
    """Measures, and writes down."""
    return Timeline(request.node)
