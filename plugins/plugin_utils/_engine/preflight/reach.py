# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *reach*: the nodes can connect to each other, with large packets too."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    MOST_PAIRS,
    Pairs,
    Reachability,
    describe_master,
    describe_pairs,
    ports_of,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.reachability import probe_connections
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import hosts_by_value

CHECKS = {
    "reach.ephemeral": "every node connects to every other, at a port of those that torch listens at",
    "reach.master_port": "every node connects to MASTER_PORT on the head",
    "reach.mtu": "packets of full size arrive, from every node at every other; the interfaces' MTUs are the same",
    "reach.rtt": "no two nodes are much farther apart than the others",
}
OPTIONS: dict[str, dict[str, Any]] = {"rtt_max_ms": {"type": "float", "default": 5.0}}
FARTHER = 10
"""A pair of nodes is far apart if a packet takes so many times as long as between most, and longer than rtt_max_ms."""


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Have all nodes connect to all others, once, and judge what comes of it."""
    wanted = [check for check in CHECKS if cluster.wants(check)]
    if not wanted:
        return []
    if cluster.gang is None:
        return [Verdict(check, "skipped", "the nodes' addresses are not known") for check in wanted]
    ports = {host: facts["free_port"] for host, facts in cluster.facts.items()}
    reach = probe_connections(cluster.gang, ports)
    judges: dict[str, Callable[[ClusterFacts, Reachability], Verdict]] = {
        "reach.ephemeral": ephemeral,
        "reach.master_port": master_port,
        "reach.mtu": mtu,
        "reach.rtt": rtt,
    }
    return [judges[check](cluster, reach) for check in wanted]


def ephemeral(cluster: ClusterFacts, reach: Reachability) -> Verdict:
    """Name the pairs that do not connect."""
    bad = reach.pairs(small=False)
    found = [str(error) for error in reach.unknown.values()] + describe_pairs(reach, bad)
    data = {"ports": dict(reach.ports), "pairs": _as_data(bad)}
    if found:
        return Verdict("reach.ephemeral", "failed", "; ".join(found), data)
    return Verdict("reach.ephemeral", "ok", f"{_all_pairs(cluster)} ({ports_of(reach.ports.values())})", data)


def master_port(cluster: ClusterFacts, reach: Reachability) -> Verdict:
    """Name the nodes that do not reach the rendezvous."""
    head = cluster.topology.head
    data = {"failed": dict(reach.master)}
    port = f"MASTER_PORT {head.settings.master_port}"
    if reach.taken or head.host in reach.unknown:
        why = reach.taken or "it could not be asked"
        return Verdict("reach.master_port", "skipped", f"{head.host} cannot listen at {port}: {why}", data)
    found = describe_master(reach)
    if found:
        return Verdict("reach.master_port", "failed", "; ".join(found), data)
    elsewhere = [host for host in reach.master if head.host in reach.failed.get(host, {})]
    if elsewhere:
        sentence = (
            f"{join_names(elsewhere)} cannot connect to {port} on {head.host}, nor to other ports: see reach.ephemeral"
        )
        return Verdict("reach.master_port", "failed", sentence, data)
    return Verdict("reach.master_port", "ok", f"every node connects to {port} on {head.host}", data)


def mtu(cluster: ClusterFacts, reach: Reachability) -> Verdict:
    """Name the pairs between which large packets are lost; else the interfaces that differ from the others."""
    lost = reach.pairs(small=True)
    data = {"mtus": dict(reach.mtus), "pairs": _as_data(lost)}
    found = describe_pairs(reach, lost)
    if found:
        return Verdict("reach.mtu", "failed", "; ".join(found), data)
    interfaces = {node.host: node.interface for node in cluster.topology.nodes}
    if len(set(reach.mtus.values())) > 1:
        sizes = hosts_by_value({host: str(size) for host, size in reach.mtus.items()})
        sentence = (
            f"the interfaces' MTUs differ: {sizes}; TCP agrees on the smallest, but not all of NCCL's transports do: "
            f"set the same everywhere (ip link set dev {interfaces[next(iter(reach.mtus))]} mtu BYTES)"
        )
        return Verdict("reach.mtu", "warning", sentence, data)
    size = next(iter(reach.mtus.values()), None)
    return Verdict("reach.mtu", "ok", f"large packets arrive{f' (MTU {size})' if size else ''}", data)


def rtt(cluster: ClusterFacts, reach: Reachability) -> Verdict:
    """Name the pairs that are much farther apart than the others."""
    medians = [middle for middle, slowest in reach.trips.values() if slowest]
    if not medians:
        return Verdict("reach.rtt", "skipped", "no node reached another")
    usual = median(medians)
    pairs = {(host, peer): trip for host, (_middle, slow) in reach.trips.items() for peer, trip in slow.items()}
    ordered = sorted(pairs, key=lambda pair: -pairs[pair])
    worst = ordered[0]
    data = {
        "median_ms": usual / 1000,
        "worst_ms": pairs[worst] / 1000,
        "worst": list(worst),
    }
    limit = max(FARTHER * usual, 1000 * cluster.options["rtt_max_ms"])
    far = [pair for pair in ordered if pairs[pair] > limit]
    middle = f"the median is {_ms(usual)}"
    if far:
        # A pair is measured from both sides.
        different = list({frozenset(pair): pair for pair in reversed(far)}.values())[::-1]
        hosts = [host for pair in different for host in pair]
        common = [host for host in dict.fromkeys(hosts) if len(different) > 1 and hosts.count(host) == len(different)]
        texts = [f"{a} and {b} ({_ms(pairs[a, b])})" for a, b in different]
        where = f"{join_names(common)} is far from others: " if common else "far apart are "
        remedy = "look for another site, a VPN or a busy link on the way, or leave nodes out with --limit"
        sentence = f"{where}{join_names(texts, MOST_PAIRS)}, and {middle}; {remedy}"
        return Verdict("reach.rtt", "warning", sentence, {**data, "far": [list(pair) for pair in different]})
    return Verdict("reach.rtt", "ok", f"{middle}, the most {_ms(pairs[worst])} ({worst[0]} to {worst[1]})", data)


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.2g} ms"


def _all_pairs(cluster: ClusterFacts) -> str:
    count = cluster.topology.world_size
    return (
        f"all {pluralize(count * (count - 1), 'ordered pair')} of nodes connect" if count > 1 else "there is one node"
    )


def _as_data(pairs: Pairs) -> list[dict[str, str]]:
    return [{"from": host, "to": peer, "why": why} for (host, peer), why in pairs.items()]
