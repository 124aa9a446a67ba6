# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Describe what the ranks of one node are doing, short enough to be sent to the head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    escape,
    format_bytes,
    printable,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    is_count,
    is_flag,
    is_text,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis import parse_stacks
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import Process

LEAST_CPU = 0.01
"""Of a core: a rank that uses less, and no disk, stands still. One that waits uses a hundredth of this."""
LEAST_BYTES = 2**16
"""A rank that has read and written so much in that time works."""
MOST_RANKS = 1024
"""Of one node, that are described."""
LONGEST_DESCRIPTION = 400
# Lightning's (fabric/utilities/distributed.py) before it waits, from every rank, and after it, from rank 0.
_ANNOUNCED = re.compile(r"Initializing distributed: GLOBAL_RANK: (\d{1,9}), MEMBER: (\d{1,9})/(\d{1,9})")
_REGISTERED = "All distributed processes registered"
# What no script prints, but torch or Lightning, such as a warning. Lightning's children prefix nothing, torch's C++ log
# and warnings do: none of these names a cause.
NOISE = re.compile(
    r"\[?(rank\d+\]:)?\[[WIEF]\d|[WIEF]\d{4} \d\d:|\S*Warning: |\s*warnings\.warn\(|\S+\.py:\d+: |frame #\d+: "
    r"|terminate called |Exception raised from |\[rank: \d+\] "
)


class RankActivity(NamedTuple):
    """What one rank is doing, or the launcher that has not started any.

    Attributes:
        local_rank: of its node.
        kind: one of those of ``parse_stacks``.
        description: for a sentence, such as ``in all_reduce at train.py:15``.
        starter: whose code has it join the others; see ``parse_stacks.started_by``.
        work: what it used while it was measured, a noun; "" if it stood still.
    """

    local_rank: int
    kind: str
    description: str
    starter: str = ""
    work: str = ""

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks."""
        return self.kind in parse_stacks.WAITING


class NodeActivity(NamedTuple):
    """What the ranks of one node are doing.

    Attributes:
        ranks: each of them.
        announced: what Lightning printed of each before it waits: its global rank, and how many it expects.
        registered: Lightning printed that all have met.
        waits: the last line of the log is that announcement.
        passed: the log goes on after it.
        missing: where py-spy should have been, or "".
        port: a free ephemeral port; 0 if there is none.
    """

    ranks: list[RankActivity]
    announced: list[tuple[int, int]]
    registered: bool = False
    waits: bool = False
    passed: bool = False
    missing: str = ""
    port: int = 0


def describe_ranks(
    processes: Sequence[Process], log: bytes, seconds: float, missing: str = "", port: int = 0
) -> NodeActivity:
    """Return what the ranks of this node are doing.

    Args:
        processes: of the job, the oldest first.
        log: the end of the job's.
        seconds: for how long the processes' use of CPU and disk was measured; 0 if it was not.
        missing: where py-spy should have been, or "".
        port: a free ephemeral port; 0 if there is none.
    """
    members = parse_stacks.members(processes)
    used = parse_stacks.work(processes, members)
    ranks = []
    for process in members[:MOST_RANKS]:
        activity = parse_stacks.activity(process, processes)
        ranks.append(
            RankActivity(
                process.local_rank or 0,
                activity.kind,
                activity.description[:LONGEST_DESCRIPTION],
                parse_stacks.started_by(process),
                _work(*used[process.pid], seconds),
            )
        )
    lines = [printable(line) for line in log.split(b"\n")]
    printed = [line for line in lines if line.strip() and not NOISE.match(line)]
    announced = [(int(one[1]), int(one[3])) for one in filter(None, map(_ANNOUNCED.search, lines))]
    registered = any(_REGISTERED in line for line in printed)
    waits = bool(printed and _ANNOUNCED.search(printed[-1]))
    passed = not waits and (registered or any(map(_ANNOUNCED.search, printed)))
    return NodeActivity(ranks, announced[:MOST_RANKS], registered, waits, passed, missing, port)


def _work(cpu: float, transferred: int, waits_for_disk: bool, seconds: float) -> str:
    """Return what a rank used in so many seconds, if that means that it works."""
    if cpu >= LEAST_CPU * seconds > 0:
        return f"{cpu:.1f} s of CPU in {seconds:.0f} s"
    if transferred >= LEAST_BYTES:
        return f"{format_bytes(transferred)} read and written in {seconds:.0f} s"
    return "a disk that it waits for" if waits_for_disk and seconds else ""


def read_activity(value: Any) -> NodeActivity | None:
    """Return the activity that a node has sent as JSON, or None if it is none."""
    if not isinstance(value, list) or len(value) != len(NodeActivity._fields):
        return None
    ranks, announced, registered, waits, passed, missing, port = value
    flags = (registered, waits, passed)
    if not (isinstance(ranks, list) and isinstance(announced, list) and all(map(is_flag, flags)) and is_text(missing)):
        return None
    if not (
        all(map(_is_rank, ranks)) and all(map(_is_announcement, announced)) and is_count(port) and 0 <= port < 2**16
    ):
        return None
    activities = [
        RankActivity(one[0], *(escape(text)[:LONGEST_DESCRIPTION] for text in one[1:])) for one in ranks[:MOST_RANKS]
    ]
    pairs = [(one[0], one[1]) for one in announced[:MOST_RANKS]]
    return NodeActivity(activities, pairs, *flags, escape(missing), port)


def _is_rank(value: object) -> bool:
    if not isinstance(value, list) or len(value) != len(RankActivity._fields):
        return False
    return is_count(value[0]) and all(map(is_text, value[1:]))


def _is_announcement(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))
