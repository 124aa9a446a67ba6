# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""One supervisor's decisions, with the others played by a test; the simulator plays many against each other."""

from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import REFUSED
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


def pass_time(one: GangMember, now: float, until: float, alive: list[int]) -> None:
    """Tick until then; these others are there, and report of the attempt that they have been led to."""
    while now < until:
        now += 0.5
        for rank in alive:
            state = "running" if rank in one.roster else "spare"
            one.received(rank, report(state=state, attempt=one.attempt), now)
        if one.verdict is not None and not one.has_ended:
            one.script_ended("stopped", "", now)
        one.tick(now)
        for task in one.tasks:
            one.task_done({**task, "result": {"found": ["a.ckpt", 5, 1.0], "refusal": ""}})
        one.tasks = []


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
    one, now = head(retries=3, return_seconds=300), 100.0
    pass_time(one, 0.0, now, [])
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
    finding(one, 1.0, found=["a.ckpt", 5, 1.0], refusal="")
    other = GangMember(1, 2, TIMEOUT, 0.0, retries=3)
    other.start(MEMBERS, 0.0)
    other.connected(0, 0.0)
    other.script_ended("failed", "rank 1 (n1) was killed by SIGKILL", 1.0)
    one.received(1, report(state="failed", fault=True), 2.0)
    one.tick(2.5)
    other.tick(2.5)
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


# --------------------------------------------------------------------------------------------------------------- spares


def head_with_spares(spares: int, **options: Any) -> GangMember:
    """Return the head of two and some spares, whose other rank has just lost its supervisor and is no more."""
    members = [Member(f"n{rank}", f"198.18.0.{rank}", 40000) for rank in range(2 + spares)]
    one = GangMember(0, len(members), TIMEOUT, 0.0, retries=3, spares=spares, grace_seconds=GRACE, **options)
    one.start(members, 0.0)
    for rank in range(1, len(members)):
        one.connected(rank, 0.0)
        one.received(rank, report(state="running" if rank == 1 else "spare"), 0.0)
    return one


def lose(one: GangMember, rank: int, now: float) -> None:
    one.received(rank, report(state="running" if rank in one.roster else "spare"), now)
    one.disconnected(rank, now)
    one.not_reached(rank, REFUSED, now)


def test_of_two_spares_the_one_that_is_there_takes_the_place() -> None:
    one = head_with_spares(2)
    lose(one, 2, 1.0)
    lose(one, 1, 1.0)
    pass_time(one, 1.0, 12.0, [3])
    assert (one.attempt, one.roster, one.over) == (2, [0, 3], False)
    assert notices(one)[-1] == "attempt 2 begins with spare n3 in the place of rank 1 (n1)"
    assert [node.name for node in one._nodes] == ["rank 0 (n0)", "spare n1", "spare n2", "rank 1 (n3)"]


def test_a_job_whose_spare_is_lost_too_is_given_up() -> None:
    one = head_with_spares(1)
    lose(one, 2, 1.0)
    lose(one, 1, 1.0)
    pass_time(one, 1.0, 12.0, [])
    assert one.over and "the job is not tried again: rank 1 (n1) lost its supervisor process" in notices(one)[-1]


def test_a_node_that_is_silent_is_replaced_only_when_no_rank_can_be_running_there() -> None:
    one = head_with_spares(1, return_seconds=300)
    pass_time(one, 0.0, 2 * TIMEOUT + GRACE, [2])
    assert (one.attempt, one.verdict) == (1, "the node of rank 1 (n1) sent no heartbeat for 6 s")
    pass_time(one, 2 * TIMEOUT + GRACE, 2 * TIMEOUT + GRACE + 10, [2])
    assert (one.attempt, one.roster) == (2, [0, 2])


def test_what_a_spare_that_was_away_believes_ends_nothing() -> None:
    one = head_with_spares(1)
    one.received(2, report(state="spare", verdict="the node of rank 0 (n0), the head, sent no heartbeat for 6 s"), 1.0)
    assert one.verdict is None
    one.received(2, report(state="spare", verdict=""), 1.0)
    assert one.verdict == "", "but a request to stop does"


def test_a_rank_that_fails_of_a_loss_before_that_is_noticed_is_no_reason_to_give_up() -> None:
    """As gloo does, where the connections of a process that is gone are reset."""
    one = head_with_spares(1)
    lose(one, 1, 1.0)
    one.script_ended("failed", "rank 0 (n0) exited with code 1", 1.5)
    pass_time(one, 1.5, 12.0, [2])
    assert (one.attempt, one.roster) == (2, [0, 2])
    assert notices(one)[0].startswith("attempt 1 ended: rank 1 (n1) lost its supervisor process; attempt 2 goes on")


def test_a_spare_that_cannot_even_wait_ends_nothing() -> None:
    one = head_with_spares(1)
    one.received(2, report(state="failed", why="spare n2 did not start: no room"), 1.0)
    assert one.verdict is None
    other = GangMember(2, 3, TIMEOUT, 0.0, retries=3, spares=1)
    other.start([*MEMBERS, Member("n2", "198.18.0.2", 40000)], 0.0)
    other.script_ended("failed", "spare n2 did not start: no room", 0.0)
    assert other.is_spare


def test_a_rank_that_cannot_end_holds_nobody_where_a_spare_is_lost() -> None:
    one = head_with_spares(1)
    lose(one, 2, 0.5)
    one.end("rank 0 (n0) was killed by SIGKILL")
    one.script_ended("failed", "", 1.0, has_fault=True)
    pass_time(one, 1.0, 3 * (TIMEOUT + GRACE), [1])
    assert one.over and notices(one)[-1].endswith("the job is not tried again: rank 1 (n1) has not ended")


def test_a_spare_waits_for_a_head_that_is_away_and_stands_for_no_election() -> None:
    one = GangMember(2, 3, TIMEOUT, 0.0, retries=3, return_seconds=60, spares=1)
    one.start([*MEMBERS, Member("n2", "198.18.0.2", 40000)], 0.0)
    one.script_ended("spare", "", 0.0)
    one.connected(0, 0.0)
    one.received(0, {"kind": "alive", "term": 1, "states": {}}, 0.5)
    one.disconnected(0, 1.0)
    now = 1.0
    while not one.over:
        now += 0.5
        assert now < TIMEOUT + 60 + 5
        one.tick(now)
        assert one.role == "member"
    assert now > TIMEOUT + 60
