# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Assign ranks, the head and addresses to an ordered list of hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import node_name
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


@dataclass(frozen=True)
class Node:
    """One node of a job or of the cluster.

    Attributes:
        rank: the position in inventory order among the hosts that take part, spares last: NODE_RANK of one that trains.
        settings: what the inventory says.
        address: on the cluster's network.
        interface: that holds the address.
        is_spare: it waits to take the place of another, or another has taken its own.
    """

    rank: int
    settings: NodeSettings
    address: str
    interface: str
    is_spare: bool = False

    @property
    def host(self) -> str:
        """The inventory name."""
        return self.settings.host

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return node_name(self.node_rank, self.host)

    @property
    def node_rank(self) -> int | None:
        """NODE_RANK; None for a spare."""
        return None if self.is_spare else self.rank

    @property
    def file_stem(self) -> str:
        """What its files in a job's record are called, without the ending."""
        place = "spare" if self.is_spare else f"rank{self.rank}"
        return f"{place}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.host)}"


@dataclass(frozen=True)
class Topology:
    """The nodes in rank order, spares last; the first is the head."""

    nodes: Sequence[Node]

    @property
    def head(self) -> Node:
        """The node that holds MASTER_ADDR and MASTER_PORT."""
        return self.nodes[0]

    @property
    def taking_part(self) -> list[Node]:
        """The nodes that are no spares."""
        return [node for node in self.nodes if not node.is_spare]

    @property
    def world_size(self) -> int:
        """How many nodes take part."""
        return len(self.taking_part)

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """The nodes as job.json lists them: host and address of each, and its rank, None for a spare."""
        return [{"rank": node.node_rank, "host": node.host, "address": node.address} for node in self.nodes]

    def of_attempt(self, roster: Sequence[int]) -> Topology:
        """Return the same nodes with the ranks that they have in an attempt.

        Args:
            roster: the first attempt's rank of each that takes part, in the order of NODE_RANK; empty for all as they
                were then.
        """
        if not roster:
            return self
        ranks = {before: rank for rank, before in enumerate(roster)}
        nodes = [
            replace(node, rank=ranks.get(node.rank, node.rank), is_spare=node.rank not in ranks) for node in self.nodes
        ]
        return Topology(sorted(nodes, key=lambda node: (node.is_spare, node.rank)))

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


def rank_nodes(settings: Sequence[NodeSettings], located: Mapping[str, Mapping[str, str]], spares: int = 0) -> Topology:
    """Return the topology of the hosts in the order given.

    Args:
        settings: in inventory order, only hosts that take part: ranks are dense from 0.
        located: host name to ``address`` and ``interface`` as the node itself reported them.
        spares: how many of the last ones are spares.
    """
    require_distinct({one.host: located[one.host]["address"] for one in settings})
    world_size = len(settings) - spares
    return Topology(
        [
            Node(rank, one, located[one.host]["address"], located[one.host]["interface"], rank >= world_size)
            for rank, one in enumerate(settings)
        ]
    )
