# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""One supervisor's decisions, with the others played by a test; the simulator plays many against each other."""

from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member

MEMBERS = [Member(f"n{rank}", f"198.18.0.{rank}", 40000) for rank in range(2)]
TIMEOUT, GRACE = 6.0, 10.0


def head(**options: Any) -> GangMember:
    """Return the head of two, to which the other is connected."""
    one = GangMember(0, 2, TIMEOUT, 0.0, grace_seconds=GRACE, **options)
    one.start(MEMBERS, 0.0)
    one.connected(1, 0.0)
    one.received(1, report(), 0.0)
    return one


def report(**changes: Any) -> dict[str, Any]:
    return {"kind": "report", "term": 1, "attempt": 1, "started": True, "state": "running", **changes}


@pytest.mark.parametrize(
    ("retries", "verdict", "fewest", "most"),
    [(0, "rank 0 (n0) failed", 3, 5), (3, "", 3, 5), (3, "rank 0 (n0) failed", TIMEOUT + GRACE, TIMEOUT + GRACE + 2)],
)
def test_a_rank_that_cannot_end_does_not_hold_the_other_node(
    retries: int, verdict: str, fewest: float, most: float
) -> None:
    """As where a process hangs in a system call; its supervisor goes on saying that it runs."""
    one = head(retries=retries)
    one.end(verdict)
    one.script_ended("stopped", "", 0.0)
    now = 0.0
    while not one.over:
        now += 0.5
        assert now < most
        one.received(1, report(verdict=verdict), now)
        one.tick(now)
    assert now >= fewest


def test_a_head_whose_rank_cannot_end_does_not_hold_the_other_node() -> None:
    one = GangMember(1, 2, TIMEOUT, 0.0, retries=3, return_seconds=300, grace_seconds=GRACE)
    one.start(MEMBERS, 0.0)
    one.connected(0, 0.0)
    alive = {"kind": "alive", "term": 1, "states": {}}
    one.received(0, {**alive, "kind": "verdict", "verdict": "rank 1 (n1) was killed by SIGKILL"}, 1.0)
    one.script_ended("failed", "rank 1 (n1) was killed by SIGKILL", 1.0, has_fault=True)
    now = 1.0
    while not one.over:
        now += 0.5
        assert now < TIMEOUT + GRACE + 3
        one.received(0, alive, now)
        one.tick(now)
    assert now > TIMEOUT + GRACE


def test_a_member_that_stands_for_election_waits_for_the_head_all_the_same() -> None:
    one = GangMember(2, 3, TIMEOUT, 0.0, retries=3, return_seconds=60, grace_seconds=GRACE)
    one.start([*MEMBERS, Member("n2", "198.18.0.2", 40000)], 0.0)
    one.connected(0, 0.0)
    one.received(0, {"kind": "verdict", "term": 1, "verdict": "rank 1 (n1) was killed by SIGKILL"}, 1.0)
    one.script_ended("stopped", "", 1.0)
    one.received(0, {"kind": "alive", "term": 1, "states": {"0": "stopped"}}, 1.5)
    one.disconnected(0, 2.0)
    roles, now = set(), 2.0
    while not one.over:
        now += 0.5
        assert now < TIMEOUT + 60 + 5
        one.tick(now)
        roles.add(one.role)
    assert now > TIMEOUT + 60 and roles == {"member", "candidate"}


def test_a_node_that_is_back_after_long_has_time_to_end() -> None:
    one = head(retries=3, return_seconds=300)
    now = 0.0
    while now < 100:
        now += 0.5
        if one.verdict is not None and not one.has_ended:
            one.script_ended("stopped", "", now)
        one.tick(now)
        for task in one.tasks:
            one.task_done({**task, "result": {"found": ["a.ckpt", 5], "refusal": ""}})
        one.tasks = []
    assert one.verdict == "the node of rank 1 (n1) sent no heartbeat for 6 s" and not one.over
    one.connected(1, now)
    for _half in range(10):
        now += 0.5
        one.received(1, report(), now)
        one.tick(now)
    assert (one.attempt, one.over) == (1, False)
    one.received(1, report(state="stopped", verdict=one.verdict), now)
    one.tick(now + 0.5)
    assert one.attempt == 2


def finding(one: GangMember, now: float, **result: Any) -> None:
    """Have the head's inspector answer what it is asked."""
    one.tick(now)
    (task,) = one.tasks
    one.tasks = []
    assert task["task"] == "find"
    one.task_done({**task, "result": result})
    one.tick(now)


def killed(now: float = 1.0, **options: Any) -> GangMember:
    """Return a head both of whose ranks have ended, because the other's was killed."""
    one = head(retries=3, **options)
    one.received(1, report(state="failed", why="rank 1 (n1) was killed by SIGKILL", fault=True), now)
    one.script_ended("stopped", "", now)
    return one


def notices(one: GangMember) -> list[str]:
    summary = one.summary()
    assert summary
    return list(summary["notices"])


def test_an_inspector_that_is_busy_is_asked_again_and_one_that_has_ended_is_not() -> None:
    one = killed()
    finding(one, 1.0, error="cannot look: its inspector is at another task", is_busy=True)
    assert (one.tasks, notices(one)) == ([], [])
    finding(one, 3.5, error="cannot look: its inspector has ended")
    (sentence,) = notices(one)
    assert sentence == (
        "attempt 1 ended: rank 1 (n1) was killed by SIGKILL; the job is not tried again: the search for its checkpoint "
        "failed: cannot look: its inspector has ended"
    )
    one.tick(4.0)
    assert one.over


def test_who_connects_when_the_next_attempt_has_to_end_already_has_no_part_in_it() -> None:
    """Else the head would wait for it for ever."""
    one = killed()
    finding(one, 1.0, found=["a.ckpt", 5], refusal="")
    other = GangMember(1, 2, TIMEOUT, 0.0, retries=3)
    other.start(MEMBERS, 0.0)
    other.connected(0, 0.0)
    other.script_ended("failed", "rank 1 (n1) was killed by SIGKILL", 1.0)
    one.received(1, report(state="failed", fault=True), 2.0)
    one.tick(2.5)
    assert (one.attempt, one.checkpoint, one.has_ended) == (2, "a.ckpt", False)
    one.disconnected(1, 2.5)
    one.script_ended("failed", "rank 0 (n0) did not start", 2.6)
    one.outbox = []
    one.connected(1, 3.0)
    ((_rank, lead),) = one.outbox
    other.outbox = []
    other.received(0, lead, 3.0)
    assert (other.attempt, other.has_ended, other.verdict) == (2, True, "rank 0 (n0) did not start")
    for _rank, message in other.outbox:
        one.received(1, message, 3.0)
    one.tick(3.1)
    assert one.over
