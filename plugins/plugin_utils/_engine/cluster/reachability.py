# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have all nodes of a job connect to each other, and describe which cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    NO_ANSWER,
    NO_ROUTE,
    ONLY_SMALL,
    REFUSED,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

PROBE_SECONDS = 5.0
"""How long a small job's nodes try to reach each other."""
SECONDS_PER_NODE = 0.05
"""Besides: with hundreds of nodes, the last one is asked some time after the first."""
ANSWER_SECONDS = 20
"""What asking may take besides."""
MOST_PAIRS = 5

_VERBS = {
    NO_ANSWER: "gets no answer from",
    REFUSED: "is refused by",
    NO_ROUTE: "has no route to",
    ONLY_SMALL: "gets only small packets through to",
}
_NO_PORT = (
    "has no port left of those for outgoing connections; end what holds them there, or widen "
    "net.ipv4.ip_local_port_range"
)
_SETUP = "run: ansible-playbook setup.yml"
_REMEDIES = {
    NO_ANSWER: f"a firewall drops it; {_SETUP}",
    REFUSED: f"a firewall rejects it; {_SETUP}",
    NO_ROUTE: f"a firewall rejects it; {_SETUP}",
    ONLY_SMALL: (
        "something on the way carries less than the interfaces' MTU and does not report it; find out how much with "
        "ping -M do -s BYTES, and set that MTU on the nodes' interfaces, or repair that there"
    ),
}

Pair = tuple[str, str]
Pairs = dict[Pair, str]
"""Who does not reach whom, and why."""
Phrases = dict[str, list[tuple[str, list[Pair]]]]
"""By remedy, the phrases that need it, and the pairs of each."""


@dataclass(frozen=True)
class Reachability:
    """Which nodes can connect to which, as they found.

    Attributes:
        ports: by host, at which it listened.
        failed: by host, the hosts it could not connect to, and why.
        master: by host, why it could not connect to MASTER_PORT on the head.
        unknown: hosts that could not be asked, or have no port.
        at_master: whether the head listened at MASTER_PORT for that; if not, its rank 0 must have.
        taken: why the head could not, or "".
        trips: by host, from there to a peer and back, in microseconds: the median, and {peer: time} of the slowest.
        mtus: by host, its interface's MTU in bytes.
    """

    ports: Mapping[str, int]
    failed: dict[str, dict[str, str]]
    master: dict[str, str]
    unknown: dict[str, NodeError]
    at_master: bool = False
    taken: str = ""
    trips: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)
    mtus: dict[str, int] = field(default_factory=dict)

    def pairs(self, small: bool) -> Pairs:
        """Return who does not reach whom: not at all, or (``small``) only with small packets.

        A node that could not be asked did not listen either.
        """
        return {
            (host, peer): why
            for host, failed in self.failed.items()
            for peer, why in failed.items()
            if peer in self.ports and peer not in self.unknown and (why == ONLY_SMALL) == small
        }


def probe_connections(gang: Gang, ports: Mapping[str, int], master: bool, at_master: bool = False) -> Reachability:
    """Have all nodes connect to all others, each at a port of its own: of hundreds, one has any given port in use.

    Args:
        gang: whose topology is known.
        ports: by host, where it can listen, as far as known; 0 for nowhere.
        master: try MASTER_PORT on the head too.
        at_master: have the head listen there for that; if not, rank 0 must be listening.
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
            master=lambda host: target if master and (at_master or host != head.host) else None,
            head=head.host if at_master else None,
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
        listening,
        {host: reply["failed"] for host, reply in found.items()},
        {host: reply["master"] for host, reply in found.items() if reply["master"] not in (None, ONLY_SMALL)},
        errors,
        at_master,
        found.get(head.host, {}).get("taken") or "",
        {host: tuple(reply["trips"]) for host, reply in found.items()},
        {host: reply["mtu"] for host, reply in found.items() if reply["mtu"]},
    )


def ports_of(ports: Iterable[int]) -> str:
    """Return "port 40001", or "ports 33001 to 59873" if these are several."""
    first, *others = sorted(set(ports))
    return f"ports {first} to {others[-1]}" if others else f"port {first}"


def describe_unreachable(topology: Topology, reach: Reachability) -> list[str]:
    """Return in a few sentences who cannot connect to whom, or sends what does not arrive; none if all is well."""
    return [
        *describe_pairs(topology, reach, reach.pairs(small=False)),
        *describe_pairs(topology, reach, reach.pairs(small=True)),
        *describe_master(topology, reach),
    ]


def describe_pairs(topology: Topology, reach: Reachability, pairs: Pairs) -> list[str]:
    """Return in a few sentences which pairs these are, one for each remedy."""
    hosts = [node.host for node in topology.nodes if node.host not in reach.unknown]  # those did not listen
    found: Phrases = {}
    if len(hosts) > 2:
        every = len(reach.failed) * (len(hosts) - 1)
        if every and len(pairs) == every:
            found[_remedy(pairs.values())] = [(f"every node {_verb(pairs.values())} every other", [*pairs])]
            pairs = {}
        unreached = [
            peer
            for peer in hosts
            if len(askers := reach.failed.keys() - {peer}) > 1 and all((host, peer) in pairs for host in askers)
        ]
        groups = [(peer, {(host, peer) for host in hosts}) for peer in unreached]
        _sum_up(found, pairs, groups, "every other node {verb} {names}")
        pairs = {pair: why for pair, why in pairs.items() if pair[1] not in unreached}
        left = [host for host in hosts if host not in unreached]
        unconnected = [
            host
            for host in reach.failed
            if len(targets := [peer for peer in left if peer != host]) > 1
            and all((host, peer) in pairs for peer in targets)
        ]
        groups = [(host, {(host, peer) for peer in hosts}) for host in unconnected]
        _sum_up(found, pairs, groups, "{names} {verb} every other")
        pairs = {pair: why for pair, why in pairs.items() if pair[0] not in unconnected}
    if pairs:
        sentences = [f"{host} {_verb([why])} {peer}" for (host, peer), why in list(pairs.items())[:MOST_PAIRS]]
        more = f" and {len(pairs) - MOST_PAIRS} more pairs of nodes" if len(pairs) > MOST_PAIRS else ""
        found.setdefault(_remedy(pairs.values()), []).append((", ".join(sentences) + more, [*pairs]))
    return [
        f"{', '.join(phrase for phrase, _about in phrases)} "
        f"({ports_of(reach.ports[peer] for _phrase, about in phrases for _host, peer in about)}): {remedy}"
        for remedy, phrases in found.items()
    ]


def _sum_up(
    found: Phrases,
    pairs: Mapping[Pair, str],
    groups: Iterable[tuple[str, set[Pair]]],
    form: str,
) -> None:
    """Add one phrase for all nodes with the same reason."""
    named: dict[tuple[str, str], dict[str, list[Pair]]] = {}
    for name, members in groups:
        about = [pair for pair in members if pair in pairs]
        reasons = [pairs[pair] for pair in about]
        named.setdefault((_verb(reasons), _remedy(reasons)), {})[name] = about
    for (verb, remedy), names in named.items():
        phrase = form.format(verb=verb, names=join_names(list(names)))
        found.setdefault(remedy, []).append((phrase, [pair for about in names.values() for pair in about]))


def describe_master(topology: Topology, reach: Reachability) -> list[str]:
    """Return what is wrong with MASTER_PORT, for nodes that reach the head's other ports."""
    head = topology.head
    failed = {host: why for host, why in reach.master.items() if head.host not in reach.failed.get(host, {})}
    if not failed or reach.taken or (reach.at_master and head.host in reach.unknown):
        return []
    port = f"MASTER_PORT {head.settings.master_port}"
    if not reach.at_master and all(why == REFUSED for why in failed.values()):
        return [f"nothing listens at {port} on {head.host} for {join_names(list(failed))}: its rank 0 is not there"]
    return [f"{join_names(list(failed))} cannot connect to {port} on {head.host}: {_remedy(failed.values())}"]


def _verb(reasons: Iterable[str]) -> str:
    return _VERBS.get(Counter(reasons).most_common(1)[0][0], "cannot connect to")


def _remedy(reasons: Iterable[str]) -> str:
    reason = Counter(reasons).most_common(1)[0][0]
    return _REMEDIES.get(reason, reason)
