# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    Reachability,
    describe_unreachable,
    ports_of,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.reachability import probe_connections
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from stacks_of_jobs import Answer, FakeGang, topology_of, unreachable

SETUP = "run: ansible-playbook setup.yml"


def reach(count: int, *pairs: tuple[int, int, str], master: Mapping[int, str] | None = None) -> Reachability:
    """What ``count`` nodes found: who could not connect to whom, and why."""
    failed: dict[str, dict[str, str]] = {f"node{rank}": {} for rank in range(count)}
    for source, target, why in pairs:
        failed[f"node{source}"][f"node{target}"] = why
    masters = {f"node{rank}": why for rank, why in (master or {}).items()}
    return Reachability(list(failed), 29500, dict.fromkeys(failed, 47011), failed, masters, {})


def described(count: int, *pairs: tuple[int, int, str], **more: Any) -> list[str]:
    return describe_unreachable(reach(count, *pairs, **more))


def all_pairs(count: int, why: str) -> list[tuple[int, int, str]]:
    return [(source, target, why) for source in range(count) for target in range(count) if source != target]


@pytest.mark.parametrize(
    ("count", "pairs", "expected"),
    [
        (2, [], []),
        (
            2,
            [(1, 0, "no answer")],
            [f"node1 gets no answer from node0 (port 47011): a firewall drops it; {SETUP}"],
        ),
        (
            2,
            all_pairs(2, "refused"),
            [
                "node0 is refused by node1, node1 is refused by node0 (port 47011): a firewall rejects it; "
                "run: ansible-playbook setup.yml"
            ],
        ),
        (
            3,
            all_pairs(3, "no answer"),
            [f"every node gets no answer from every other (port 47011): a firewall drops it; {SETUP}"],
        ),
        (
            3,
            [(0, 2, "no route"), (1, 2, "no route")],
            [f"every other node has no route to node2 (port 47011): a firewall rejects it; {SETUP}"],
        ),
        (
            4,
            [(3, 0, "no answer"), (3, 1, "no answer"), (3, 2, "no answer")],
            [f"node3 gets no answer from every other (port 47011): a firewall drops it; {SETUP}"],
        ),
        (
            4,
            [(0, 1, "no answer"), (2, 3, "answered by another program")],
            [
                "node0 gets no answer from node1, node2 cannot connect to node3 (port 47011): a firewall drops it; "
                "run: ansible-playbook setup.yml"
            ],
        ),
    ],
)
def test_describe(count: int, pairs: list[tuple[int, int, str]], expected: list[str]) -> None:
    assert described(count, *pairs) == expected


def test_a_node_that_is_bad_in_both_directions_and_a_pair() -> None:
    pairs = [(source, target, why) for source, target, why in all_pairs(5, "no answer") if 4 in (source, target)]
    assert described(5, *pairs, (0, 1, "refused")) == [
        "every other node gets no answer from node4, node4 gets no answer from every other (port 47011): a firewall "
        "drops it; run: ansible-playbook setup.yml",
        f"node0 is refused by node1 (port 47011): a firewall rejects it; {SETUP}",
    ]


def test_300_nodes_in_few_words() -> None:
    bad = {7, 8, 9, 10, 11, 12, 13}
    pairs = [(source, target, "no answer") for source, target, _why in all_pairs(300, "") if target in bad]
    assert described(300, *pairs) == [
        "every other node gets no answer from node7, node8, node9, node10, node11 and 2 more (port 47011): a firewall "
        "drops it; run: ansible-playbook setup.yml"
    ]
    ring = [(rank, (rank + 1) % 300, "refused") for rank in range(300)]
    (sentence,) = described(300, *ring)
    assert sentence.endswith(
        f"node4 is refused by node5 and 295 more pairs of nodes (port 47011): a firewall rejects it; {SETUP}"
    )


def test_master_port() -> None:
    assert described(3, master={1: "refused", 2: "refused"}) == [
        "nothing listens at MASTER_PORT 29500 on node0 for node1, node2: its rank 0 is not there"
    ]
    assert described(3, master={1: "no answer"}) == [
        f"node1 cannot connect to MASTER_PORT 29500 on node0: a firewall drops it; {SETUP}"
    ]
    pairs = [(1, 0, "no answer"), (2, 0, "no answer")]
    assert described(3, *pairs, master={1: "no answer", 2: "no answer"}) == [
        f"every other node gets no answer from node0 (port 47011): a firewall drops it; {SETUP}"
    ]


def test_master_port_where_the_head_listens_for_the_probe() -> None:
    found = dataclasses.replace(reach(3, master={1: "refused", 2: "refused"}), at_master=True)
    expected = f"node1, node2 cannot connect to MASTER_PORT 29500 on node0: a firewall rejects it; {SETUP}"
    assert describe_unreachable(found) == [expected]
    found.unknown["node0"] = unreachable("node0")
    assert describe_unreachable(found) == []  # it did not listen


SMALL = (
    "something on the way carries less than the interfaces' MTU and does not report it; find out how much with "
    "ping -M do -s BYTES, and set that MTU on the nodes' interfaces, or repair that there"
)


def test_large_packets_that_are_lost() -> None:
    assert described(3, (0, 2, "only small packets"), (1, 0, "refused")) == [
        f"node1 is refused by node0 (port 47011): a firewall rejects it; {SETUP}",
        f"node0 gets only small packets through to node2 (port 47011): {SMALL}",
    ]
    assert described(3, *all_pairs(3, "only small packets")) == [
        f"every node gets only small packets through to every other (port 47011): {SMALL}"
    ]


# --------------------------------------------------------------------------------------------------------------- asking


MET: dict[str, Any] = {"failed": {}, "master": None, "taken": None, "trips": [50, {"node0": 70}]}
MET["mtu"] = 1500
PORTS = {"node0": 40001, "node1": 40003}


def test_probe() -> None:
    def answer(host: str, request: Mapping[str, Any]) -> Answer:
        return {**MET, "failed": {"node0": "refused"} if host == "node1" else {}}, b""

    gang = FakeGang(topology_of(3), try_connections=answer)
    ports = {"node0": 40000, "node1": 40001, "node2": 40002}
    found = probe_connections(gang, ports)  # type: ignore[arg-type]
    expected = {"node0": {}, "node1": {"node0": "refused"}, "node2": {}}
    trips = dict.fromkeys(expected, (50, {"node0": 70}))
    assert found == Reachability(
        [*ports], 29500, ports, expected, {}, {}, True, trips=trips, mtus=dict.fromkeys(expected, 1500)
    )
    ((op, requests),) = gang.asked
    peers = {"node0": ["198.18.0.1", 40000], "node1": ["198.18.0.2", 40001], "node2": ["198.18.0.3", 40002]}
    common = {"interface": "eth0", "peers": peers, "seconds": 5.15, "head": "node0", "master": ["198.18.0.1", 29500]}
    assert op == "try_connections"
    assert requests == {
        "node0": {"name": "node0", "address": "198.18.0.1", "port": 40000, **common},
        "node1": {"name": "node1", "address": "198.18.0.2", "port": 40001, **common},
        "node2": {"name": "node2", "address": "198.18.0.3", "port": 40002, **common},
    }


def test_probe_with_a_head_that_listens_for_it() -> None:
    taken = "Address already in use"
    gang = FakeGang(
        topology_of(2), try_connections=lambda host, _request: ({**MET, "taken": taken, "master": "refused"}, b"")
    )
    found = probe_connections(gang, PORTS)  # type: ignore[arg-type]
    ((_op, requests),) = gang.asked
    assert {(request["head"], *request["master"]) for request in requests.values()} == {("node0", "198.18.0.1", 29500)}
    assert (found.at_master, found.taken) == (True, taken)
    assert describe_unreachable(found) == []  # who is refused there is no news


def test_a_port_that_is_taken_is_replaced_once() -> None:
    def answer(host: str, request: Mapping[str, Any]) -> Answer:
        if host == "node1":
            return NodeError("node1", "cannot listen", taken=request["port"] + 2)
        return {**MET, "failed": {"node1": "refused"}}, b""

    gang = FakeGang(topology_of(2), try_connections=answer)
    found = probe_connections(gang, PORTS)  # type: ignore[arg-type]
    asked = [[request["port"] for request in requests.values()] for _op, requests in gang.asked]
    assert asked == [[40001, 40003], [40001, 40005]]
    assert gang.asked[1][1]["node0"]["peers"]["node1"] == ["198.18.0.2", 40005]
    assert list(found.unknown) == ["node1"]


def test_a_node_whose_port_is_not_known() -> None:
    """It is not asked, nobody looks for it, and nothing is said of it."""
    gang = FakeGang(topology_of(3), try_connections=lambda _host, _request: (MET, b""))
    found = probe_connections(gang, {**PORTS, "node2": 0})  # type: ignore[arg-type]
    ((_op, requests),) = gang.asked
    assert [[*request["peers"]] for request in requests.values()] == [["node0", "node1"]] * 2
    assert (found.ports, list(found.unknown)) == (PORTS, ["node2"])
    assert describe_unreachable(found) == []


def test_the_ports_of_those_that_are_not_reached() -> None:
    found = dataclasses.replace(
        reach(4, (0, 1, "refused"), (2, 3, "refused"), (1, 2, "no answer"), (0, 9, "refused")),
        ports={f"node{rank}": 40001 + 2 * rank for rank in range(4)},
    )
    assert describe_unreachable(found) == [
        "node0 is refused by node1, node1 gets no answer from node2, node2 is refused by node3 (ports 40003 to 40007): "
        "a firewall rejects it; run: ansible-playbook setup.yml"
    ]


def test_a_node_that_cannot_be_asked() -> None:
    def answer(host: str, request: Mapping[str, Any]) -> Answer:
        if host == "node1":
            return unreachable(host)
        return {**MET, "failed": {"node1": "no answer"}}, b""

    gang = FakeGang(topology_of(2), try_connections=answer)
    found = probe_connections(gang, PORTS)  # type: ignore[arg-type]
    assert (found.failed, list(found.unknown), len(gang.asked)) == ({"node0": {"node1": "no answer"}}, ["node1"], 1)
    assert describe_unreachable(found) == []  # it did not listen


@pytest.mark.parametrize(
    ("ports", "words"), [([40001], "port 40001"), ([40003, 40001, 40001, 40002], "ports 40001 to 40003")]
)
def test_ports_of(ports: list[int], words: str) -> None:
    assert ports_of(ports) == words
