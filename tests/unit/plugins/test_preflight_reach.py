# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
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
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.reach import CHECKS, OPTIONS, checks
from local_nodes import LocalNode, free_port, opener
from stacks_of_jobs import FakeGang, topology_of, unreachable

DEFAULTS = {name: spec["default"] for name, spec in OPTIONS.items()}
SETUP = "run: ansible-playbook setup.yml"


def cluster_of(count: int, replies: Mapping[str, Any], **more: Any) -> ClusterFacts:
    """A cluster of which each node has found all well but for ``replies``: by host what its agent says besides."""
    topology = topology_of(count)
    hosts = [node.host for node in topology.nodes]

    def answer(host: str, request: Mapping[str, Any]) -> Any:
        said = replies.get(host, {})
        trips = [100, dict.fromkeys([peer for peer in hosts if peer != host][:5], 120)]
        met = {"failed": {}, "master": None, "taken": None, "trips": trips, "mtu": 1500}
        return said if isinstance(said, Exception) else ({**met, **said}, b"")

    gang: Any = FakeGang(topology, try_connections=answer)
    facts = {host: {"free_port": 47011} for host in hosts}
    return ClusterFacts([node.settings for node in topology.nodes], facts, options=DEFAULTS, gang=gang, **more)


def judged(count: int, replies: Mapping[str, Any], check: str) -> Verdict:
    return next(verdict for verdict in checks(cluster_of(count, replies)) if verdict.check == check)


def test_a_healthy_cluster() -> None:
    found = checks(cluster_of(16, {}))
    assert [(verdict.check, verdict.status, verdict.sentence) for verdict in found] == [
        ("reach.ephemeral", "ok", "all 240 ordered pairs of nodes connect (port 47011)"),
        ("reach.master_port", "ok", "every node connects to MASTER_PORT 29500 on node0"),
        ("reach.mtu", "ok", "large packets arrive (MTU 1500)"),
        ("reach.rtt", "ok", "the median is 0.1 ms, the most 0.12 ms (node0 to node1)"),
    ]
    assert [verdict.check for verdict in found] == list(CHECKS)


def test_checks_that_are_not_wanted() -> None:
    cluster = cluster_of(2, {}, skipped=["reach"])
    assert checks(cluster) == []
    assert cluster.gang.asked == []  # type: ignore[union-attr]
    assert [one.check for one in checks(cluster_of(2, {}, skipped=["reach.rtt", "reach.mtu"]))] == list(CHECKS)[:2]


def test_addresses_that_are_not_known() -> None:
    found = checks(ClusterFacts([], {}, options=DEFAULTS))
    assert {(verdict.status, verdict.sentence) for verdict in found} == {
        ("skipped", "the nodes' addresses are not known")
    }


def test_a_cut_in_one_direction() -> None:
    verdict = judged(4, {"node2": {"failed": {"node1": "no answer"}}}, "reach.ephemeral")
    assert verdict == Verdict(
        "reach.ephemeral",
        "failed",
        f"node2 gets no answer from node1 (port 47011): a firewall drops it; {SETUP}",
        {
            "ports": {f"node{rank}": 47011 for rank in range(4)},
            "pairs": [{"from": "node2", "to": "node1", "why": "no answer"}],
        },
    )


def test_a_node_that_does_not_answer() -> None:
    verdict = judged(3, {"node1": unreachable("node1"), "node0": {"failed": {"node1": "refused"}}}, "reach.ephemeral")
    assert (verdict.status, verdict.sentence) == ("failed", "node1 is unreachable: Connection timed out")


def test_a_node_that_has_no_port_left() -> None:
    cluster = cluster_of(3, {})
    facts = {**cluster.facts, "node1": {"free_port": 0}}
    verdict = checks(dataclasses.replace(cluster, facts=facts))[0]
    expected = (
        "node1 has no port left of those for outgoing connections; end what holds them there, or widen "
        "net.ipv4.ip_local_port_range"
    )
    assert (verdict.status, verdict.sentence) == ("failed", expected)


def test_master_port() -> None:
    for why, words in (("no answer", "drops"), ("refused", "rejects"), ("no route", "rejects")):
        verdict = judged(3, {"node1": {"master": why}, "node2": {"master": why}}, "reach.master_port")
        expected = f"node1, node2 cannot connect to MASTER_PORT 29500 on node0: a firewall {words} it; {SETUP}"
        assert (verdict.status, verdict.sentence) == ("failed", expected)
        assert verdict.data == {"failed": {"node1": why, "node2": why}}


def test_a_head_whose_every_port_is_closed() -> None:
    cut = {"failed": {"node0": "no answer"}, "master": "no answer"}
    verdict = judged(2, {"node1": cut}, "reach.master_port")
    expected = "node1 cannot connect to MASTER_PORT 29500 on node0, nor to other ports: see reach.ephemeral"
    assert (verdict.status, verdict.sentence) == ("failed", expected)


def test_a_head_that_cannot_listen() -> None:
    taken = {"node0": {"taken": "Address already in use"}, "node1": {"master": "answered by another program"}}
    verdict = judged(2, taken, "reach.master_port")
    expected = "node0 cannot listen at MASTER_PORT 29500: Address already in use"
    assert (verdict.status, verdict.sentence) == ("skipped", expected)


def test_large_packets_that_are_lost() -> None:
    lost = {"node2": {"failed": {"node0": "only small packets"}, "master": "only small packets"}}
    verdict = judged(3, lost, "reach.mtu")
    assert verdict.status == "failed"
    assert verdict.sentence.startswith("node2 gets only small packets through to node0 (port 47011): something on")
    assert {judged(3, lost, check).status for check in ("reach.ephemeral", "reach.master_port")} == {"ok"}


def test_mtus_that_differ() -> None:
    verdict = judged(3, {"node2": {"mtu": 9000}}, "reach.mtu")
    assert verdict.status == "warning"
    assert verdict.sentence == (
        "the interfaces' MTUs differ: 1500 (node0, node1), 9000 (node2); TCP agrees on the smallest, but not all of "
        "NCCL's transports do: set the same everywhere (ip link set dev eth0 mtu BYTES)"
    )
    assert verdict.data["mtus"] == {"node0": 1500, "node1": 1500, "node2": 9000}


REMEDY = "look for another site, a VPN or a busy link on the way, or leave nodes out with --limit"


@pytest.mark.parametrize(
    ("trips", "expected"),
    [
        # of one pair, from both sides
        (
            {"node0": [100, {"node1": 30000}], "node1": [100, {"node0": 31000}]},
            f"far apart are node1 and node0 (31 ms), and the median is 0.1 ms; {REMEDY}",
        ),
        (
            {"node2": [30000, {"node0": 30000, "node1": 32000}]},
            f"node2 is far from others: node2 and node1 (32 ms), node2 and node0 (30 ms), and the median is 0.1 ms; "
            f"{REMEDY}",
        ),
    ],
)
def test_nodes_that_are_far_apart(trips: dict[str, Any], expected: str) -> None:
    verdict = judged(4, {host: {"trips": said} for host, said in trips.items()}, "reach.rtt")
    assert (verdict.status, verdict.sentence) == ("warning", expected)


@pytest.mark.parametrize("trips", [[100, {"node0": 4000}], [900, {"node0": 4000}]])
def test_a_busy_moment_is_no_distance(trips: list[Any]) -> None:
    assert judged(4, {"node1": {"trips": trips}}, "reach.rtt").status == "ok"


def test_real_nodes(three: list[LocalNode]) -> None:
    settings = [node.settings() for node in three]
    gang = Gang(Identity("2026-11-22T17:30:00+01:00", "preflight-1", "trainer"), NodeGroup(settings, opener(three)))
    gang = gang.ranked(
        rank_nodes(settings, {one.host: {"address": one.address, "interface": "lo"} for one in settings})
    )
    facts = {one.host: {"free_port": free_port()} for one in settings}
    found = checks(ClusterFacts(settings, facts, options=DEFAULTS, gang=gang))
    assert {verdict.check: verdict.status for verdict in found} == dict.fromkeys(CHECKS, "ok"), found


def test_one_real_node(tmp_path: Path) -> None:
    node = LocalNode(tmp_path / "node0").set_up()
    gang = Gang(
        Identity("2026-11-22T17:30:00+01:00", "preflight-1", "trainer"), NodeGroup([node.settings()], opener([node]))
    )
    gang = gang.ranked(rank_nodes([node.settings()], {"node0": {"address": node.address, "interface": "lo"}}))
    facts = {"node0": {"free_port": free_port()}}
    found = checks(ClusterFacts([node.settings()], facts, options=DEFAULTS, gang=gang))
    assert [verdict.status for verdict in found] == ["ok", "ok", "ok", "skipped"]
    assert found[0].sentence.startswith("there is one node")
