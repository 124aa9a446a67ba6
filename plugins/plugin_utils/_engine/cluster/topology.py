# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assign ranks, the head and addresses to an ordered list of hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import node_name
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


@dataclass(frozen=True)
class Node:
    """One node of a job or of the cluster.

    Attributes:
        rank: NODE_RANK, the position in inventory order among the hosts that take part.
        settings: what the inventory says.
        address: on the cluster's network.
        interface: that holds the address.
    """

    rank: int
    settings: NodeSettings
    address: str
    interface: str

    @property
    def host(self) -> str:
        """The inventory name."""
        return self.settings.host

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return node_name(self.rank, self.host)

    @property
    def file_stem(self) -> str:
        """What its files in a job's record are called, without the ending."""
        return f"rank{self.rank}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.host)}"


@dataclass(frozen=True)
class Topology:
    """The nodes in rank order; the first is the head."""

    nodes: Sequence[Node]

    @property
    def head(self) -> Node:
        """The node that holds MASTER_ADDR and MASTER_PORT."""
        return self.nodes[0]

    @property
    def world_size(self) -> int:
        """How many nodes take part."""
        return len(self.nodes)

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """The nodes as job.json and spec.json list them: rank, host and address of each."""
        return [{"rank": node.rank, "host": node.host, "address": node.address} for node in self.nodes]

    def place_of(self, node: Node) -> dict[str, Any]:
        """Return a node's rank, address and the like for its environment; see ``environment_variables.variables``."""
        return {
            "rank": node.rank,
            "world_size": self.world_size,
            "master_addr": self.head.address,
            "master_port": self.head.settings.master_port,
            "interface": node.interface,
        }


def require_hosts(hosts: Sequence[str]) -> None:
    """Raise JobError if no host takes part."""
    if not hosts:
        raise JobError(
            "no host is in group cluster; list your machines under cluster: in the inventory "
            "(inventory/sample shows how), or name another inventory with -i"
        )


def require_distinct(addresses: Mapping[str, str | None]) -> None:
    """Raise JobError if two hosts have the same address; None (not known yet) is no address."""
    owners: dict[str, str] = {}
    for host, address in addresses.items():
        if address is not None and owners.setdefault(address, host) != host:
            raise JobError(
                f"{owners[address]} and {host} have the same address {address}, but every node needs its own; "
                "fix ansible_host or cluster_address in the inventory, or remove one of them"
            )


def rank_nodes(settings: Sequence[NodeSettings], located: Mapping[str, Mapping[str, str]]) -> Topology:
    """Return the topology of the hosts in the order given.

    Args:
        settings: in inventory order, only hosts that take part: ranks are dense from 0.
        located: host name to ``address`` and ``interface`` as the node itself reported them.
    """
    require_distinct({one.host: located[one.host]["address"] for one in settings})
    return Topology(
        [
            Node(rank, one, located[one.host]["address"], located[one.host]["interface"])
            for rank, one in enumerate(settings)
        ]
    )
