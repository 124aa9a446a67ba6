# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *inventory*: the nodes are as the inventory has them."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.ask_setup_facts import other_uids
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import SETUP, Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import all_nodes, describe_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

CHECKS = {
    "inventory.group": "group `cluster` has hosts, and their variables can be used",
    "inventory.reachable": "every host answers, and has a Python for the agent",
    "inventory.duplicates": "no two hosts have the same address",
    "inventory.machines": "no two hosts have the same `cluster_dir`, on one machine or on a disk that they share",
    "inventory.accounts": "the account that jobs run as has the same uid on nodes that share a disk",
    "inventory.sessions": "jobs outlive the connection that started them",
    "inventory.address": "each node holds its address on an interface, and its peers can use it",
    "inventory.ranks": "`node.env` on each node has the rank and the number of nodes that the inventory gives it now",
    "inventory.master_port": "MASTER_PORT is free on the head, and no outgoing connection can take it",
    "inventory.jobs": "whether a job runs, which explains what is in use; that is no defect",
}


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Judge what could be asked; who did not answer was judged before."""
    return make_checks(
        cluster,
        {
            "inventory.duplicates": duplicates,
            "inventory.machines": machines,
            "inventory.accounts": accounts,
            "inventory.sessions": sessions,
            "inventory.address": address,
            "inventory.ranks": ranks,
            "inventory.master_port": master_port,
            "inventory.jobs": jobs,
        },
    )


def reachable(errors: Mapping[str, NodeError], asked: int) -> Verdict:
    """Say who did not answer; the texts are the channel's, with the remedy where there is one."""
    if not errors:
        return Verdict("inventory.reachable", "ok", f"{pluralize(asked, 'host')} answered")
    texts = join_names([str(error) for error in errors.values()])
    return Verdict(
        "inventory.reachable",
        "failed",
        f"{texts}; see that `ansible -m ping` works for each, or leave hosts out with --limit",
        {"hosts": list(errors)},
    )


def duplicates(cluster: ClusterFacts) -> Verdict:
    """Find two hosts with one address, in the inventory or as the nodes report them."""
    held = {host: facts["address"].get("address") for host, facts in cluster.facts.items()}
    owners: dict[str, list[str]] = {}
    for one in cluster.settings:
        if found := one.address or held.get(one.host):
            owners.setdefault(found, []).append(one.host)
    shared = [f"{join_names(hosts)} have the same address {found}" for found, hosts in owners.items() if len(hosts) > 1]
    if shared:
        sentence = (
            f"{'; '.join(shared[:3])}, but every node needs its own; fix ansible_host or cluster_address in the "
            "inventory, or remove one of them"
        )
        return Verdict("inventory.duplicates", "failed", sentence)
    return Verdict("inventory.duplicates", "ok", "each host has an address of its own")


def machines(cluster: ClusterFacts) -> Verdict:
    """Look for one machine under two names, and for machines with one folder.

    Two nodes on one machine may be meant, as in inventory/local: then each has a folder of its own. The same folder
    twice is one node with two names.
    """
    names: dict[str, list[str]] = {}
    machine = {host: tuple(facts["machine"]) for host, facts in cluster.facts.items()}
    for host, facts in cluster.facts.items():
        names.setdefault(facts["folder"], []).append(host)
    several = [hosts for hosts in names.values() if len(hosts) > 1]
    same = [join_names(hosts) for hosts in several if len({machine[host] for host in hosts}) == 1]
    sharing = [join_names(hosts) for hosts in several if len({machine[host] for host in hosts}) > 1]
    if sharing:
        sentence = (
            f"{' and '.join(sharing[:3])} have the same cluster_dir, on a disk that they share, and a node's holds one "
            "job at a time; set cluster_dir in the inventory to a folder on a local disk, or to one per host that ends "
            "with /{{ inventory_hostname }}"
        )
        return Verdict("inventory.machines", "failed", sentence)
    if same:
        sentence = (
            f"{' and '.join(same[:3])} are the same machine under several names; remove all but one from the "
            "inventory; if several nodes on one machine are meant, give each its own cluster_address and cluster_dir"
        )
        return Verdict("inventory.machines", "failed", sentence)
    distinct = len(set(machine.values()))
    shared = f" on {pluralize(distinct, 'machine')}, each with a cluster_dir of its own"
    where = ", each a machine of its own" if distinct == len(names) else shared
    return Verdict("inventory.machines", "ok", f"{pluralize(len(names), 'node')}{where}")


def accounts(cluster: ClusterFacts) -> Verdict:
    """See that what one node's job writes to a disk, another's may change."""
    sentence, uids = other_uids(cluster.facts)
    if sentence:
        return Verdict("inventory.accounts", "warning", sentence, {"uids": uids})
    return Verdict("inventory.accounts", "ok", "no disk is shared by accounts with different uids")


def sessions(cluster: ClusterFacts) -> Verdict:
    """See that no node ends a job together with the connection."""
    wrong = {host: facts["session"] for host, facts in cluster.facts.items() if facts["session"]}
    if wrong:
        return Verdict("inventory.sessions", "warning", describe_hosts(wrong), {"hosts": list(wrong)})
    return Verdict("inventory.sessions", "ok", f"jobs outlive the connection on {all_nodes(cluster.facts)}")


def address(cluster: ClusterFacts) -> Verdict:
    """See that every node holds its address; and that it is not loopback where the nodes are several machines."""
    found = {host: facts["address"] for host, facts in cluster.facts.items()}
    wrong = {host: one["problem"] for host, one in found.items() if "problem" in one}
    if wrong:
        return Verdict("inventory.address", "failed", describe_hosts(wrong), {"hosts": list(wrong)})
    loopback = [host for host, one in found.items() if is_loopback(one["address"])]
    networks = {tuple(facts["machine"]) for facts in cluster.facts.values()}
    if loopback and len(networks) > 1:
        sentence = (
            f"{describe_hosts(dict.fromkeys(loopback, 'has a loopback address, which other machines cannot reach'))}; "
            "set cluster_address in the inventory to the one that its peers reach"
        )
        return Verdict("inventory.address", "failed", sentence, {"hosts": loopback})
    return Verdict("inventory.address", "ok", f"{all_nodes(cluster.facts)} hold the address that the peers know")


def is_loopback(text: str) -> bool:
    """Whether an address never leaves its machine."""
    return text == "::1" or text.startswith("127.")


def ranks(cluster: ClusterFacts) -> Verdict:
    """Compare what setup wrote with the inventory now. A run writes its own, but the firewall is setup's."""
    old = {}
    for host, facts in cluster.facts.items():
        known = facts["node_env"]
        if known is None:
            continue  # never set up, which is software.environment's to say
        found = (known.get("NODE_RANK"), known.get("WORLD_SIZE"))
        if host in cluster.members and found != (str(cluster.members.index(host)), str(len(cluster.members))):
            old[host] = f"was set up as rank {found[0]} of {found[1]}"
    if old:
        sentence = (
            f"{describe_hosts(old)}, but the inventory has {pluralize(len(cluster.members), 'host')} now, or in "
            f"another order: node.env and the firewalls are of an earlier one; {SETUP}"
        )
        return Verdict("inventory.ranks", "failed", sentence, {"hosts": list(old)})
    return Verdict("inventory.ranks", "ok", f"ranks 0 to {len(cluster.settings) - 1} in inventory order")


def master_port(cluster: ClusterFacts) -> Verdict:
    """See that rank 0 could listen."""
    head = cluster.settings[0]
    if head.host not in cluster.facts:
        return Verdict("inventory.master_port", "skipped", f"the head, {head.host}, did not answer")
    facts = cluster.facts[head.host]
    found, port = facts["master_port"], f"port {head.master_port} on {head.host}"
    if not found:
        return Verdict("inventory.master_port", "ok", f"{port} is free")
    if found["by_job"]:
        return Verdict("inventory.master_port", "ok", f"{port} is job {facts['job']['id']}'s")
    return Verdict("inventory.master_port", "failed", f"{head.host} {found['problem']}")


def jobs(cluster: ClusterFacts) -> Verdict:
    """Name the jobs that run."""
    running = {host: facts["job"] for host, facts in cluster.facts.items() if facts["job"]}
    if not running:
        return Verdict("inventory.jobs", "ok", "no job runs")
    texts = {host: f"runs job {job['id']} of {job['user']} since {job['start']}" for host, job in running.items()}
    return Verdict("inventory.jobs", "ok", f"{describe_hosts(texts)}; what is in use may be its", {"jobs": running})
