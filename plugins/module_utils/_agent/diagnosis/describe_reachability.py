# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Describe which nodes cannot connect to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    NO_ANSWER,
    NO_ROUTE,
    ONLY_SMALL,
    REFUSED,
    is_text,
)

MOST_PAIRS = 5
LONGEST_REASON = 200

_VERBS = {
    NO_ANSWER: "gets no answer from",
    REFUSED: "is refused by",
    NO_ROUTE: "has no route to",
    ONLY_SMALL: "gets only small packets through to",
}
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
        hosts: the nodes in rank order, the head first.
        master_port: MASTER_PORT on the head.
        ports: by host, at which it listened.
        failed: by host, the hosts it could not connect to, and why.
        master: by host, why it could not connect to MASTER_PORT on the head.
        unknown: hosts that could not be asked, or have no port, and why.
        at_master: whether the head listened at MASTER_PORT for that; if not, its rank 0 must have.
        taken: why the head could not, or "".
        trips: by host, from there to a peer and back, in microseconds: the median, and {peer: time} of the slowest.
        mtus: by host, its interface's MTU in bytes.
    """

    hosts: Sequence[str]
    master_port: int
    ports: Mapping[str, int]
    failed: dict[str, dict[str, str]]
    master: dict[str, str]
    unknown: dict[str, object]
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


def read_connections(value: object, hosts: Sequence[str]) -> tuple[dict[str, str], str] | None:
    """Return whom a node could not connect to, and why, and why not to MASTER_PORT ("": it could, or did not try).

    Args:
        value: what the node has sent as JSON.
        hosts: of the job.

    Returns:
        None if it is nothing of that kind.
    """
    if not isinstance(value, dict):
        return None
    failed, master = value.get("failed"), value.get("master") or ""
    if not (isinstance(failed, dict) and is_text(master) and all(map(is_text, failed.values()))):
        return None
    return {host: _reason(why) for host, why in failed.items() if host in hosts}, _reason(master)


def _reason(why: str) -> str:
    return escape(why)[:LONGEST_REASON]


def ports_of(ports: Iterable[int]) -> str:
    """Return "port 40001", or "ports 33001 to 59873" if these are several."""
    first, *others = sorted(set(ports))
    return f"ports {first} to {others[-1]}" if others else f"port {first}"


def describe_unreachable(reach: Reachability) -> list[str]:
    """Return in a few sentences who cannot connect to whom, or sends what does not arrive; none if all is well."""
    return [
        *describe_pairs(reach, reach.pairs(small=False)),
        *describe_pairs(reach, reach.pairs(small=True)),
        *describe_master(reach),
    ]


def describe_pairs(reach: Reachability, pairs: Pairs) -> list[str]:
    """Return in a few sentences which pairs these are, one for each remedy."""
    hosts = [host for host in reach.hosts if host not in reach.unknown]  # those did not listen
    found: Phrases = {}
    if len(hosts) > 2:
        every = len(reach.failed) * (len(hosts) - 1)
        if every and len(pairs) == every and len(reach.failed) == len(hosts):
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


def describe_master(reach: Reachability) -> list[str]:
    """Return what is wrong with MASTER_PORT, for nodes that reach the head's other ports."""
    head = reach.hosts[0]
    failed = {host: why for host, why in reach.master.items() if head not in reach.failed.get(host, {})}
    if not failed or reach.taken or (reach.at_master and head in reach.unknown):
        return []
    port = f"MASTER_PORT {reach.master_port}"
    if not reach.at_master and all(why == REFUSED for why in failed.values()):
        return [f"nothing listens at {port} on {head} for {join_names(list(failed))}: its rank 0 is not there"]
    return [f"{join_names(list(failed))} cannot connect to {port} on {head}: {_remedy(failed.values())}"]


def _verb(reasons: Iterable[str]) -> str:
    return _VERBS.get(Counter(reasons).most_common(1)[0][0], "cannot connect to")


def _remedy(reasons: Iterable[str]) -> str:
    reason = Counter(reasons).most_common(1)[0][0]
    return _REMEDIES.get(reason, reason)
