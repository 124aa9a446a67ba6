# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have all nodes of a job connect to each other."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import ONLY_SMALL
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    Reachability,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

PROBE_SECONDS = 5.0
"""How long a small job's nodes try to reach each other."""
SECONDS_PER_NODE = 0.05
"""Besides: with hundreds of nodes, the last one is asked some time after the first."""
ANSWER_SECONDS = 20
"""What asking may take besides."""
_NO_PORT = (
    "has no port left of those for outgoing connections; end what holds them there, or widen "
    "net.ipv4.ip_local_port_range"
)


def probe_connections(gang: Gang, ports: Mapping[str, int]) -> Reachability:
    """Have all nodes connect to all others, each at a port of its own: of hundreds, one has any given port in use.

    All but the head connect to MASTER_PORT too, at which the head listens meanwhile.

    Args:
        gang: whose topology is known.
        ports: by host, where it can listen, as far as known; 0 for nowhere.
    """
    topology = gang.topology
    seconds = PROBE_SECONDS + SECONDS_PER_NODE * topology.world_size
    nodes = {node.host: node for node in topology.nodes}
    head = topology.head
    target = [head.address, head.settings.master_port]

    def ask(ports: Mapping[str, int]) -> tuple[Replies, dict[str, NodeError]]:
        return gang.ask(
            "try_connections",
            seconds + ANSWER_SECONDS,
            hosts=ports,
            name=lambda host: host,
            address=lambda host: nodes[host].address,
            interface=lambda host: nodes[host].interface,
            port=lambda host: ports[host],
            peers={host: [nodes[host].address, port] for host, port in ports.items()},
            seconds=seconds,
            master=target,
            head=head.host,
        )

    listening = {host: ports[host] for host in nodes if ports.get(host)}
    replies, errors = ask(listening)
    others = {host: error.facts["taken"] for host, error in errors.items() if error.facts.get("taken")}
    if others:
        listening |= others
        replies, errors = ask(listening)
    errors |= {host: NodeError(host, _NO_PORT) for host in nodes if host not in listening}
    found = {host: reply for host, (reply, _payload) in replies.items()}
    return Reachability(
        list(nodes),
        head.settings.master_port,
        listening,
        {host: reply["failed"] for host, reply in found.items()},
        {host: reply["master"] for host, reply in found.items() if reply["master"] not in (None, ONLY_SMALL)},
        {**errors},
        True,
        found.get(head.host, {}).get("taken") or "",
        {host: tuple(reply["trips"]) for host, reply in found.items()},
        {host: reply["mtu"] for host, reply in found.items() if reply["mtu"]},
    )
