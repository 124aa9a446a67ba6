# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the chaos tests share: three machines that any of them may break, and that are mended after each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import CACHE, Cluster
from measuring import Timeline


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep", action="store_true", help="leave the nodes running, and use those that run already")
    parser.addoption("--minutes", type=float, default=0.5, help="for which a healthy job has to outlive what happens")
    parser.addoption("--rounds", type=int, default=0, help="of failing polls, on four nodes of their own")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rounds: a measurement that goes on for as many rounds as --rounds says")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--rounds"):  # a measurement, not a test
        items[:] = [item for item in items if item.get_closest_marker("rounds") is None]
    items.sort(key=lambda item: item.get_closest_marker("torch") is not None)  # stable: those last, else as they stand


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes that were set up, without torch."""
    keep = request.config.getoption("--keep")
    made = Cluster(["node0", "node1", "node2"])
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
def cluster(machines: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """The nodes, free and whole, with no jobs on record."""
    machines.runs = tmp_path / "runs"
    yield machines
    machines.heal()


@pytest.fixture
def timeline(request: pytest.FixtureRequest) -> Timeline:
    """Measures, and writes down."""
    return Timeline(CACHE / "measurements.jsonl", request.node.name)
