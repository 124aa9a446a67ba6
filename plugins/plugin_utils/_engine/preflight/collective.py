# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *collective*: an all-reduce of all nodes works and is fast."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes, join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.try_collective import (
    AllReduceRun,
    run_all_reduce,
)

CHECKS = {
    "collective.gloo": "an all-reduce of all nodes through gloo works, as a job's user, in a job's environment",
    "collective.nccl": "the same through NCCL, where torch sees a GPU on every node",
    "collective.slow_node": "no node is much slower than the others",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "collective_timeout_seconds": {"type": "int", "default": 120},
    "slow_node_percent": {"type": "int", "default": 50},
}
EXPLAINS = 4
"""A node explains a slow all-reduce if with its fastest peer it has no more than so many times that bandwidth."""
_REMEDY = "look at the link there (ethtool, ip -s link, cable, switch port), at the load and the clock rate"


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Have all nodes reduce together, once, and judge what comes of it."""
    wanted = [check for check in CHECKS if cluster.wants(check)]
    if not wanted:
        return []
    unfit = _unfit(cluster)
    if unfit:
        return [Verdict(check, "skipped", unfit) for check in wanted]
    fraction = cluster.options["slow_node_percent"] / 100
    port = cluster.facts[cluster.topology.head.host]["free_port"]
    found = run_all_reduce(cluster.nodes, port, cluster.options["collective_timeout_seconds"], fraction)
    judges: dict[str, Callable[[], Verdict]] = {
        "collective.gloo": lambda: gloo(found),
        "collective.nccl": lambda: nccl(found),
        "collective.slow_node": lambda: slow_node(found, fraction),
    }
    return [judges[check]() for check in wanted]


def _unfit(cluster: ClusterFacts) -> str:
    """Return why there is no sense in trying, or ""."""
    if cluster.gang is None:
        return "the nodes' addresses are not known"
    if cluster.topology.world_size == 1:
        return "there is one node"
    cut = [check for check in ("reach.ephemeral", "reach.mtu") if check in cluster.failed]
    if cut:
        return f"it would hang: see {cut[0]}"
    jobs = {facts["job"]["id"]: host for host, facts in cluster.facts.items() if facts["job"]}
    if jobs:
        return f"job {join_names(list(jobs))} is running, and would be disturbed"
    broken = [
        host
        for host, facts in cluster.facts.items()
        if "problem" in facts["environment"] or "torch" in facts["environment"]["failed"]
    ]
    return f"torch does not work on {join_names(broken)}: see software" if broken else ""


def gloo(found: AllReduceRun) -> Verdict:
    """Say how fast it is, or who stood in the way."""
    obstacle = found.obstacle("nccl" if _has_gpus(found) else "done")
    if obstacle:
        steps = {host: one.step for host, one in found.outcomes.items()}
        return Verdict("collective.gloo", "failed", obstacle, {"steps": steps})
    return _fast(found, "gloo")


def nccl(found: AllReduceRun) -> Verdict:
    """Say the same of NCCL."""
    without = [host for host, one in found.outcomes.items() if not one.gpus]
    if found.obstacle("nccl"):
        return Verdict("collective.nccl", "skipped", "it did not come to that: see collective.gloo")
    if without:
        where = "any node" if len(without) == len(found.outcomes) else join_names(without)
        return Verdict("collective.nccl", "skipped", f"torch sees no GPU on {where}")
    obstacle = found.obstacle("done")
    return Verdict("collective.nccl", "failed", obstacle) if obstacle else _fast(found, "nccl")


def _has_gpus(found: AllReduceRun) -> bool:
    return all(one.gpus for one in found.outcomes.values())


def _fast(found: AllReduceRun, backend: str) -> Verdict:
    took = found.outcomes[found.topology.head.host].took.get(backend, {})
    speeds = found.bandwidths(backend)
    sizes = [
        {"bytes": size, "milliseconds": 1000 * took[size], "bus_bytes_per_second": speed}
        for size, speed in speeds.items()
    ]
    text = ", ".join(f"{format_bytes(size)} at {format_bytes(speed)}/s" for size, speed in speeds.items())
    sentence = f"all {found.topology.world_size} nodes reduce together; bus bandwidth by message: {text}"
    return Verdict(f"collective.{backend}", "ok", sentence, {"sizes": sizes})


def slow_node(found: AllReduceRun, fraction: float) -> Verdict:
    """Name the nodes that are slow with every peer; else the slowest pair, which need not be either one's fault."""
    check = "collective.slow_node"
    if found.obstacle("done"):
        return Verdict(check, "skipped", "the all-reduce did not come to its end")
    backend = "nccl" if _has_gpus(found) else "gloo"
    if found.topology.world_size == 2:
        return Verdict(check, "skipped", "with two nodes, a measurement does not show which one is slow")
    best = {host: max(one.speeds[backend].values()) for host, one in found.outcomes.items() if backend in one.speeds}
    if not best:
        return Verdict(check, "ok", "the all-reduce is as fast as pairs of nodes let expect")
    usual = median(best.values())
    reduced = max(found.bandwidths(backend).values(), default=0.0)
    limit = min(usual * fraction, EXPLAINS * reduced)
    data = {"backend": backend, "best_bytes_per_second": best, "median_bytes_per_second": usual}
    slow = {host: speed for host, speed in best.items() if speed < limit}
    others = f"the median of all nodes' fastest is {format_bytes(usual)}/s"
    if slow:
        text = join_names([f"{host} reaches {format_bytes(speed)}/s" for host, speed in slow.items()])
        sentence = f"{text} with its fastest peer, and {others}; {_REMEDY}"
        return Verdict(check, "warning", sentence, {**data, "slow": list(slow)})
    hosts = dict(enumerate(node.host for node in found.topology.nodes))
    pairs = [
        (speed, f"{host} and {hosts[rank]}")
        for host, one in found.outcomes.items()
        for rank, speed in one.speeds.get(backend, {}).items()
        if rank in hosts
    ]
    speed, names = min(pairs, default=(usual, "any"))
    sentence = f"no node is slow with all others; the slowest pair, {names}, has {format_bytes(speed)}/s, and {others}"
    return Verdict(check, "ok", sentence, {**data, "slowest_pair": names})
