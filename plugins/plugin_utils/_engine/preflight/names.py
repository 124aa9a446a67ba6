# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *names*: host names resolve to the right addresses."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import SETUP, Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.inventory import is_loopback
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import (
    all_nodes,
    describe_hosts,
    hosts_by_value,
)

CHECKS = {
    "names.hostname": "each node's own name is not a loopback address, unless GLOO_SOCKET_IFNAME pins the interface",
    "names.interface": "the interfaces that GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name are there, with an address",
    "names.master": "MASTER_ADDR of `node.env` is the head's address, on every node",
    "names.family": "all addresses are IPv4, or all are IPv6",
}


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Judge the names."""
    return make_checks(
        cluster,
        {
            "names.hostname": hostname,
            "names.interface": interface,
            "names.master": master,
            "names.family": family,
        },
    )


def hostname(cluster: ClusterFacts) -> Verdict:
    """Look for nodes that would announce a loopback address to their peers, as gloo does with what their name gives."""
    open_ones, pinned = {}, {}
    for host, facts in cluster.facts.items():
        if is_loopback(facts["address"].get("address", "")):
            continue  # all its peers are on the same machine
        loops = [found for found in facts["resolved"] if is_loopback(found)]
        if not facts["resolved"]:
            text = "finds no address for its own name"
        elif loops:
            text = f"resolves its own name to {loops[0]}"
        else:
            continue
        is_pinned = (facts["node_env"] or {}).get("GLOO_SOCKET_IFNAME")
        if not is_pinned:
            open_ones[host] = text
        elif loops:
            pinned[host] = text
    if open_ones:
        sentence = (
            f"{describe_hosts(open_ones)}, so that gloo announces no address that its peers can reach, and hangs; pin "
            f"the interface in node.env ({SETUP}), or take the name off the 127.0.x.x line of /etc/hosts there"
        )
        return Verdict("names.hostname", "failed", sentence, {"hosts": list(open_ones)})
    if pinned:
        sentence = (
            f"{describe_hosts(pinned)}; jobs are safe from it, because GLOO_SOCKET_IFNAME pins the interface, but a "
            "script started by hand would hang; take the name off the 127.0.x.x line of /etc/hosts there"
        )
        return Verdict("names.hostname", "warning", sentence, {"hosts": list(pinned)})
    return Verdict("names.hostname", "ok", "no node announces a loopback address to others")


def interface(cluster: ClusterFacts) -> Verdict:
    """See that what is pinned is there. It may well be another network than the cluster's, such as InfiniBand."""
    wrong = {}
    for host, facts in cluster.facts.items():
        there = {name for name, _address, _loopback in facts["addresses"]}
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            named = (facts["node_env"] or {}).get(variable, "")
            if named and not _matches(named, there, by_prefix=variable.startswith("NCCL")):
                wrong[host] = f"has {variable}={named}, but no such interface with an address"
    if wrong:
        sentence = f"{describe_hosts(wrong)}; correct job_env in the inventory if it is set there, and {SETUP}"
        return Verdict("names.interface", "failed", sentence, {"hosts": list(wrong)})
    return Verdict("names.interface", "ok", f"the interfaces for gloo and NCCL are there on {all_nodes(cluster.facts)}")


def _matches(named: str, there: set[str], by_prefix: bool) -> bool:
    """Whether one of the interfaces named is there; NCCL takes prefixes, exact names after "=", what not after "^"."""
    exact = named.startswith("=") or not by_prefix
    wanted = named.lstrip("=^").split(",")
    found = {name for name in there for one in wanted if (name == one if exact else name.startswith(one))}
    return bool(there - found if named.startswith("^") else found)


def master(cluster: ClusterFacts) -> Verdict:
    """Compare where MASTER_ADDR leads each node."""
    seen = {
        host: " ".join(sorted(facts["master"])) or f"nothing (MASTER_ADDR is {facts['node_env'].get('MASTER_ADDR')})"
        for host, facts in cluster.facts.items()
        if facts["node_env"] is not None
    }
    if not seen:
        return Verdict("names.master", "skipped", f"no node has a node.env; {SETUP}")
    head = cluster.members[0] if cluster.members else ""
    expected = cluster.facts[head]["address"].get("address") if head in cluster.facts else None
    wrong = [host for host, found in seen.items() if expected and expected not in found.split()]
    if len(set(seen.values())) > 1 or wrong:
        should = f"; it should be {expected}, the head's, everywhere" if expected else ""
        sentence = f"MASTER_ADDR leads to {hosts_by_value(seen)}{should}: node.env is of an earlier inventory; {SETUP}"
        return Verdict("names.master", "failed", sentence, {"hosts": wrong})
    return Verdict("names.master", "ok", f"MASTER_ADDR is {next(iter(seen.values()))} on {all_nodes(seen)}")


def family(cluster: ClusterFacts) -> Verdict:
    """Look for a mix of IPv4 and IPv6, which gloo does not do."""
    families = {
        host: "IPv6" if ":" in facts["address"]["address"] else "IPv4"
        for host, facts in cluster.facts.items()
        if "address" in facts["address"]
    }
    kinds = set(families.values())
    if len(kinds) > 1:
        fewer = min(kinds, key=lambda kind: sum(found == kind for found in families.values()))
        few = [host for host, found in families.items() if found == fewer]
        sentence = (
            f"the nodes' addresses are {hosts_by_value(families)}, and gloo does not mix them; set cluster_address of "
            f"{join_names(few)} in the inventory to one of the others' kind"
        )
        return Verdict("names.family", "failed", sentence)
    return Verdict("names.family", "ok", f"all addresses are {next(iter(kinds), 'unknown')}")
