# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detect that a job prints nothing any more, and explain why."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.reachability import (
    describe_unreachable,
    probe_connections,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import call_stacks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.call_stacks import Activity, Process
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.explain_failure import is_noise
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import format_bytes, pluralize

GATHER_SECONDS = 30
"""What it may take to ask all nodes for their stacks; on a node it is a second, besides what follows."""
WORK_SECONDS = 10
"""For how long the work of a rank that others wait for is measured."""
LEAST_CPU = 0.01
"""Of a core: a rank that uses less, and no disk, stands still. One that waits uses a hundredth of this."""
LEAST_BYTES = 2**16
"""A rank that has read and written so much in that time works."""
LEFT_ALONE_SECONDS = 20
"""The cause of a silence of this length is searched for once ranks have ended: a rendezvous cannot complete then."""
LONGEST_SENTENCE = 1500
MOST_GROUPS = 4
"""How many groups of ranks that do different things are named."""
MOST_SPANS = 10
# Lightning's (fabric/utilities/distributed.py) before it waits, from every rank, and after it, from rank 0.
_ANNOUNCED = re.compile(r"Initializing distributed: GLOBAL_RANK: (\d+), MEMBER: (\d+)/(\d+)")
_REGISTERED = "All distributed processes registered"
_ALL_CONNECT = "all nodes can connect to each other"


# ------------------------------------------------------------------------------------------------------------- noticing


@dataclass(frozen=True)
class Silence:
    """A job has printed nothing for too long.

    Attributes:
        seconds: for how long.
        stall: for the time that the user gave for a running job.
        rendezvous: for the time that the ranks may take to meet at the start, or while some have ended.
        ended: how many ranks have.
    """

    seconds: float
    stall: bool
    rendezvous: bool
    ended: int = 0


class StallDetector:
    """Notices when no rank prints anything, and none ends."""

    def __init__(
        self,
        stall_timeout_seconds: float | None,
        rendezvous_timeout_seconds: float | None,
        clock: Callable[[], float] = time.monotonic,
        age_seconds: float = 0.0,
    ) -> None:
        """Count the start as the first output.

        Args:
            stall_timeout_seconds: a silence of this length is reported once; 0 or None: never.
            rendezvous_timeout_seconds: the same while the ranks may still be about to meet; 0 or None: never. It is
                reported again when the job is twice as old as it was then: ranks may come late, and print nothing.
            clock: seconds.
            age_seconds: how old the job is already.
        """
        self._stall = stall_timeout_seconds or float("inf")
        self._rendezvous = rendezvous_timeout_seconds or float("inf")
        self._left_alone = LEFT_ALONE_SECONDS if rendezvous_timeout_seconds else float("inf")
        self._clock = clock
        self._last_output = clock()
        self._began = self._last_output - age_seconds
        self._known: tuple[int, int] | None = None
        self._reported = False
        self._reported_ended = 0
        self._report_again_at = 0.0  # age of the job

    def check(self, written: Mapping[str, int], ended: int) -> Silence | None:
        """Return a silence that was not reported before, or None.

        Args:
            written: bytes that each rank has printed so far.
            ended: how many ranks have ended.
        """
        now = self._clock()
        known = (sum(written.values()), ended)
        if known != self._known:
            self._known, self._last_output, self._reported = known, now, False
        silent = now - self._last_output
        stall = silent >= self._stall and not self._reported
        rendezvous = silent >= self._rendezvous and now - self._began >= self._report_again_at
        if ended and silent >= min(self._left_alone, self._rendezvous) and ended != self._reported_ended:
            rendezvous, self._reported_ended = True, ended
        self._reported = self._reported or stall
        if rendezvous:
            self._report_again_at = 2 * (now - self._began)
        return Silence(silent, stall, rendezvous, ended) if stall or rendezvous else None

    def past_rendezvous(self) -> None:
        """Report no rendezvous any more: all ranks have met."""
        self._rendezvous = float("inf")


def describe_progress(lines: Sequence[str]) -> str:
    """Return how far a rank has come by its log, a verb phrase.

    Args:
        lines: the last ones, printable.
    """
    printed = [line.strip() for line in lines if line.strip() and not is_noise(line)]
    if not printed:
        return "has printed nothing"
    announced = _ANNOUNCED.search(printed[-1])
    if announced:
        return f"is waiting in the rendezvous (MEMBER: {announced[2]}/{announced[3]})"
    last = printed[-1] if len(printed[-1]) <= 100 else f"{printed[-1][:100]}…"
    met = any(map(_ANNOUNCED.search, printed)) or any(_REGISTERED in line for line in printed)
    return f"has passed the rendezvous, and printed last: {last}" if met else f"has printed last: {last}"


# ------------------------------------------------------------------------------------------------------------ gathering


@dataclass
class Stacks:
    """What all processes of a job are doing.

    Attributes:
        folder: where it lies as text, a file for each node; None if it could not be written.
        processes: by host.
        errors: by host, why nothing is known of it, a verb phrase.
        missing: by host, where py-spy should have been.
        ports: by host, a free ephemeral port.
        seconds: for how long the processes' use of CPU and disk was measured; 0 if it was not.
    """

    folder: Path | None
    processes: dict[str, list[Process]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def gather_stacks(gang: Gang, folder: Path, timeout_seconds: float = GATHER_SECONDS, seconds: float = 0) -> Stacks:
    """Ask all nodes at once what the job's processes are doing, and write it down.

    Args:
        gang: the job's nodes.
        folder: for a file ``rank<k>-<host>.txt`` each, which replaces an earlier one.
        timeout_seconds: a node without an answer after this long is one of which nothing is known.
        seconds: for how long to measure the processes' use of CPU and disk, besides.
    """
    replies, errors = gang.ask("call_stacks", timeout_seconds + seconds, seconds=seconds)
    found = Stacks(folder, errors={host: str(error).removeprefix(f"{host} ") for host, error in errors.items()})
    for host, (reply, payload) in replies.items():
        found.processes[host] = call_stacks.parse(reply, payload)
        found.ports[host] = reply["free_port"]
        found.seconds = max(found.seconds, reply["seconds"]) if seconds else 0.0
        if reply["missing"]:
            found.missing[host] = reply["missing"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for node in gang.topology.nodes:
            texts = [process.text for process in found.processes.get(node.host, [])]
            texts = texts or [found.errors.get(node.host, "runs no process of the job") + "\n"]
            _write(folder / f"{node.file_stem}.txt", "\n".join(texts))
    except OSError:  # a full disk here: what is known is reported all the same
        found.folder = None
    return found


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)


# ----------------------------------------------------------------------------------------------------------- explaining


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
class StallReport:
    """What was found of a job that prints nothing.

    Attributes:
        sentence: for how long, and why.
        hopeless: its ranks wait in a rendezvous that cannot complete.
    """

    sentence: str
    hopeless: bool


@dataclass(frozen=True)
class _Member:
    """One rank, or the launcher that has not started any."""

    node: Node
    local_rank: int
    siblings: int  # on the same node, itself among them
    activity: Activity
    starter: str = ""  # whose code has it join the others; see ``call_stacks.started_by``
    work: str = ""  # what it used while it was measured, a noun; "" if it stood still


@dataclass(frozen=True)
class _Announcement:
    """What Lightning printed for one rank, from the line above."""

    global_rank: int
    members: int


def explain(topology: Topology, stacks: Stacks, logs: Mapping[str, RankLog], gang: Gang | None) -> Verdict:
    """Explain why a job prints nothing. Where its ranks wait for each other, its nodes try to connect to each other.

    Args:
        topology: the job's nodes.
        stacks: from ``gather_stacks``.
        logs: each host's.
        gang: to ask the nodes; None asks no node.
    """
    tails = {node.host: logs[node.host].tail() for node in topology.nodes}
    met = any(_REGISTERED in line for tail in tails.values() for line in tail) or "has passed" in describe_progress(
        tails[topology.head.host]
    )
    members = [member for node in topology.nodes for member in _members(node, stacks, tails[node.host], met)]
    met = met or any(member.activity.kind in (call_stacks.COLLECTIVE, call_stacks.BACKWARD) for member in members)
    present = {member.node.rank for member in members}
    silent = [node for node in topology.nodes if node.rank not in present]
    meeting = [member for member in members if member.activity.kind == call_stacks.RENDEZVOUS]
    working = [member for member in members if member.work and not member.activity.waits] if meeting else []
    wrong = _wrong_numbers(topology, stacks, tails) if meeting else None
    unknown = any(node.host in stacks.errors for node in silent)
    is_open = not wrong and bool(meeting) and (bool(working) or unknown)
    if is_open:
        text = _of_open(meeting, working)
    elif meeting:
        text = wrong or _of_rendezvous(topology, stacks, members, meeting, silent, met, gang)
        text = f"the rendezvous does not complete: {text}"
    else:
        text = _of_stall(topology, stacks, members, silent, gang)
    for why in dict.fromkeys(stacks.errors[node.host] for node in silent if node.host in stacks.errors):
        nodes = [node for node in silent if stacks.errors.get(node.host) == why]
        text += f"; {'each of ' if len(nodes) > 1 else ''}{_nodes(nodes)} {why}"
    if stacks.missing:
        host, path = next(iter(stacks.missing.items()))
        text += f"; {host} has no {path}, so run: ansible-playbook setup.yml"
    text = text if len(text) <= LONGEST_SENTENCE else f"{text[:LONGEST_SENTENCE]}…"
    if stacks.folder:
        text += f"; what every rank is doing: {stacks.folder}"
    return Verdict(bool(meeting), met and not meeting and not silent, text, is_open)


def _members(node: Node, stacks: Stacks, tail: Sequence[str], met: bool) -> list[_Member]:
    """Return what the ranks of a node are doing, by their stacks, or else by their log.

    A log says little: while it trains, Lightning prints nothing on other ranks than 0.
    """
    processes = stacks.processes.get(node.host, [])
    found = call_stacks.members(processes)
    activities = [call_stacks.activity(process, processes) for process in found]
    if (
        all(one.kind == call_stacks.UNKNOWN for one in activities)
        and not met
        and "waiting in the rend" in describe_progress(tail)
    ):
        return [_Member(node, 0, 1, Activity(call_stacks.RENDEZVOUS, "in Lightning's rendezvous"))]
    used = call_stacks.work(processes, found)
    return [
        _Member(
            node,
            process.local_rank or 0,
            len(found),
            one,
            call_stacks.started_by(process),
            _work(*used[process.pid], stacks.seconds),
        )
        for process, one in zip(found, activities, strict=True)
    ]


def _work(cpu: float, transferred: int, waits_for_disk: bool, seconds: float) -> str:
    """Return what a rank used in so many seconds, if that means that it works."""
    if cpu >= LEAST_CPU * seconds > 0:
        return f"{cpu:.1f} s of CPU in {seconds:.0f} s"
    if transferred >= LEAST_BYTES:
        return f"{format_bytes(transferred)} read and written in {seconds:.0f} s"
    return "a disk that it waits for" if waits_for_disk and seconds else ""


def _of_open(meeting: Sequence[_Member], working: Sequence[_Member]) -> str:
    """Say who waits in the rendezvous, and who works meanwhile."""
    where = " or ".join(dict.fromkeys(member.activity.description.removeprefix("in ") for member in meeting))
    waiting = f"{_who(meeting, 'waits', 'wait')} in {where}"
    if not working:
        return waiting
    doing = ", ".join(_doing(group) for group in _grouped(working))
    it = "it" if len({member.node.rank for member in working}) == 1 else "them"
    works = f"{doing}, and works" if it == "it" else f"{doing}, and they work"
    return f"{works} ({working[0].work}), while {waiting} for {it}; the job goes on"


def _of_rendezvous(
    topology: Topology,
    stacks: Stacks,
    members: Sequence[_Member],
    meeting: Sequence[_Member],
    silent: Sequence[Node],
    met: bool,
    gang: Gang | None,
) -> str:
    """Say why some ranks wait in the rendezvous: the first reason that is found."""
    others = [member for member in members if member.activity.kind != call_stacks.RENDEZVOUS]
    empty = [node for node in silent if node.host not in stacks.errors]
    where = " or ".join(dict.fromkeys(member.activity.description.removeprefix("in ") for member in meeting))
    if empty or (others and not met):
        missing = [_doing(group, "never came to it, but ") for group in _grouped(others)]
        if empty:
            missing.append(_empty(empty))
        return (
            f"{', '.join(missing)}; {_who(meeting, 'waits', 'wait')} in {where}; if more time is all that is needed, "
            "raise job_rendezvous_timeout_seconds"
        )
    reach = probe_connections(gang, stacks.ports, master=True) if gang else None
    found = describe_unreachable(topology, reach) if reach else []
    if found:
        return "; ".join(found)
    who = _who(meeting, "waits", "wait") if others or silent else "all ranks wait"
    beyond = "".join(f", {_doing(group)}" for group in _grouped(others))
    network = f"; {_ALL_CONNECT}" if reach and not reach.unknown else ""
    return f"{who} in {where}{beyond}{network}{_own_numbers(members, meeting, where)}"


def _own_numbers(members: Sequence[_Member], meeting: Sequence[_Member], where: str) -> str:
    """Return what may be wrong with the numbers that a script took from elsewhere than torchrun or Lightning."""
    if "torchrun" in where:  # which is told by the job how many nodes there are
        return ""
    starters = {member.starter for member in meeting}
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


def _wrong_numbers(topology: Topology, stacks: Stacks, tails: Mapping[str, Sequence[str]]) -> str | None:
    """Return in what the script's numbers, as Lightning announced them, differ from the job's."""
    announced = [(node, found) for node in topology.nodes if (found := _announcements(tails[node.host]))]
    if not announced:
        return None
    started: dict[int, list[Node]] = {}
    for node, found in announced:
        running = len(call_stacks.members(stacks.processes.get(node.host, [])))
        started.setdefault(max(len({one.global_rank for one in found}), running), []).append(node)
    if len(started) > 1:
        counts = [
            f"{_nodes(nodes)} started {pluralize(number, 'process')}" for number, nodes in sorted(started.items())
        ]
        return (
            f"{', but '.join(counts)}, and every node must start the same number; set devices in the Trainer to what "
            "all nodes have"
        )
    local = next(iter(started))
    expected = {one.members for _node, found in announced for one in found}
    wrong = sorted(expected - {local * topology.world_size})
    if wrong:
        return (
            f"the script expects {' or '.join(map(str, wrong))} ranks, but {pluralize(topology.world_size, 'node')} "
            f"with {pluralize(local, 'process')} each started: num_nodes or devices in its Trainer disagrees with the "
            "job; "
            'use num_nodes=int(os.environ["NUM_NODES"])'
        )
    owners: dict[int, str] = {}
    for node, found in announced:
        for one in found:
            if (owner := owners.setdefault(one.global_rank, node.host)) != node.host:
                return (
                    f"{owner} and {node.host} both announced global rank {one.global_rank}; the script must leave "
                    "NODE_RANK as the job sets it"
                )
    return None


def _announcements(lines: Sequence[str]) -> list[_Announcement]:
    found = filter(None, map(_ANNOUNCED.search, lines))
    return [_Announcement(int(one[1]), int(one[3])) for one in found]


def _of_stall(
    topology: Topology, stacks: Stacks, members: Sequence[_Member], silent: Sequence[Node], gang: Gang | None
) -> str:
    """Say which ranks wait, and for whom."""
    waiting = [member for member in members if member.activity.waits]
    others = [member for member in members if not member.activity.waits]
    empty = [node for node in silent if node.host not in stacks.errors]
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
    reach = probe_connections(gang, stacks.ports, master=False) if gang and topology.world_size > 1 else None
    found = describe_unreachable(topology, reach) if reach else []
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
    parts = {tuple(member.local_rank for member in group) for group in local.values()}
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
