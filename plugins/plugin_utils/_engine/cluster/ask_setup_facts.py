# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask each node once for what setup has to know, and rank them; change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import (
    rank_nodes,
    require_distinct,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import hosts_by_value
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

TIMEOUT_SECONDS = 60


def inspect_cluster(cluster: NodeGroup, taking_part: Sequence[str]) -> dict[str, Any]:
    """Return the cluster's topology and what the roles need to know of each node.

    Args:
        cluster: all its hosts, in inventory order.
        taking_part: the hosts of the play. The others belong to the cluster too (ranks, firewall), but are asked only
            for an address that the inventory does not give: one that is down must not keep these from being set up.

    Returns:
        world_size, head, master_addr, master_port, addresses (in rank order), on_loopback (whether all that take part
        meet on one machine's loopback interface), peers (what connections between nodes may come from: all addresses on
        the interfaces of those), warnings (what a user should know, a sentence each), and nodes: each host that takes
        part to its place (see ``Topology.place_of``), address, directory, user, port_range (first and last ephemeral
        port), firewalls (of firewalld and ufw, those that are active) and job (the id of the job that holds it, or "").

    Raises:
        JobError: a node could not be looked at, two have the same folder, or the inventory contradicts itself or one.
    """
    settings = cluster.settings
    require_distinct({one.host: one.address for one in settings})

    def ask(one: NodeSettings) -> dict[str, Any]:
        return cluster.open_channel(one.host).call(
            {
                "op": "setup_facts",
                "directory": one.directory,
                "address": one.address,
                "user": one.user,
                "master_port": one.master_port if one is settings[0] else None,
            }
        )[0]

    asked = {one.host: one for one in settings if one.host in taking_part or one.address is None}
    seen, errors = fan_out(asked, ask, TIMEOUT_SECONDS)
    if errors:
        raise join_errors(errors.values(), "Nothing was changed on any node.")
    _require_own_folders(settings, seen)
    from_inventory = {
        one.host: {"address": one.address, "interface": "", "addresses": [one.address]}
        for one in settings
        if one.address
    }
    located = {**from_inventory, **seen}
    topology = rank_nodes(settings, located)
    nodes = [node for node in topology.nodes if node.host in taking_part]
    return {
        "warnings": [escape(warning) for warning in _warnings(seen)],
        "world_size": topology.world_size,
        "head": topology.head.host,
        "master_addr": topology.head.address,
        "master_port": topology.head.settings.master_port,
        "addresses": [node.address for node in topology.nodes],
        "on_loopback": {node.interface for node in nodes} == {"lo"},
        "peers": [address for node in topology.nodes for address in located[node.host]["addresses"]],
        "nodes": {
            node.host: {
                "place": topology.place_of(node),
                "address": node.address,
                "directory": node.settings.directory,
                "user": node.settings.user,
                "port_range": seen[node.host]["port_range"],
                "firewalls": seen[node.host]["firewalls"],
                "job": escape((seen[node.host]["job"] or {"id": ""})["id"]),
            }
            for node in nodes
        },
    }


def _warnings(seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    sessions = [f"{host} {one['session']}" for host, one in seen.items() if one["session"]]
    uids, _hosts = other_uids(seen)
    return [*sessions, uids] if uids else sessions


def _require_own_folders(settings: Sequence[NodeSettings], seen: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise JobError if two nodes have the same cluster directory, on one machine or on a disk that they share."""
    owners: dict[str, NodeSettings] = {}
    for one in settings:
        if one.host not in seen:
            continue
        other = owners.setdefault(seen[one.host]["folder"], one)
        if other is not one:
            raise JobError(
                f"{other.host} and {one.host} have the same folder as their cluster_dir, {escape(one.directory)}, "
                "because they are the same machine or share that disk, but each needs its own; set cluster_dir in the "
                "inventory to a folder on a local disk, or to one per host: "
                f"{escape(one.directory)}/{{{{ inventory_hostname }}}}. Nothing was changed on any node"
            )


def other_uids(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
    """Look for a disk that nodes share and on which their jobs' account has different numbers.

    Args:
        nodes: host name to uid and network_disks, as the agent's ``preflight_facts`` and ``setup_facts`` reply.

    Returns:
        What to tell the user, and the uids of the hosts with that disk; "" and no host if there is none.
    """
    disks: dict[str, dict[str, int]] = {}
    for host, node in nodes.items():
        for disk in node["network_disks"] if node["uid"] is not None else ():
            disks.setdefault(disk, {})[host] = node["uid"]
    for disk, uids in disks.items():
        if len(set(uids.values())) > 1:
            return (
                "the account that jobs run as has uid "
                f"{hosts_by_value({host: str(uid) for host, uid in uids.items()})}, and these nodes share a disk "
                f"({disk}): what one of them writes there, the others may not change; give it the same uid everywhere "
                "(usermod --uid), or set job_user in the inventory to an account that has one"
            ), uids
    return "", {}
