# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_nodes import LocalNode, free_port

# Before hypothesis is imported: else it makes a folder in this checkout.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parents[3] / ".cache" / "hypothesis"))
from hypothesis import settings

settings.register_profile("plain", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("plain")


def set_up(tmp_path: Path, count: int) -> list[LocalNode]:
    port = free_port()
    return [LocalNode(tmp_path / f"node{n}", f"node{n}", f"127.0.0.{n + 1}", port).set_up() for n in range(count)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LocalNode]:
    """A node that was set up."""
    one = LocalNode(tmp_path / "node0").set_up()
    yield one
    one.end_all()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[LocalNode]]:
    """Two nodes that were set up; either can be the head."""
    both = set_up(tmp_path, 2)
    yield both
    for one in both:
        one.end_all()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[LocalNode]]:
    """Three nodes that were set up."""
    all_three = set_up(tmp_path, 3)
    yield all_three
    for one in all_three:
        one.end_all()
