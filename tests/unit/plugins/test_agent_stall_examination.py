# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import (
    CONNECT,
    EXPLAIN,
    LOOK,
    WORK_SECONDS,
    read_task,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.stall_examination import (
    ANSWER_SECONDS,
    MOST_NOTICES,
    NO_REPLY,
    Examination,
)

SILENT = 120.0
WAITING: list[Any] = [True, False, "they wait", False]
WORKING: list[Any] = [True, False, "rank 1 works", True]
TRAINING: list[Any] = [False, True, "rank 1 sleeps", False]


class Head:
    """An examination of three ranks, with what its inspectors were asked."""

    def __init__(self, stall: float = 0, rendezvous: float = SILENT) -> None:
        self.one = Examination(0, range(3), stall, rendezvous, 0.0)
        self.written, self.ended, self.now = 0, 0, 0.0
        self.connected = [0, 1, 2]
        self.unreached: dict[int, str] = {}

    def at(self, now: float) -> list[tuple[list[int], dict[str, Any]]]:
        """Return what is asked at a time."""
        self.now = now
        self.one.tick(self.written, self.ended, self.connected, self.unreached, now)
        asked, self.one.requests = self.one.requests, []
        return asked

    def answer(self, task: dict[str, Any], *ranks: int, **result: Any) -> None:
        for rank in ranks:
            self.one.take(rank, task["task"], task["number"], result)

    def look(self, now: float = SILENT) -> dict[str, Any]:
        """Return what the head's inspector is to explain after a look that all have answered."""
        ((ranks, task),) = self.at(now)
        assert task["task"] == LOOK
        self.answer(task, *ranks, found=["what it does"])
        ((explains, explanation),) = self.at(now + 1)
        assert (explains, explanation["task"]) == ([0], EXPLAIN)
        return explanation

    def conclude(self, task: dict[str, Any], **result: Any) -> None:
        self.answer(task, 0, **result)
        assert self.at(self.now + 1) == []


def test_a_rendezvous_that_cannot_complete() -> None:
    head = Head()
    assert head.at(SILENT - 1) == []
    assert head.at(SILENT) == [([0, 1, 2], {"task": LOOK, "number": 1, "seconds": WORK_SECONDS})]
    task = {"task": LOOK, "number": 1}
    head.answer(task, 0, 2, found=["waits"])
    assert head.at(SILENT + 5) == [], "one has not answered yet"
    head.answer(task, 1, error="no memory")
    ((ranks, explanation),) = head.at(SILENT + 6)
    assert (ranks, explanation["activities"]) == ([0], {"0": ["waits"], "2": ["waits"]})
    assert (explanation["errors"], explanation["reached"]) == ({"1": "no memory"}, None)
    head.conclude(explanation, found=WAITING)
    assert head.one.verdict == "nothing was printed for 120 s: they wait"


def test_nodes_connect_to_each_other_where_the_explanation_depends_on_it() -> None:
    head = Head()
    head.answer(head.look(), 0, ports={"0": 40000, "2": 40002}, master=True)
    ((ranks, task),) = head.at(SILENT + 2)
    assert (ranks, task["task"], task["ports"], task["master"]) == ([0, 2], CONNECT, {"0": 40000, "2": 40002}, True)
    head.answer(task, 0, found={"failed": {}})
    head.answer(task, 2, error="no port")
    ((_ranks, explanation),) = head.at(SILENT + 9)
    assert explanation["reached"] == {"0": {"failed": {}}, "2": None}
    assert explanation["ports"] == {"0": 40000, "2": 40002}
    head.conclude(explanation, found=WAITING)
    assert head.one.verdict == "nothing was printed for 120 s: they wait"


def test_who_is_not_connected_or_does_not_answer_is_unknown() -> None:
    """Of a node that is cut off for the moment nothing may be concluded."""
    head = Head()
    head.connected, head.unreached = [0, 1], {2: "refused"}
    ((_ranks, task),) = head.at(SILENT)
    head.answer(task, 0, found=["waits"])
    assert head.at(SILENT + WORK_SECONDS + ANSWER_SECONDS) == []
    ((_ranks, explanation),) = head.at(SILENT + WORK_SECONDS + ANSWER_SECONDS + 0.1)
    assert explanation["errors"] == {"1": NO_REPLY, "2": NO_REPLY}
    assert explanation["unreached"] == {"2": "refused"}


def test_what_comes_late_or_was_not_asked_is_passed_over() -> None:
    head = Head()
    ((_ranks, task),) = head.at(SILENT)
    head.answer({**task, "number": 0}, 0, 1, 2, found=["late"])
    head.answer({**task, "task": CONNECT}, 0, 1, 2, found=["other"])
    head.answer(task, 7, found=["stranger"])
    assert head.at(SILENT + 1) == []


@pytest.mark.parametrize(
    ("found", "stall", "verdict", "notices"),
    [
        (WAITING, 0, "nothing was printed for 120 s: they wait", []),
        (WORKING, 0, None, ["nothing was printed for 120 s: rank 1 works"]),
        (TRAINING, 0, None, []),
        (TRAINING, SILENT, None, ["nothing was printed for 120 s: rank 1 sleeps"]),
    ],
)
def test_what_comes_of_it(found: list[Any], stall: float, verdict: str | None, notices: list[str]) -> None:
    head = Head(stall)
    head.conclude(head.look(), found=found)
    assert (head.one.verdict, head.one.notices) == (verdict, notices)


def test_a_silence_that_is_no_rendezvous_ends_nothing() -> None:
    head = Head(stall=60, rendezvous=0)
    head.conclude(head.look(60), found=WAITING)
    assert (head.one.verdict, head.one.notices) == (None, ["nothing was printed for 60 s: they wait"])


def test_a_job_that_goes_on_meanwhile() -> None:
    for change in ("printed", "ended"):
        head = Head()
        explanation = head.look()
        head.written, head.ended = int(change == "printed"), int(change == "ended")
        head.at(SILENT + 2)
        head.conclude(explanation, found=WAITING)
        assert (head.one.verdict, head.one.notices) == (None, [])


def test_who_has_passed_the_rendezvous_is_not_looked_into_again() -> None:
    head = Head()
    head.conclude(head.look(), found=TRAINING)
    head.written = 5
    assert head.at(1000) == head.at(100_000) == []


def test_ranks_that_wait_for_those_that_have_ended() -> None:
    """A second Trainer on rank 0 only."""
    head = Head()
    head.ended = 1
    assert head.at(50) == []
    head.conclude(head.look(70), found=WAITING)
    assert head.one.verdict == (
        "nothing was printed for 20 s: they wait; 1 rank had ended with code 0, and cannot join any more: what only "
        "one rank does, such as with a second Trainer, needs num_nodes=1"
    )


@pytest.mark.parametrize("result", [{"error": "KeyError: 7"}, {}, None])
def test_a_search_that_fails_is_told(result: Any) -> None:
    head = Head()
    task = head.look()
    head.one.take(0, task["task"], task["number"], result)
    head.at(SILENT + 2)
    why = (result or {}).get("error")
    assert head.one.notices == [f"nothing was printed for 120 s, and the search for the cause failed: {why}"]


def test_a_dead_inspector_of_the_head_is_told() -> None:
    head = Head()
    head.look()
    head.at(SILENT + ANSWER_SECONDS + 2)
    (notice,) = head.one.notices
    assert notice.endswith("the search for the cause failed: the head's inspector did not answer")


def test_the_newest_notices_are_kept() -> None:
    head = Head(stall=1, rendezvous=0)
    for time in range(1, 50):
        head.written = time
        head.at(10.0 * time)
        head.conclude(head.look(10.0 * time + 5), found=[False, False, str(time), False])
    assert [one[-2:] for one in head.one.notices] == [str(time) for time in range(50 - MOST_NOTICES, 50)]


def test_a_node_that_connects_while_the_others_are_looked_at_counts_as_reached() -> None:
    head = Head()
    head.connected, head.unreached = [0, 1], {2: "no answer"}
    ((ranks, task),) = head.at(SILENT)
    head.answer(task, *ranks, found=["waits"])
    head.unreached = {}
    ((_ranks, explanation),) = head.at(SILENT + 1)
    assert (explanation["unreached"], explanation["errors"]) == ({}, {"2": NO_REPLY})


def test_a_head_that_was_frozen_waits_on() -> None:
    head = Head()
    explanation = head.look()
    head.one.skip(500)
    assert head.at(SILENT + 400) == []
    head.conclude(explanation, found=WAITING)
    assert head.one.verdict is not None


LOOKS: dict[str, Any] = {"task": LOOK, "number": 1, "seconds": 10}
CONNECTS: dict[str, Any] = {
    "task": CONNECT,
    "number": 2,
    "seconds": 5,
    "ports": {"0": 40000, "2": 50000},
    "master": True,
}


def test_what_a_head_asks_of_a_member() -> None:
    assert read_task(LOOKS, 3) == LOOKS
    assert read_task(CONNECTS, 3) == CONNECTS


@pytest.mark.parametrize(
    "changes",
    [
        *({"task": task} for task in (EXPLAIN, "sh", None, [])),
        *({"number": number} for number in (None, "1", 1.5, float("nan"))),
        *({"seconds": seconds} for seconds in (None, "5", float("inf"), float("nan"))),
        *(
            {"ports": ports}
            for ports in (None, [40000], {"3": 40000}, {"-1": 40000}, {"0": 22}, {"0": 2**16}, {"0": "x"})
        ),
    ],
)
def test_what_no_head_asks_reaches_no_inspector(changes: dict[str, Any]) -> None:
    """A member that somebody has broken into can lead, but not have root listen anywhere, or wait for ever."""
    assert read_task({**CONNECTS, **changes}, 3) is None


@pytest.mark.parametrize("value", [None, [], "look", {}, {"number": 1, "seconds": 1}, {"task": LOOK, "number": 1}])
def test_what_is_no_task(value: Any) -> None:
    assert read_task(value, 3) is None


def test_a_task_s_time_is_bounded() -> None:
    assert read_task({**LOOKS, "seconds": 1e9, "path": "/etc/shadow"}, 3) == {**LOOKS, "seconds": WORK_SECONDS}
    bounded = read_task({**CONNECTS, "seconds": 1e9}, 3)
    assert bounded is not None and bounded["seconds"] < 10
    assert read_task({**LOOKS, "seconds": -5}, 3) == {**LOOKS, "seconds": 0}


def test_what_a_rank_prints_while_it_is_looked_at_comes_before_what_was_found() -> None:
    """Else the head could end a job that goes on: what it knows of others is as old as their last heartbeats."""
    member = GangMember(1, 2, 30.0, 0.0)
    member.start([Member(f"node{rank}", f"198.18.0.{rank}", 40000) for rank in range(2)], 0.0)
    member.connected(0, 0.0)
    member.outbox.clear()
    member.printed(12)
    member.task_done({"task": LOOK, "number": 1, "result": {}})
    (_head, report), (_head, finding) = member.outbox
    assert (report["kind"], report["written"], finding["kind"]) == ("report", 12, "finding")
