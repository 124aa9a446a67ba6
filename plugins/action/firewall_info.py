# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up each node's active firewall and which of the cluster's rules it has."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import networks, required_spans
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.every_node_action import (
    EveryNodeAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


class ActionModule(EveryNodeAction):
    """See the module of its name for arguments and results."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "provider": {
            "type": "str",
            "choices": ["auto", "firewalld", "ufw", "iptables", "nftables", "none"],
            "default": "auto",
        },
        "peers": {"type": "list", "elements": "str", "required": True},
        "ports": {"type": "list", "elements": "str", "required": True},
    }

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what each host replies, and a message about what was chosen."""
        result = super().run(tmp, task_vars)
        return {**result, "msg": chosen(result["nodes"])}

    def request(self, host: str, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the agent is asked."""
        sources, ports = opening(tuple(arguments["peers"]), tuple(arguments["ports"]))
        return {"op": "firewall_info", "provider": arguments["provider"], "sources": sources, "ports": ports}


@functools.cache
def opening(peers: Sequence[str], ports: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the peers as networks, and the ports as spans; cached, because they are the same for all nodes.

    Raises:
        JobError: one is no address or no port.
    """
    try:
        sources = networks(peers)
        return sources, required_spans(sources, ports)
    except ValueError as error:
        raise JobError(str(error).removesuffix(".")) from None


def chosen(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was chosen, and why, one line for all nodes with the same choice; the largest group is cut short."""
    alike: dict[str, list[str]] = {}
    for host, one in nodes.items():
        alike.setdefault(escape(one["msg"]), []).append(host)
    most = max(map(len, alike.values()), default=0)
    lines = (f"{join_names(hosts, 5 if len(hosts) == most else len(hosts))}: {why}" for why, hosts in alike.items())
    return "\n".join(lines)
