# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_connection import (
    InspectorConnection,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import LOOK
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member

MEMBERS = [Member("node0", "198.18.0.1", 40000)]
FOUND = {"task": LOOK, "number": 7, "result": {"found": []}}


def task(number: int) -> dict[str, Any]:
    return {"task": LOOK, "number": number, "seconds": 1}


def failed(number: int, why: str, **more: bool) -> dict[str, Any]:
    return {"task": LOOK, "number": number, "result": {"error": f"cannot look: its inspector {why}", **more}}


@pytest.fixture
def ends() -> Iterator[tuple[InspectorConnection, socket.socket]]:
    """The connection, and the inspector's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield InspectorConnection(ours), theirs


def test_a_task_and_its_result(ends: tuple[InspectorConnection, socket.socket]) -> None:
    ours, theirs = ends
    ours.ask(task(7), MEMBERS, [0, 1])
    assert json.loads(theirs.recv(4096)) == {
        **task(7),
        "members": [["node0", "198.18.0.1", 40000]],
        "roster": [0, 1],
    }
    line = json.dumps(FOUND).encode() + b"\n"
    theirs.sendall(line[:9])
    assert ours.results() == []
    theirs.sendall(line[9:])
    assert ours.results() == [FOUND]
    assert ours.results() == []


def test_one_task_at_a_time(ends: tuple[InspectorConnection, socket.socket]) -> None:
    ours, theirs = ends
    ours.ask(task(7), MEMBERS, [0, 1])
    ours.ask(task(8), MEMBERS, [0, 1])
    assert ours.results() == [failed(8, "is at another task", is_busy=True)]
    theirs.sendall(json.dumps(FOUND).encode() + b"\n")
    assert ours.results() == [FOUND]


def test_an_inspector_that_ends(ends: tuple[InspectorConnection, socket.socket]) -> None:
    """The task that it is at fails, and each later one."""
    ours, theirs = ends
    ours.ask(task(7), MEMBERS, [0, 1])
    theirs.sendall(b'{"task": "lo')
    theirs.close()
    assert ours.results() == [failed(7, "has ended")]
    assert ours.is_gone
    ours.ask(task(8), MEMBERS, [0, 1])
    assert ours.results() == [failed(8, "has ended")]
    assert ours.results() == []


def test_an_inspector_that_ends_after_its_result(ends: tuple[InspectorConnection, socket.socket]) -> None:
    ours, theirs = ends
    ours.ask(task(7), MEMBERS, [0, 1])
    theirs.sendall(json.dumps(FOUND).encode() + b"\n")
    theirs.close()
    assert ours.results() == [FOUND]
    assert ours.results() == []


def test_a_task_that_the_connection_takes_in_pieces(ends: tuple[InspectorConnection, socket.socket]) -> None:
    ours, theirs = ends
    members = [Member(f"node{number}", "198.18.0.1", 40000) for number in range(50_000)]
    ours.ask(task(7), members, [0])
    assert ours.has_unsent
    read = b""
    while not read.endswith(b"\n"):
        read += theirs.recv(2**20)
        ours.flush()
    assert not ours.has_unsent
    assert len(json.loads(read)["members"]) == len(members)
