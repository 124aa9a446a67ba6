# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from local_nodes import SLEEP, LocalNode, code, gang_of, opener, until

IDENTITY = Identity("2026-11-22T17:30:00+01:00", "job-1", "trainer")


def gang(nodes: list[LocalNode]) -> Gang:
    return Gang(IDENTITY, NodeGroup([node.settings() for node in nodes], opener(nodes)))


def test_of_two_jobs_the_earlier_is_the_smaller() -> None:
    later = Identity("2026-11-22T17:30:01+01:00", "job-0", "a")
    same_second = Identity("2026-11-22T17:30:00+01:00", "job-2", "a")
    assert IDENTITY < same_second < later


def test_what_every_request_of_a_job_has(nodes: list[LocalNode]) -> None:
    nodes[1].user = "somebody"
    assert gang(nodes).request("follow", "node1", offset=3) == {
        "op": "follow",
        "directory": str(nodes[1].directory),
        "user": "somebody",
        "job": {"id": "job-1", "user": "trainer", "start": "2026-11-22T17:30:00+01:00"},
        "offset": 3,
    }
    assert gang(nodes).job_id == "job-1"


def test_the_topology_is_known_once_the_job_is_prepared(nodes: list[LocalNode], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not prepared yet"):
        gang(nodes).topology  # noqa: B018
    launch = gang_of(nodes, code(tmp_path / "code", ""))
    assert launch.prepare() is launch.gang.topology
    launch.discard()


class Recorder:
    """Stands for a channel; remembers what it was asked."""

    asked: list[tuple[str, dict[str, Any], bytes]]

    def __init__(self, host: str, asked: list[Any]) -> None:
        self.host = host
        self.asked = asked

    def call(self, request: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        self.asked.append((self.host, request, payload))
        return {"from": self.host}, payload.upper()


def test_ask(nodes: list[LocalNode]) -> None:
    asked: list[Any] = []
    settings = [node.settings() for node in nodes]
    one = Gang(IDENTITY, NodeGroup(settings, lambda host: Recorder(host, asked)))  # type: ignore[arg-type,return-value]
    replies, errors = one.ask("op", 5, payload=b"x", a=1, b=lambda host: f"of {host}")
    assert (replies, errors) == ({host: ({"from": host}, b"X") for host in ("node0", "node1")}, {})
    assert sorted((host, request["a"], request["b"], payload) for host, request, payload in asked) == [
        (f"node{n}", 1, f"of node{n}", b"x") for n in range(2)
    ]
    asked.clear()
    assert list(one.ask("op", 5, hosts=["node1"])[0]) == ["node1"]
    assert [host for host, _request, _payload in asked] == ["node1"]
    assert one.ask("op", 5, hosts=[]) == ({}, {})


def test_ask_names_the_nodes_that_could_not(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[0].prepare(code(tmp_path / "code", ""))
    replies, errors = gang(nodes).ask(
        "follow", 20, offset=0, wait_seconds=0, linger_seconds=0, pace_seconds=0, max_bytes=1, quiet=True
    )
    assert replies["node0"][0]["state"] == "prepared"
    assert {host: str(error) for host, error in errors.items()} == {"node1": "node1 has no job job-1"}


@pytest.mark.parametrize("because", ["", "node1 could not start"])
def test_stop_says_why(nodes: list[LocalNode], tmp_path: Path, because: str) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    launch.start()
    until(lambda: all(node.state() for node in nodes))
    replies, errors = launch.gang.stop(2, because)
    assert errors == {}
    assert {host: (reply["state"], reply["because"], reply["left"]) for host, (reply, _data) in replies.items()} == {
        host: ("stopped", because, []) for host in ("node0", "node1")
    }
    assert [node.supervisor() for node in nodes] == [None, None]


def test_a_node_without_the_job_is_no_reason_to_doubt_its_end(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    assert nodes[1].ask("discard") == {}
    replies, errors = launch.gang.end(2)
    assert (list(replies), errors) == (["node0"], {})
    assert [node.supervisor() for node in nodes] == [None, None]
