# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.collective import (
    CHECKS,
    OPTIONS,
    checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.on_node.all_reduce import (
    expected,
    opponent,
    turns,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from local_nodes import LocalNode, free_port, opener
from stacks_of_jobs import FakeGang, topology_of

DEFAULTS = {name: spec["default"] for name, spec in OPTIONS.items()}
WELL: dict[str, Any] = {"free_port": 47011, "job": None, "environment": {"failed": {}}}
GLOO, NCCL, SLOW = CHECKS
REDUCED = [
    *({"gpus": 0}, {"step": "torch", "seconds": 60}, {"step": "meet"}, {"step": "connect"}, {"step": "gloo"}),
    *({"backend": "gloo", "bytes": 1000, "took": 0.001}, {"backend": "gloo", "bytes": 1000000, "took": 0.01}),
]
DONE = [*REDUCED, {"step": "done"}]


def reply_of(messages: list[dict[str, Any]], error: str = "", late: bool = False) -> dict[str, Any]:
    return {"messages": messages, "error": error, "late": late}


def with_gpus(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"gpus": 8} if "gpus" in message else message for message in messages]


def cluster_of(count: int, replies: Mapping[str, Any]) -> ClusterFacts:
    """A cluster whose nodes got done but for ``replies``."""
    topology = topology_of(count)

    def answer(host: str, request: Mapping[str, Any]) -> Any:
        reply = replies.get(host, reply_of(DONE))
        return reply if isinstance(reply, Exception) else (reply, b"")

    gang: Any = FakeGang(topology, try_program=answer)
    settings = [node.settings for node in topology.nodes]
    return ClusterFacts(settings, dict.fromkeys((one.host for one in settings), WELL), options=DEFAULTS, gang=gang)


def judged(count: int, replies: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {one.check: (one.status, one.sentence) for one in checks(cluster_of(count, replies))}


# ---------------------------------------------------------------------------------------------------------- tournament


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 16, 301])
def test_everybody_meets_everybody_once(count: int) -> None:
    met = []
    for turn in range(turns(count)):
        pairs = {player: opponent(player, turn, count) for player in range(count)}
        assert all(pairs[other] == player for player, other in pairs.items() if other is not None)
        assert sum(other is None for other in pairs.values()) == count % 2
        met += [(player, other) for player, other in pairs.items() if other is not None]
    assert sorted(met) == [(one, other) for one in range(count) for other in range(count) if one != other]


def test_how_long_the_next_size_takes() -> None:
    assert expected({}, 1000) == expected({1000: 5.0}, 64000) == 0
    assert expected({1000: 1.0, 2000: 1.5}, 4000) == 2.5
    assert expected({1000: 1.0, 2000: 2.0, 4000: 1.9}, 8000) == 1.9  # by chance, the larger one was faster


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_a_healthy_cluster() -> None:
    cluster = cluster_of(4, {})
    gloo, nccl, slow = checks(cluster)
    sizes = "1.0 kB at 1.5 MB/s, 1.0 MB at 150 MB/s"
    assert gloo == Verdict(
        GLOO,
        "ok",
        f"all 4 nodes reduce together; bus bandwidth by message: {sizes}",
        {
            "sizes": [
                {"bytes": 1000, "milliseconds": 1.0, "bus_bytes_per_second": 1.5e6},
                {"bytes": 1000000, "milliseconds": 10.0, "bus_bytes_per_second": 1.5e8},
            ]
        },
    )
    assert (nccl.status, nccl.sentence) == ("skipped", "torch sees no GPU on any node")
    assert (slow.status, slow.sentence) == ("ok", "the all-reduce is as fast as pairs of nodes let expect")
    gang: Any = cluster.gang
    ((_op, requests),) = gang.asked
    assert requests["node2"]["arguments"] == {
        **{"address": "198.18.0.1", "port": 47011, "world_size": 4, "rank": 2, "seconds": 120, "fraction": 0.5}
    }
    assert {host: request["listen"] for host, request in requests.items() if request["listen"]} == {
        "node0": ["198.18.0.1", 47011]
    }
    own = {"MASTER_ADDR": "198.18.0.1", "NODE_RANK": "2", "GLOO_SOCKET_IFNAME": "eth0"}
    assert own.items() < requests["node2"]["variables"].items()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gang": None}, "the nodes' addresses are not known"),
        ({"failed": ["reach.mtu", "time.clocks"]}, "it would hang: see reach.mtu"),
        ({"facts": {"node0": {**WELL, "job": {"id": "job-7"}}}}, "job job-7 is running, and would be disturbed"),
        ({"facts": {"node1": {**WELL, "environment": {"problem": "x"}}}}, "torch does not work on node1: see software"),
        (
            {"facts": {"node1": {**WELL, "environment": {"failed": {"torch": "x"}}}}},
            "torch does not work on node1: see software",
        ),
    ],
)
def test_what_is_not_tried(changes: dict[str, Any], why: str) -> None:
    cluster = cluster_of(2, {})
    found = checks(dataclasses.replace(cluster, **changes))
    assert [(one.check, one.status, one.sentence) for one in found] == [(check, "skipped", why) for check in CHECKS]
    assert cluster.gang.asked == []  # type: ignore[union-attr]


def test_one_node_and_nothing_wanted() -> None:
    assert {sentence for _status, sentence in judged(1, {}).values()} == {"there is one node"}
    assert checks(dataclasses.replace(cluster_of(2, {}), skipped=["collective"])) == []


AT_TORCH = [{"gpus": 0}, {"step": "torch", "seconds": 60}]
AT_MEET = [*AT_TORCH, {"step": "meet", "seconds": 60}]
AT_GLOO = [*AT_MEET, {"step": "connect"}, {"step": "gloo"}]
LOST = {"error": "RuntimeError: [../tcp/pair.cc:538] Connection closed by peer [198.18.0.3]:4711"}


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (
            {"node1": reply_of([*AT_TORCH, {"error": "ImportError: libx.so"}]), "node0": reply_of(AT_MEET, late=True)},
            "node1 failed at importing torch: ImportError: libx.so, and the others waited for it; "
            "run: ansible-playbook setup.yml",
        ),
        (
            {"node1": reply_of(AT_TORCH, late=True), "node2": reply_of(AT_TORCH, late=True)},
            "each of node1, node2 did not finish importing torch within 120 s, and the others waited for "
            "them; look at the load and the disk there, or give it more time with "
            "preflight_collective_timeout_seconds",
        ),
        (
            dict.fromkeys(("node0", "node1", "node2"), reply_of([*AT_MEET, {"step": "connect"}], late=True)),
            "each of node0, node1, node2 did not finish connecting to all others through gloo within 120 s; "
            "see reach.ephemeral and names.hostname",
        ),
        (
            {
                "node0": reply_of([*AT_GLOO, LOST]),
                "node1": reply_of(AT_GLOO, "was killed by SIGKILL"),
                "node2": reply_of([*AT_GLOO, LOST]),
            },
            "node1 failed at reducing through gloo: was killed by SIGKILL, and the others waited for it; see reach.mtu",
        ),
        (
            {"node1": reply_of([], "No module named 'encodings'")},
            "node1 failed at starting the environment's Python: No module named 'encodings', and the others waited for "
            "it; run: ansible-playbook setup.yml",
        ),
        ({"node2": reply_of(AT_MEET)}, "node2 ended at meeting the others at the head, and the others waited for it;"),
        ({"node1": NodeError("node1", "has no user thunderhead")}, "node1 has no user thunderhead"),
    ],
)
def test_who_stands_in_the_way(replies: Mapping[str, Any], expected: str) -> None:
    found = judged(3, replies)
    assert found[GLOO][0] == "failed"
    assert found[GLOO][1].startswith(expected)
    assert {found[check][0] for check in (NCCL, SLOW)} == {"skipped"}


def test_nccl() -> None:
    own = [{"backend": "nccl", "bytes": 1000000, "took": 0.0001}, {"step": "done"}]
    done = reply_of(with_gpus([*REDUCED, {"step": "nccl"}, *own]))
    found = judged(2, dict.fromkeys(("node0", "node1"), done))
    assert found[NCCL] == ("ok", "all 2 nodes reduce together; bus bandwidth by message: 1.0 MB at 10.0 GB/s")
    broken = reply_of(with_gpus([*REDUCED, {"step": "nccl"}, {"error": "DistBackendError: NCCL error: unhandled"}]))
    late = reply_of(with_gpus([*REDUCED, {"step": "nccl"}]), late=True)
    found = judged(2, {"node0": late, "node1": broken})
    assert found[GLOO][0] == "ok"
    assert found[NCCL][0] == "failed"
    assert "node1 failed at reducing through NCCL: DistBackendError: NCCL error: unhandled" in found[NCCL][1]


def test_gpus_on_some_nodes_only() -> None:
    found = judged(2, {"node0": reply_of(with_gpus(DONE))})
    assert found[NCCL] == ("skipped", "torch sees no GPU on node1")
    assert found[GLOO][0] == "ok"


LOOK = "look at the link there (ethtool, ip -s link, cable, switch port), at the load and the clock rate"


def tried(*speeds: tuple[int, float]) -> dict[str, Any]:
    """The reply of a node that has exchanged data with peers, by rank."""
    return reply_of(
        [*REDUCED, *({"backend": "gloo", "peer": peer, "speed": s} for peer, s in speeds), {"step": "done"}]
    )


def test_a_slow_node() -> None:
    replies = {f"node{rank}": tried((3, 1e6), (rank ^ 1, 1e9)) for rank in range(8)}
    found = judged(8, {**replies, "node3": tried((0, 1e6), (2, 9e5))})
    assert found[SLOW] == (
        "warning",
        f"node3 reaches 1.0 MB/s with its fastest peer, and the median of all nodes' fastest is 1.0 GB/s; {LOOK}",
    )


def test_only_the_slowest_explains_a_slow_all_reduce() -> None:
    ring = {"backend": "gloo", "bytes": 1000000, "took": 1.0}  # 1.75 MB/s
    replies = {f"node{rank}": tried((rank ^ 1, 1e9)) for rank in range(8)}
    replies |= {"node3": tried((2, 1e6)), "node4": tried((5, 1e8))}
    replies["node0"]["messages"].append(ring)
    (status, sentence) = judged(8, replies)[SLOW]
    assert status == "warning"
    assert sentence.startswith("node3 reaches 1.0 MB/s with its fastest peer, and")


def test_a_slow_pair_is_no_slow_node() -> None:
    replies = {f"node{rank}": tried((rank ^ 1, 1e9 + 1e6 * rank)) for rank in range(4)}
    found = judged(4, {**replies, "node3": tried((1, 1e6), (2, 1e9)), "node1": tried((3, 1e6), (0, 1e9), (77, 1))})
    assert found[SLOW] == (
        "ok",
        "no node is slow with all others; the slowest pair, node1 and node3, has 1.0 MB/s, and the median of all "
        "nodes' fastest is 1.0 GB/s",
    )


@pytest.mark.parametrize(
    "message",
    [
        {"step": ["x"]},
        {"step": "other"},
        {"gpus": "many"},
        {"backend": ["gloo"], "bytes": "x", "took": float("nan")},
        {"backend": "gloo", "bytes": 5, "took": -1},
        {"backend": "gloo", "peer": [1], "speed": 5},
        {"backend": "gloo", "peer": 99, "speed": 1e-300},
        {"backend": "gloo", "peer": 0, "speed": {}},
        {"error": {"a": ["\033[2J"]}},
    ],
)
def test_a_node_with_invalid_messages(message: dict[str, Any]) -> None:
    messages = json.loads(json.dumps([message, *DONE, message]))
    found = judged(3, {"node1": reply_of(messages), "node0": reply_of(messages)})
    assert set(found) == set(CHECKS)


# ----------------------------------------------------------------------------------------------------------- real nodes


def with_torch(node: LocalNode) -> LocalNode:
    """Give a node that was set up an environment with torch: this one."""
    env = node.directory / "env"
    (env / "pyvenv.cfg").write_text(Path(sys.prefix, "pyvenv.cfg").read_text())
    (env / "lib").symlink_to(Path(sys.prefix, "lib"))
    return node


def real(nodes: list[LocalNode], **options: Any) -> dict[str, Verdict]:
    settings = [node.settings() for node in nodes]
    gang = Gang(Identity("2026-11-22T17:30:00+01:00", "preflight-1", "trainer"), NodeGroup(settings, opener(nodes)))
    gang = gang.ranked(
        rank_nodes(settings, {one.host: {"address": one.address, "interface": "lo"} for one in settings})
    )
    facts = {one.host: {**WELL, "free_port": free_port()} for one in settings}
    cluster = ClusterFacts(settings, facts, options={**DEFAULTS, **options}, gang=gang)
    return {verdict.check: verdict for verdict in checks(cluster)}


def test_real_nodes(three: list[LocalNode]) -> None:
    found = real([with_torch(node) for node in three], slow_node_percent=100000)  # so that pairs are tried
    assert [found[check].status for check in (GLOO, NCCL)] == ["ok", "skipped"]
    sizes = found[GLOO].data["sizes"]
    assert [size["bytes"] for size in sizes] == [1_000, 64_000, 1_000_000, 16_000_000]
    assert all(size["bus_bytes_per_second"] > 0 for size in sizes)
    assert found[SLOW].data["best_bytes_per_second"].keys() == {"node0", "node1", "node2"}
    assert "fastest" in found[SLOW].sentence


def test_a_real_node_without_torch(nodes: list[LocalNode]) -> None:
    with_torch(nodes[0])
    found = real(nodes, collective_timeout_seconds=25)  # node0 has to be done with importing torch
    assert (found[GLOO].status, found[GLOO].sentence) == (
        "failed",
        "node1 failed at importing torch: ModuleNotFoundError: No module named 'torch', and the others waited for "
        "it; run: ansible-playbook setup.yml",
    )
