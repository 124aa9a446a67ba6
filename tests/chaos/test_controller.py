# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to the command while its job runs, and how one comes back to the job."""

import json
import os
import re
import signal
import time

import pytest
from jobs import END_SECONDS, assert_contiguous, assert_log_whole, counting, detached, numbers
from machines import GRACE_SECONDS, Cluster
from measuring import Timeline
from playbook import Playbook

STOPPED, INTERRUPTED = 99, 99


def assert_runs_on(cluster: Cluster, job: str) -> None:
    """Fail if the job does not run on every node."""
    assert all(node.scripts(job, "count.py") for node in cluster.nodes)
    assert [node.state(job)["state"] for node in cluster.nodes] == ["running"] * len(cluster.nodes)
    assert cluster.record(job)["state"] == "running"


def assert_says_how_to_come_back(run: Playbook, job: str) -> None:
    """Fail if the user is not told what to type."""
    for command in (f"logs.yml -e job={job}", "status.yml", f"stop.yml -e job={job}"):
        assert f"ansible-playbook {command}" in run.words


def assert_goes_on_without_a_gap(cluster: Cluster, job: str, first: Playbook, *arguments: str, lines: int) -> None:
    """Fail if logs.yml after the first command loses or repeats a line."""
    before = [first.printed(rank) for rank in range(3)]
    again = cluster.playbook("logs.yml", "-e", "logs=all", *arguments)
    assert again.wait() == 0, again.text
    for rank, node in enumerate(cluster.nodes):
        assert_log_whole(cluster, job, node, lines)
        assert numbers(before[rank] + again.printed(rank)) == list(range(lines))
    assert cluster.record(job)["state"] == "succeeded"


def test_kill_9_of_the_playbook_and_logs(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, lines=500)
    job = run.job
    run.kill()
    assert run.wait() == -9
    assert_runs_on(cluster, job)
    assert_goes_on_without_a_gap(cluster, job, run, lines=500)
    timeline.note("ansible-playbook is killed (kill -9)", "the job goes on; logs.yml loses and repeats no line")


def test_a_lost_terminal_and_logs(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, lines=500, terminal=True)
    job = run.job
    run.lose_terminal()
    run.wait()
    assert_runs_on(cluster, job)
    assert_goes_on_without_a_gap(cluster, job, run, "-e", f"job={job}", lines=500)
    timeline.note("the terminal is closed", "the job goes on; logs.yml loses and repeats no line")


def test_ctrl_c_once(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, lines=700, terminal=True)
    job = run.job
    at = run.press_ctrl_c()
    assert run.wait() == INTERRUPTED
    assert_says_how_to_come_back(run, job)
    assert_runs_on(cluster, job)
    assert_goes_on_without_a_gap(cluster, job, run, lines=700)
    timeline.note("Ctrl-C", "the job goes on; the words say how to come back", None, run.ended_at - at)


def test_ctrl_c_twice(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, terminal=True)
    job = run.job
    at = run.press_ctrl_c()
    run.await_line("Ctrl-C once more")
    again = run.press_ctrl_c()
    run.wait()
    cluster.await_nothing_left(job, GRACE_SECONDS + END_SECONDS)
    ended = time.monotonic()
    assert ended - again < GRACE_SECONDS + END_SECONDS
    # Ansible has no say in a second Ctrl-C: the signal ends it, and its worker goes on to stop the job.
    assert run.process.returncode in (STOPPED, -signal.SIGINT)
    record = cluster.await_record(job, "stopped")
    assert [rank["state"] for rank in record["ranks"]] == ["stopped"] * 3
    said = run.first("stopp", since=at)
    timeline.note("Ctrl-C twice", "the job is stopped", said.at - again if said else None, ended - again)


def test_ctrl_c_that_stops(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, "-e", "on_interrupt=stop", terminal=True)
    job = run.job
    at = run.press_ctrl_c()
    assert run.wait() == STOPPED
    cluster.await_nothing_left(job, GRACE_SECONDS + END_SECONDS)
    ended = time.monotonic()
    assert ended - at < GRACE_SECONDS + END_SECONDS
    record = cluster.await_record(job, "stopped")
    assert [rank["state"] for rank in record["ranks"]] == ["stopped"] * 3
    said = run.first("stopp", since=at)
    timeline.note("Ctrl-C with on_interrupt=stop", "the job is stopped", said.at - at if said else None, ended - at)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_a_cancel_that_stops(cluster: Cluster, timeline: Timeline, number: signal.Signals) -> None:
    """As ansible-runner, AWX and CI systems do it: a signal to the process group, in which the worker is not."""
    run = counting(cluster, "-e", "on_interrupt=stop", terminal=True)  # so that it does not ignore HUP
    job = run.job
    at = time.monotonic()
    os.killpg(run.process.pid, number)
    run.wait()
    cluster.await_nothing_left(job, GRACE_SECONDS + END_SECONDS)
    ended = time.monotonic()
    record = cluster.await_record(job, "stopped")
    assert [rank["state"] for rank in record["ranks"]] == ["stopped"] * 3
    words = f"ansible-playbook's process group gets {number.name}, with on_interrupt=stop"
    timeline.note(words, "the job is stopped", None, ended - at)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_a_cancel_that_does_not_stop(cluster: Cluster, number: signal.Signals) -> None:
    run = counting(cluster, terminal=True)
    os.killpg(run.process.pid, number)
    run.wait()
    time.sleep(1)
    assert_runs_on(cluster, run.job)


def test_detach_status_logs_and_stop(cluster: Cluster, timeline: Timeline) -> None:
    run = cluster.run("count.py", "-e", "script_args=1000000", "-e", "detach=true")
    assert run.wait() == 0, run.text
    job = run.job
    assert_says_how_to_come_back(run, job)
    cluster.everywhere(lambda node: node.await_log(job, "line 20"))
    assert_runs_on(cluster, job)

    table = cluster.playbook("status.yml")
    assert table.wait() == 0, table.text
    row = table.first(rf"^ *{job}\b")
    assert row, table.text
    assert re.search(rf"{job} +count\.py +\S+ +running +\S+ \S+ +3 running +line \d+", row.text)

    status = cluster.playbook("status.yml", "-e", "format=json")
    assert status.wait() == 0, status.text
    line = status.first(r"^ *\{.*\} *$")
    assert line, status.text
    (mine,) = [one for one in json.loads(line.text)["jobs"] if one["id"] == job]
    assert (mine["script"], mine["state"], mine["nodes"]) == ("count.py", "running", 3)
    assert [(rank["rank"], rank["host"], rank["state"]) for rank in mine["ranks"]] == [
        (number, f"node{number}", "running") for number in range(3)
    ]
    assert all(re.fullmatch(r"line \d+", rank["last_line"]) for rank in mine["ranks"])

    followed = cluster.playbook("logs.yml", "-e", "offset=0", terminal=True)
    followed.await_line(r"^\[0 node0\] +line 100$")
    followed.press_ctrl_c()
    assert followed.wait() == INTERRUPTED
    assert_contiguous(followed.printed(0))
    assert followed.printed(1) == []

    at = time.monotonic()
    stop = cluster.playbook("stop.yml")  # the latest
    assert stop.wait() == 0, stop.text
    assert cluster.left(job) == []
    timeline.note("stop.yml", "no process is left on any node", None, stop.ended_at - at)
    assert job in stop.words and "no process of it is left" in stop.words
    assert [node.state(job)["state"] for node in cluster.nodes] == ["stopped"] * 3
    assert cluster.record(job)["state"] == "stopped"

    ended = cluster.playbook("logs.yml", "-e", f"job={job}", "-e", "offset=0", "-e", "logs=all")
    assert ended.wait() == STOPPED
    for rank, node in enumerate(cluster.nodes):
        assert_log_whole(cluster, job, node)
        assert "\n".join([*ended.printed(rank), ""]) == cluster.log(job, node)


def test_stop_while_somebody_follows(cluster: Cluster) -> None:
    run = counting(cluster)
    job = run.job
    stop = cluster.playbook("stop.yml", "-e", f"job={job}")
    assert stop.wait() == 0, stop.text
    assert cluster.left(job) == []
    assert run.wait() == STOPPED
    assert cluster.record(job)["state"] == "stopped"
    assert "was stopped" in run.words


def test_stop_of_what_would_outlive_it(cluster: Cluster, timeline: Timeline) -> None:
    job = detached(cluster, "daemons.py", ready="all there")
    found = cluster.left(job)
    # Per node: the supervisor, its inspector, the script, its child, the detached one, and the one that forgot where it
    # came from.
    assert len(found) == 6 * 3, found
    assert sum("sleep 3600" in line for line in found) == 3
    at = time.monotonic()
    stop = cluster.playbook("stop.yml", "-e", f"job={job}")
    assert stop.wait() == 0, stop.text
    assert cluster.left(job) == []
    assert cluster.everywhere(lambda node: node.execute("pgrep", "-l", "sleep", check=False)) == [""] * 3
    assert [node.state(job)["state"] for node in cluster.nodes] == ["stopped"] * 3
    words = "stop.yml for a script that ignores SIGTERM, forks daemons, double-forks and clears its environment"
    timeline.note(words, "no process is left on any node", None, stop.ended_at - at)


def test_daemons_end_with_their_script(cluster: Cluster) -> None:
    run = cluster.run("daemons.py", "-e", "script_args=leave")
    assert run.wait() == 0, run.text
    cluster.await_nothing_left(run.job, END_SECONDS)
    assert cluster.everywhere(lambda node: node.execute("pgrep", "-l", "sleep", check=False)) == [""] * 3
