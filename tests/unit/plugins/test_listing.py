# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import listing, status_report
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.listing import JobView, Part
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import format_moment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Unreachable
from left_jobs import leave
from local_nodes import SLEEP, Connection, LocalNode, code, gang_of, opener, until

JOB = "20260101-000000-train-0001"


def looked(nodes: list[LocalNode], only: str | None = None) -> tuple[list[JobView], dict[str, str]]:
    views, errors = listing.list_jobs(NodeGroup([node.settings() for node in nodes], opener(nodes)), only)
    return views, {host: str(error) for host, error in errors.items()}


def spec(job: str, rank: int = 0, hosts: tuple[str, ...] = ("node0", "node1")) -> dict[str, Any]:
    return {
        **{"id": job, "rank": rank, "script": "train.py", "user": "zoë", "start": "2026-11-22T17:30:00+01:00"},
        "world_size": len(hosts),
        "ranks": [{"rank": n, "host": host, "address": f"127.0.0.{n + 1}"} for n, host in enumerate(hosts)],
    }


def view(*states: str, because: Mapping[int, str] | None = None, **times: Any) -> JobView:
    parts = {
        rank: Part(f"node{rank}", state, {"because": (because or {}).get(rank, ""), **times})
        for rank, state in enumerate(states)
    }
    return JobView(JOB, spec(JOB), parts, "ana@laptop")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded", "succeeded"], "succeeded"),
        (["succeeded", "running"], "running"),
        (["failed", "running"], "running"),
        (["prepared", "prepared"], "prepared"),
        (["failed", "stopped"], "failed"),
        (["lost", "stopped"], "failed"),
        (["stopped", "stopped"], "stopped"),
        (["stopped", "succeeded"], "stopped"),
        (["unknown", "succeeded"], "unknown"),
        (["unknown", "failed"], "failed"),
        (["unknown", "running"], "running"),
    ],
)
def test_the_state_of_a_job(states: list[str], expected: str) -> None:
    assert view(*states).state == expected


@pytest.mark.parametrize(
    ("states", "roster", "expected"),
    [
        (["running", "running", "spare"], [], "running"),
        (["succeeded", "succeeded", "unused"], [0, 1], "succeeded"),
        (["succeeded", "lost", "succeeded"], [0, 2], "succeeded"),
        (["succeeded", "succeeded", "failed"], [0, 2], "failed"),
    ],
)
def test_the_state_of_a_job_with_a_spare(states: list[str], roster: list[int], expected: str) -> None:
    parts = {place: Part(f"node{place}", state) for place, state in enumerate(states)}
    job = JobView(JOB, {"world_size": 2, "spares": 1}, parts, roster=roster)
    taking_part = [part.host for part in job.taking_part]
    assert (job.state, taking_part) == (expected, [f"node{place}" for place in roster or [0, 1]])
    (one,) = status_report.as_data([job], {})["jobs"]
    ranks = [roster.index(place) if place in roster else None for place in range(3)] if roster else [0, 1, None]
    assert (one["nodes"], [rank["rank"] for rank in one["ranks"]]) == (2, ranks)


def test_without_a_word_of_the_head_a_spare_that_runs_takes_part() -> None:
    parts = {place: Part(f"node{place}", state) for place, state in enumerate(["unknown", "lost", "running"])}
    assert JobView(JOB, {"world_size": 2, "spares": 1}, parts).state == "running"


def leave_with_a_spare(nodes: list[LocalNode], states: list[str], told: list[str], roster: list[int]) -> JobView:
    """Leave a job of two nodes and a spare, of which the head says what is told; return how it is seen."""
    about = {**spec(JOB, hosts=("node0", "node1", "node2")), "world_size": 2, "spares": 1}
    for rank, (node, state) in enumerate(zip(nodes, states, strict=True)):
        leave(node, JOB, spec={**about, "rank": rank}, state=state)
    gang = {"ranks": [{"state": state} for state in told], "roster": roster, "ending": False, "notices": []}
    (nodes[0].job_dir(JOB) / "gang.json").write_text(json.dumps(gang))
    (one,), _errors = looked(nodes)
    return one


def test_a_spare_that_is_gone_is_not_shown_as_one(three: list[LocalNode]) -> None:
    one = leave_with_a_spare(three, *[["succeeded", "succeeded", "spare"]] * 2, roster=[0, 1])
    assert (one.state, one.ranks) == ("succeeded", "2 succeeded, 1 lost"), "it has no supervisor"


def test_a_look_at_a_job_whose_spare_has_taken_a_place(three: list[LocalNode]) -> None:
    """What the node that is left out says of its part does not count."""
    states, told = ["succeeded", "stopped", "succeeded"], ["succeeded", "spare", "succeeded"]
    one = leave_with_a_spare(three, states, told, roster=[0, 2])
    assert (one.state, one.ranks) == ("succeeded", "2 succeeded, 1 unused")
    assert [one.rank_of(place) for place in range(3)] == [0, None, 1]


def test_a_rank_that_was_stopped_because_of_another_says_that_the_job_failed() -> None:
    assert view("stopped", "unknown", because={0: "the node of rank 1 sent no heartbeat"}).state == "failed"


def test_since() -> None:
    assert view("prepared").since is None
    assert view("running", started=5.0).since == 5.0
    assert view("succeeded", started=5.0, ended=7.0).since == 7.0


@pytest.mark.parametrize(
    ("states", "expected"),
    [(["running"] * 4, "4 running"), (["failed", "stopped", "stopped"], "1 failed, 2 stopped")],
)
def test_how_the_ranks_fare(states: list[str], expected: str) -> None:
    assert view(*states).ranks == expected


def test_a_look_at_real_jobs(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP), id=JOB)
    launch.prepare()
    launch.start()
    until(lambda: all(node.follow(job=JOB, wait_seconds=0)[1] for node in nodes))
    (one,), errors = looked(nodes)
    assert errors == {}
    assert (one.id, one.state, one.ranks) == (JOB, "running", "2 running")
    assert [(part.host, part.last_line, part.log_bytes) for part in one.parts.values()] == [
        ("node0", "ready", 6),
        ("node1", "ready", 6),
    ]
    launch.gang.stop(2)
    assert [view.state for view in looked(nodes)[0]] == ["stopped"]


def test_jobs_of_several_nodes_the_newest_first(nodes: list[LocalNode]) -> None:
    for rank, node in enumerate(nodes):
        leave(node, "20260101-000000-both-0001", spec=spec("20260101-000000-both-0001", rank))
    leave(nodes[1], "20260201-000000-one-0001", spec=spec("20260201-000000-one-0001", 0, ("node1",)))
    views, _errors = looked(nodes)
    assert [(one.id, [part.host for part in one.parts.values()]) for one in views] == [
        ("20260201-000000-one-0001", ["node1"]),
        ("20260101-000000-both-0001", ["node0", "node1"]),
    ]
    assert [one.id for one in looked(nodes, only="20260101-000000-both-0001")[0]] == ["20260101-000000-both-0001"]


class Dead(Connection):
    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        raise AnsibleConnectionFailure("Connection timed out")


def test_a_node_that_does_not_answer(nodes: list[LocalNode]) -> None:
    for rank, node in enumerate(nodes):
        leave(node, JOB, spec=spec(JOB, rank))
    nodes[1].connection = Dead()
    (one,), errors = looked(nodes)
    assert errors == {"node1": "node1 is unreachable: Connection timed out"}
    assert (one.state, one.ranks) == ("unknown", "1 succeeded, 1 unknown")


def test_of_a_node_that_does_not_answer_the_head_knows_more(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP), id=JOB)
    launch.prepare()
    launch.start()
    answers, nodes[1].connection = nodes[1].connection, Dead()
    until(lambda: [one.ranks for one in looked(nodes)[0]] == ["2 running"])
    nodes[1].connection = answers
    launch.gang.stop(2)


@pytest.mark.parametrize(
    ("head", "told", "expected"),
    [("stopped", "running", "1 stopped, 1 unknown"), ("failed", "stopped", "1 failed, 1 stopped")],
)
def test_a_rank_that_runs_once_the_head_has_ended_is_lost(
    nodes: list[LocalNode], head: str, told: str, expected: str
) -> None:
    work = leave(nodes[0], JOB, state=head, spec=spec(JOB, 0))
    gang = {"ranks": [{"state": "running"}, {"state": told}], "ending": False, "notices": [[1.8e9, "it waits\x1b[2J"]]}
    (work.parent / "gang.json").write_text(json.dumps(gang))
    nodes[1].connection = Dead()
    (one,), _errors = looked(nodes)
    assert one.ranks == expected
    assert one.notices == [f"{format_moment(1.8e9)} it waits\\x1b[2J"]


def test_a_node_that_has_the_job_no_more(nodes: list[LocalNode]) -> None:
    leave(nodes[1], JOB, spec=spec(JOB, 1))
    assert [one.state for one in looked(nodes)[0]] == ["succeeded"]
    (one,), _errors = looked(nodes, only=JOB)
    assert (one.state, one.ranks, [part.host for part in one.parts.values()]) == (
        *("succeeded", "1 removed, 1 succeeded"),
        ["node0", "node1"],
    )


def test_a_rank_on_a_host_that_was_not_asked(nodes: list[LocalNode]) -> None:
    """It is not in the inventory any more."""
    leave(nodes[0], JOB, spec=spec(JOB, 0))
    (one,), errors = looked(nodes[:1])
    assert (errors, one.parts[1].host) == ({}, "node1")
    gang, notes = listing.gang_of(one, NodeGroup([nodes[0].settings()], opener(nodes)))
    assert (list(gang.settings), notes) == (
        ["node0"],
        [f"job {JOB} names node1, which is not in the inventory and left out; add with -i"],
    )
    with pytest.raises(JobError):
        listing.gang_of(one, NodeGroup([], opener(nodes)))


def test_what_nodes_say_cannot_act_upon_a_terminal(nodes: list[LocalNode]) -> None:
    leave(nodes[0], JOB, spec={**spec(JOB, 0, ("node0",)), "script": "\x1b[2J", "start": "never"})
    (one,), _errors = looked(nodes[:1])
    assert (one.spec["script"], "start" in one.spec) == ("\\x1b[2J", False)
    assert "\x1b" not in status_report.as_table([one], {}, 200)
    gang, _notes = listing.gang_of(one, NodeGroup([nodes[0].settings()], opener(nodes)))
    assert gang.identity.start


@pytest.mark.parametrize("rank", [-1, 2, 10**9])
def test_a_rank_outside_of_its_world(nodes: list[LocalNode], rank: int) -> None:
    leave(nodes[0], JOB, spec=spec(JOB, rank))
    assert looked(nodes)[0] == []


@pytest.mark.parametrize(
    "ranks",
    [
        [],
        [{"rank": 0, "host": "node0", "address": "127.0.0.1"}],
        [{"rank": n, "host": f"node{n}", "address": f"127.0.0.{n}"} for n in range(3)],
        [{"rank": n + 1, "host": f"node{n}", "address": f"127.0.0.{n + 1}"} for n in range(2)],
        [{"rank": 0, "host": f"node{n}", "address": f"127.0.0.{n + 1}"} for n in range(2)],
        [{"rank": n, "host": "node0", "address": f"127.0.0.{n + 1}"} for n in range(2)],
        [{"rank": n, "host": f"node{n}", "address": "127.0.0.1"} for n in range(2)],
        [{"rank": n, "host": f"node{n}", "address": f"node{n}.example; id"} for n in range(2)],
        [{"rank": n, "host": f"node{n}", "address": "0.0.0.0"} for n in range(2)],
    ],
)
def test_ranks_that_a_jobs_user_has_made_up(nodes: list[LocalNode], ranks: list[dict[str, Any]]) -> None:
    leave(nodes[0], JOB, spec={**spec(JOB, 0), "ranks": ranks})
    (one,), _errors = looked(nodes, only=JOB)
    assert "ranks" not in one.spec
    gang, _notes = listing.gang_of(one, NodeGroup([node.settings() for node in nodes], opener(nodes)))
    assert [(node.rank, node.host, node.address) for node in gang.topology.nodes] == [(0, "node0", "")]
    leave(nodes[1], JOB, spec=spec(JOB, 1))
    (one,), _errors = looked(nodes, only=JOB)
    gang, _notes = listing.gang_of(one, NodeGroup([node.settings() for node in nodes], opener(nodes)))
    assert [node.address for node in gang.topology.nodes] == ["127.0.0.1", "127.0.0.2"], "the other node's word"


def test_a_folder_that_is_no_job(nodes: list[LocalNode]) -> None:
    leave(nodes[0], "lost+found")
    assert looked(nodes)[0] == []


@pytest.mark.parametrize("job", ["../../etc", "job-1", f"{JOB}\n", "\x1b"])
def test_what_is_no_jobs_id(job: str) -> None:
    with pytest.raises(JobError, match="is no job's id, which is like "):
        listing.list_jobs(NodeGroup([], opener([])), only=job)


def test_only_rank_0_names_all_ranks_in_the_list_of_all_jobs(nodes: list[LocalNode]) -> None:
    for rank, node in enumerate(nodes):
        leave(node, JOB, spec=spec(JOB, rank))
    nodes[0].connection = Dead()
    (one,), _errors = looked(nodes)
    assert ("ranks" in one.spec, [(part.host, part.state) for part in one.parts.values()]) == (
        False,
        [("", "unknown"), ("node1", "succeeded")],
    )
    (one,), _errors = looked(nodes, only=JOB)
    assert [part.host for part in one.parts.values()] == ["node0", "node1"]


def test_a_job_that_was_never_started(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang_of(nodes, code(tmp_path / "code", ""), id=JOB).prepare()
    (one,), _errors = looked(nodes)
    assert (one.state, one.spec, one.ranks) == ("prepared", {}, "2 prepared")
    assert one.user == "trainer"
    with pytest.raises(JobError):
        listing.choose_job("", [one], {}, "trainer")
    assert listing.choose_job("", [one], {}, "trainer", going_on=True) is one


# ------------------------------------------------------------------------------------------------------------- choosing


def test_choose() -> None:
    ended, runs = view("succeeded"), view("running")
    ended.id = "20260101-000000-train-0002"
    views = [ended, runs]
    assert listing.choose_job("", views, {}, "ana@laptop") is ended
    assert listing.choose_job("", views, {}, "ana@laptop", going_on=True) is runs
    assert listing.choose_job(JOB, views, {}) is runs


def test_a_job_that_may_have_ended_is_the_last_choice_of_a_stop() -> None:
    unsure, runs = view("unknown"), view("running")
    unsure.id = "20260101-000000-train-0002"
    assert listing.choose_job("", [unsure, runs], {}, "ana@laptop", going_on=True) is runs
    assert listing.choose_job("", [unsure], {}, "ana@laptop", going_on=True) is unsure


@pytest.mark.parametrize("going_on", [True, False])
def test_the_latest_job_is_one_on_the_hosts_that_take_part(going_on: bool) -> None:
    here, elsewhere = view("running"), view("running")
    elsewhere.id, elsewhere.parts = "20260101-000000-train-0002", {0: listing.Part("elsewhere", "running")}
    hosts = [part.host for part in here.parts.values()]
    assert listing.choose_job("", [elsewhere, here], {}, "ana@laptop", going_on) is elsewhere
    for some in (hosts, hosts[:1], hosts[-1:]):
        assert listing.choose_job("", [elsewhere, here], {}, "ana@laptop", going_on, some) is here
    with pytest.raises(JobError, match=r"^no job (runs|is) on these nodes"):
        listing.choose_job("", [elsewhere, here], {}, "ana@laptop", going_on, ["third"])
    assert listing.choose_job(elsewhere.id, [elsewhere, here], {}, "ana@laptop", going_on, hosts) is elsewhere


@pytest.mark.parametrize("me", ["bob@context", "ana@context", "bob@laptop", "ana", ""])
def test_somebody_elses_job_is_chosen_only_by_its_id(me: str) -> None:
    theirs, older = view("running"), view("succeeded")
    older.id = "20251231-235959-train-0002"
    assert listing.choose_job(JOB, [theirs], {}, me, going_on=True) is theirs
    for going_on, verb in ((True, "runs"), (False, "is")):
        with pytest.raises(JobError) as caught:
            listing.choose_job("", [theirs, older], {}, me, going_on)
        assert str(caught.value) == (
            f"no job that {verb} on these nodes was started by {me}; the latest is {JOB}, which ana@laptop started; if "
            f"you mean that one, give -e job={JOB}"
        )
    older.user = me
    assert listing.choose_job("", [theirs, older], {}, me) is older


def test_whose_a_job_is_that_holds_its_node_is_not_the_jobs_to_say(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes[:1], code(tmp_path / "code", SLEEP), id=JOB, user="ana@laptop")
    launch.prepare()
    launch.start()
    path = nodes[0].job_dir(JOB) / "spec.json"
    until(path.exists)
    path.write_text(json.dumps({**json.loads(path.read_text()), "user": "bob@context"}))
    (one,), _errors = looked(nodes)
    assert (one.user, status_report.as_data([one], {})["jobs"][0]["user"]) == ("ana@laptop", "ana@laptop")


def test_a_job_that_runs_is_listed_however_old_it_is(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes[:1], code(tmp_path / "code", SLEEP), id=JOB)
    launch.prepare()
    launch.start()
    for number in range(listing.NEWEST + 3):
        job = f"20260301-0000{number:02d}-train-0001"
        leave(nodes[0], job, spec=spec(job, 0, ("node0",)))
    views, _errors = looked(nodes)
    assert len(views) == listing.NEWEST + 1
    assert (views[-1].id, views[-1].state) == (JOB, "running")


@pytest.mark.parametrize(
    ("job", "going_on", "message"),
    [
        ("", False, "no job is on these nodes; start one: ansible-playbook run.yml -e script=…"),
        ("", True, "no job runs on these nodes; ansible-playbook status.yml lists those that have ended"),
        (
            "20260101-000000-train-0007",
            False,
            "no node has a job 20260101-000000-train-0007; ansible-playbook status.yml lists them",
        ),
    ],
)
def test_there_is_none(job: str, going_on: bool, message: str) -> None:
    for errors, more in (({}, ""), ({"n": Unreachable("n", "is away")}, "; n is away")):
        with pytest.raises(JobError) as caught:
            listing.choose_job(job, [], errors, "ana@laptop", going_on)
        assert str(caught.value) == message + more


def test_the_gang_of_an_earlier_job(nodes: list[LocalNode]) -> None:
    for rank, node in enumerate(reversed(nodes)):
        leave(node, JOB, spec=spec(JOB, rank, ("node1", "node0")))
    (one,), _errors = looked(nodes)
    gang, notes = listing.gang_of(one, NodeGroup([node.settings() for node in nodes], opener(nodes)))
    assert notes == []
    assert [(node.rank, node.host, node.address) for node in gang.topology.nodes] == [
        (0, "node1", "127.0.0.1"),
        (1, "node0", "127.0.0.2"),
    ]
    assert gang.identity == Identity("2026-11-22T17:30:00+01:00", JOB, "zoë")
    assert list(gang.settings) == ["node1", "node0"]


# -------------------------------------------------------------------------------------------------------------- showing


def test_as_data(nodes: list[LocalNode]) -> None:
    leave(nodes[0], JOB, spec=spec(JOB, 0, ("node0",)))
    views, _errors = looked(nodes[:1])
    data = status_report.as_data(views, {"n": Unreachable("n", "is away")})
    assert data == {
        "jobs": [
            {
                "id": JOB,
                "script": "train.py",
                "user": "zoë",
                "started": "2026-11-22T17:30:00+01:00",
                "state": "succeeded",
                "since": 2.0,
                "nodes": 1,
                "world_size": 1,
                "met": None,
                "warning": None,
                "notices": [],
                "ranks": [
                    {
                        "rank": 0,
                        "host": "node0",
                        "state": "succeeded",
                        "exit_code": None,
                        "signal": None,
                        "because": None,
                        "log_bytes": 0,
                        "last_line": "",
                    }
                ],
            }
        ],
        "silent": {"n": "n is away"},
    }


def test_as_table() -> None:
    one = view("running", "running", started=1.0)
    one.parts[0].last_line = "epoch 3: loss 0.25"
    never = JobView("20260101-000000-train-0000", {}, {0: Part("node0", "prepared")})
    lines = status_report.as_table([one, never], {"n": Unreachable("n", "is away")}, 160).splitlines()
    assert lines[0].split() == ["JOB", "SCRIPT", "USER", "STATE", "SINCE", "RANKS", "LAST", "LINE"]
    assert lines[1].startswith(f"{JOB}  train.py  ana@laptop  running   ")
    assert lines[1].endswith("2 running   epoch 3: loss 0.25")
    assert lines[2].split() == ["20260101-000000-train-0000", "-", "-", "prepared", "-", "1", "prepared"]
    assert lines[3] == "n is away"
    assert all(len(line) <= 60 for line in status_report.as_table([one, never], {}, 60).splitlines())


@pytest.mark.parametrize(
    ("state", "begins"), [("running", "the ranks have not met yet: "), ("succeeded", "the ranks never")]
)
def test_ranks_that_never_met(state: str, begins: str) -> None:
    """Of a detached job, whoever asks for it learns that."""
    one = view(state, state, met=False)
    (about,) = status_report.as_data([one], {})["jobs"]
    assert (about["nodes"], about["world_size"], about["met"]) == (2, 1, False)
    assert about["warning"].startswith(begins)
    assert status_report.as_table([one], {}, 80).splitlines()[2] == f"{JOB}: {about['warning']}"
    failed = view("failed", "stopped", met=False)
    assert (failed.met, failed.warning) == (False, "")


def test_what_the_head_found_out_last_is_shown_as_long_as_the_job_runs() -> None:
    notices = ["11-30 03:12:05 nothing was printed for 61 s", "11-30 03:14:05 nothing was printed for 181 s"]
    for state, shown in (("running", notices[1:]), ("failed", [])):
        one = view(state, state)
        one.notices = notices
        table = status_report.as_table([one], {}, 200)
        assert [line for line in table.splitlines() if "nothing was" in line] == [f"{JOB}: {text}" for text in shown]
        assert status_report.as_data([one], {})["jobs"][0]["notices"] == notices


def test_no_jobs() -> None:
    assert status_report.as_table([], {}, 80) == "no jobs"
    assert (
        status_report.as_table([], {"n": Unreachable("n", "is away")}, 80)
        == "no jobs on the nodes that answered, if any did\nn is away"
    )
