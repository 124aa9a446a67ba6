# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Explain why the ranks of a job print nothing: which wait, and for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import pluralize
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import node_name
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis import parse_stacks
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
    NodeActivity,
    RankActivity,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    Reachability,
    describe_unreachable,
)

LONGEST_SENTENCE = 1500
MOST_GROUPS = 4
"""How many groups of ranks that do different things are named."""
MOST_SPANS = 10
_ALL_CONNECT = "all nodes can connect to each other"


@dataclass(frozen=True)
class Node:
    """A node of the job."""

    rank: int
    host: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return node_name(self.rank, self.host)


@dataclass(frozen=True)
class Findings:
    """What the head knows of a job that prints nothing.

    Attributes:
        hosts: the nodes in rank order.
        activities: by host, what the ranks there are doing.
        errors: by host, why that is not known, a verb phrase.
        unreached: by host, why the head has never had a connection to it, as in ``Reachability.failed``.
        ports: by host, at which those were tried.
        master_port: MASTER_PORT on the head.
    """

    hosts: Sequence[str]
    activities: Mapping[str, NodeActivity]
    errors: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    master_port: int = 0

    @property
    def nodes(self) -> list[Node]:
        """All of them, in rank order."""
        return [Node(rank, host) for rank, host in enumerate(self.hosts)]


TryConnections = Callable[[bool], "Reachability | None"]
"""Has all nodes connect to each other, and to MASTER_PORT too if it is given True; None if nobody could be asked."""


@dataclass(frozen=True)
class Verdict:
    """Why a job prints nothing.

    Attributes:
        rendezvous: some rank is in the rendezvous.
        passed: all ranks have left it behind.
        sentence: who waits, and for what.
        open: the rendezvous may complete yet: the others wait for a rank that works, or of which nothing is known.
    """

    rendezvous: bool
    passed: bool
    sentence: str
    open: bool = False


@dataclass(frozen=True)
class _Member:
    """One rank, or the launcher that has not started any."""

    node: Node
    siblings: int  # on the same node, itself among them
    activity: RankActivity


def explain(findings: Findings, try_connections: TryConnections) -> Verdict:
    """Explain why a job prints nothing. Where its ranks wait for each other, its nodes try to connect to each other."""
    nodes, activities = findings.nodes, findings.activities
    met = any(one.registered for one in activities.values())
    met = met or (findings.hosts[0] in activities and activities[findings.hosts[0]].passed)
    members = [member for node in nodes if node.host in activities for member in _members(node, activities, met)]
    met = met or any(member.activity.kind in (parse_stacks.COLLECTIVE, parse_stacks.BACKWARD) for member in members)
    present = {member.node.rank for member in members}
    silent = [node for node in nodes if node.rank not in present]
    meeting = [member for member in members if member.activity.kind == parse_stacks.RENDEZVOUS]
    working = [member for member in members if member.activity.work and not member.activity.waits] if meeting else []
    wrong = (_wrong_numbers(findings) or _of_unreached(findings)) if meeting else None
    unknown = any(node.host in findings.errors for node in silent)
    is_open = not wrong and bool(meeting) and (bool(working) or unknown)
    if is_open:
        text = _of_open(meeting, working)
    elif meeting:
        text = wrong or _of_rendezvous(findings, members, meeting, silent, met, try_connections)
        text = f"the rendezvous does not complete: {text}"
    else:
        text = _of_stall(findings, members, silent, try_connections)
    for why in dict.fromkeys(findings.errors[node.host] for node in silent if node.host in findings.errors):
        about = [node for node in silent if findings.errors.get(node.host) == why]
        text += f"; {'each of ' if len(about) > 1 else ''}{_nodes(about)} {why}"
    missing = next((host for host in findings.hosts if host in activities and activities[host].missing), None)
    if missing is not None:
        text += f"; {missing} has no {activities[missing].missing}, so run: ansible-playbook setup.yml"
    text = text if len(text) <= LONGEST_SENTENCE else f"{text[:LONGEST_SENTENCE]}…"
    return Verdict(bool(meeting), met and not meeting and not silent, text, is_open)


def _members(node: Node, activities: Mapping[str, NodeActivity], met: bool) -> list[_Member]:
    """Return what the ranks of a node are doing, by their stacks, or else by their log.

    A log says little: while it trains, Lightning prints nothing on other ranks than 0.
    """
    found = activities[node.host]
    ranks = found.ranks
    if all(one.kind == parse_stacks.UNKNOWN for one in ranks) and not met and found.waits:
        ranks = [RankActivity(0, parse_stacks.RENDEZVOUS, "in Lightning's rendezvous")]
    return [_Member(node, len(ranks), one) for one in ranks]


def _of_unreached(findings: Findings) -> str | None:
    """Return which nodes the head could never connect to: what torch sends does not arrive there either."""
    if not findings.unreached:
        return None
    head = findings.hosts[0]
    found = Reachability(findings.hosts, findings.master_port, findings.ports, {head: dict(findings.unreached)}, {}, {})
    return "; ".join(describe_unreachable(found)) or None


def _of_open(meeting: Sequence[_Member], working: Sequence[_Member]) -> str:
    """Say who waits in the rendezvous, and who works meanwhile."""
    where = " or ".join(dict.fromkeys(member.activity.description.removeprefix("in ") for member in meeting))
    waiting = f"{_who(meeting, 'waits', 'wait')} in {where}"
    if not working:
        return waiting
    doing = ", ".join(_doing(group) for group in _grouped(working))
    it = "it" if len({member.node.rank for member in working}) == 1 else "them"
    works = f"{doing}, and works" if it == "it" else f"{doing}, and they work"
    return f"{works} ({working[0].activity.work}), while {waiting} for {it}; the job goes on"


def _of_rendezvous(
    findings: Findings,
    members: Sequence[_Member],
    meeting: Sequence[_Member],
    silent: Sequence[Node],
    met: bool,
    try_connections: TryConnections,
) -> str:
    """Say why some ranks wait in the rendezvous: the first reason that is found."""
    others = [member for member in members if member.activity.kind != parse_stacks.RENDEZVOUS]
    empty = [node for node in silent if node.host not in findings.errors]
    where = " or ".join(dict.fromkeys(member.activity.description.removeprefix("in ") for member in meeting))
    if empty or (others and not met):
        unknown = {member.activity.description for member in others if member.activity.kind == parse_stacks.UNKNOWN}
        missing = [
            _doing(group, "was not seen in it, and " if group[0] in unknown else "never came to it, but ")
            for group in _grouped(others)
        ]
        if empty:
            missing.append(_empty(empty))
        return (
            f"{', '.join(missing)}; {_who(meeting, 'waits', 'wait')} in {where}; if more time is all that is needed, "
            "raise job_rendezvous_timeout_seconds"
        )
    reach = try_connections(True)
    found = describe_unreachable(reach) if reach else []
    if found:
        return "; ".join(found)
    who = _who(meeting, "waits", "wait") if others or silent else "all ranks wait"
    beyond = "".join(f", {_doing(group)}" for group in _grouped(others))
    network = f"; {_ALL_CONNECT}" if reach and not reach.unknown and len(findings.hosts) > 1 else ""
    return f"{who} in {where}{beyond}{network}{_own_numbers(members, meeting, where)}"


def _own_numbers(members: Sequence[_Member], meeting: Sequence[_Member], where: str) -> str:
    """Return what may be wrong with the numbers that a script took from elsewhere than torchrun or Lightning."""
    if "torchrun" in where:  # which is told by the job how many nodes there are
        return ""
    starters = {member.activity.starter for member in meeting}
    several = len(members) == len(meeting) > 1  # none of them is any further
    if several and starters == {"Accelerate"}:
        return (
            "; Accelerate takes its rank from RANK, which only torchrun sets, and without it every node is rank 0; run "
            "it with -e launcher=torchrun"
        )
    text = f"; the script may expect more than the {pluralize(len(members), 'rank')} that there are"
    if several and starters == {""}:
        text += ", or take its rank from RANK, which only -e launcher=torchrun sets"
    return text


def _wrong_numbers(findings: Findings) -> str | None:
    """Return in what the script's numbers, as Lightning announced them, differ from the job's."""
    activities = findings.activities
    nodes = [node for node in findings.nodes if node.host in activities]
    announced = [(node, found) for node in nodes if (found := activities[node.host].announced)]
    if not announced:
        return None
    started: dict[int, list[Node]] = {}
    for node, found in announced:
        running = len(activities[node.host].ranks)
        started.setdefault(max(len({rank for rank, _count in found}), running), []).append(node)
    if len(started) > 1:
        counts = [
            f"{_nodes(nodes)} started {pluralize(number, 'process')}" for number, nodes in sorted(started.items())
        ]
        return (
            f"{', but '.join(counts)}, and every node must start the same number; set devices in the Trainer to what "
            "all nodes have"
        )
    local = next(iter(started))
    expected = {count for _node, found in announced for _rank, count in found}
    wrong = sorted(expected - {local * len(findings.hosts)})
    if wrong:
        return (
            f"the script expects {' or '.join(map(str, wrong))} ranks, but {pluralize(len(findings.hosts), 'node')} "
            f"with {pluralize(local, 'process')} each started: num_nodes or devices in its Trainer disagrees with the "
            "job; "
            'use num_nodes=int(os.environ["NUM_NODES"])'
        )
    owners: dict[int, str] = {}
    for node, found in announced:
        for rank, _count in found:
            if (owner := owners.setdefault(rank, node.host)) != node.host:
                return (
                    f"{owner} and {node.host} both announced global rank {rank}; the script must leave "
                    "NODE_RANK as the job sets it"
                )
    return None


def _of_stall(
    findings: Findings, members: Sequence[_Member], silent: Sequence[Node], try_connections: TryConnections
) -> str:
    """Say which ranks wait, and for whom."""
    waiting = [member for member in members if member.activity.waits]
    others = [member for member in members if not member.activity.waits]
    empty = [node for node in silent if node.host not in findings.errors]
    doing = [*map(_doing, _grouped(others)), *([_empty(empty)] if empty else [])]
    groups = _grouped(waiting)
    if waiting and doing:
        places = " or ".join(description for description, _group in reversed(groups))
        late = {member.node.rank for member in others} | {node.rank for node in empty}
        it = "it" if len(late) == 1 else "them"
        return f"{', '.join(doing)} while {_who(waiting, 'waits', 'wait')} for {it} {places}"
    if doing:
        return f"no rank waits for another: {', '.join(doing)}"
    if not groups:
        return "nothing is known of any rank"
    if len(groups) > 1:
        doing = [f"{_who(group)} {description}" for description, group in groups]
        return f"the ranks wait for each other in different places: {', '.join(doing)}"
    who = _who(waiting, "waits", "wait") if silent else "all ranks wait"
    reach = try_connections(False) if len(findings.hosts) > 1 else None
    found = describe_unreachable(reach) if reach else []
    if reach and not found and not reach.unknown:
        found = [_ALL_CONNECT]
    return "; ".join([f"{who} {groups[0][0]}", *found])


# ---------------------------------------------------------------------------------------------------- descriptions


def _grouped(members: Sequence[_Member]) -> list[tuple[str, list[_Member]]]:
    """Return members that do the same together, the smallest group first: it is the odd one out."""
    groups: dict[str, list[_Member]] = {}
    for member in members:
        groups.setdefault(member.activity.description, []).append(member)
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    if len(ordered) > MOST_GROUPS:
        rest = [member for _description, group in ordered[MOST_GROUPS - 1 :] for member in group]
        ordered = [*ordered[: MOST_GROUPS - 1], ("elsewhere", rest)]
    return ordered


def _doing(group: tuple[str, Sequence[_Member]], before: str = "") -> str:
    """Return "rank 2 (c) is in load at train.py:8"."""
    description, members = group
    return f"{_who(members, f'{before}is', f'{before}are')} {description}"


def _who(members: Sequence[_Member], one: str = "", many: str = "") -> str:
    """Return "rank 2 (c)", "ranks 0-298", or which of their processes where it is not all; and the verb that fits."""
    local: dict[int, list[_Member]] = {}
    for member in members:
        local.setdefault(member.node.rank, []).append(member)
    nodes = _nodes([group[0].node for group in local.values()])
    verb = one if len(local) == 1 else many
    parts = {tuple(member.activity.local_rank for member in group) for group in local.values()}
    if any(len(group) < group[0].siblings for group in local.values()):
        ranks = [*parts.pop()] if len(parts) == 1 else []
        verb = one if len(members) == 1 else many
        if ranks:
            nodes = f"local rank{'s' if len(ranks) > 1 else ''} {_spans(ranks)} of {nodes}"
        else:
            nodes = f"{pluralize(len(members), 'process')} of {nodes}"
    return f"{nodes} {verb}" if verb else nodes


def _empty(nodes: Sequence[Node]) -> str:
    return f"{_nodes(nodes)} {'runs' if len(nodes) == 1 else 'run'} no Python process"


def _nodes(nodes: Sequence[Node]) -> str:
    return nodes[0].name if len(nodes) == 1 else f"ranks {_spans(node.rank for node in nodes)}"


def _spans(numbers: Iterable[int]) -> str:
    """Return "0-2, 5", bounded."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [
        str(low) if low == high else f"{low}, {high}" if high == low + 1 else f"{low}-{high}" for low, high in spans
    ]
    more = sum(high - low + 1 for low, high in spans[MOST_SPANS:])
    return ", ".join(texts[:MOST_SPANS]) + (f" and {more} more" if more else "")
