# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rank, a unit, a machine, a cable: what breaks while a job runs and somebody looks on."""

import re
import time
from collections.abc import Callable

import pytest
from jobs import END_SECONDS, assert_log_whole, await_lines, counting
from machines import GRACE_SECONDS, NODE_TIMEOUT_SECONDS, Cluster, Node
from measuring import Timeline

VANISHED = r"lost|sent no heartbeat|unreachable"


def test_sigkill_of_one_rank(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster)
    job, at = run.job, time.monotonic()
    cluster.nodes[1].kill_processes(job, "count.py")
    assert run.wait() == 2
    assert run.ended_at - at < END_SECONDS + GRACE_SECONDS
    cause = r"rank 1 \(node1\) was killed by (signal 9|SIGKILL)"
    assert re.search(cause + r".* after \d+ s", run.words)
    assert f"{cluster.runs}/{job}/logs/rank1-node1.log" in run.words
    record = cluster.record(job)
    assert record["state"] == "failed"
    assert re.search(cause, record["cause"]) and "rank 0" not in record["cause"] and "rank 2" not in record["cause"]
    assert [rank["state"] for rank in record["ranks"]] == ["stopped", "failed", "stopped"]
    assert record["ranks"][1]["signal"] == 9
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a rank is killed (SIGKILL)", run, at, cause)


def test_an_exception_on_one_rank(cluster: Cluster, timeline: Timeline) -> None:
    run = cluster.run("raises.py", "-e", "script_args=2", "-e", "logs=all")
    await_lines(run, cluster, "ready")
    job = run.job
    cluster.nodes[2].touch(job, "go")
    at = time.monotonic()
    assert run.wait() == 2
    assert run.ended_at - at < END_SECONDS + GRACE_SECONDS
    cause = r"rank 2 \(node2\) exited with code 1 after \d+ s: RuntimeError: deliberate, on rank 2"
    assert re.search(cause + r"; see \S*/rank2-node2\.log", run.words)
    assert [rank["state"] for rank in cluster.record(job)["ranks"]] == ["stopped", "stopped", "failed"]
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a rank raises an exception", run, at, cause)


def test_sigkill_of_the_whole_unit(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster)
    job, at = run.job, time.monotonic()
    cluster.nodes[1].kill_unit(job)
    assert run.wait() == 2
    assert run.ended_at - at < END_SECONDS + GRACE_SECONDS
    cause = r"rank 1 \(node1\) "
    record = cluster.record(job)
    assert record["state"] == "failed"
    assert re.match(cause, record["cause"])
    assert record["ranks"][1]["state"] == "lost"
    assert [record["ranks"][rank]["state"] for rank in (0, 2)] == ["stopped", "stopped"]
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a node's whole unit is killed, its supervisor too", run, at, cause)


@pytest.mark.parametrize(
    ("victim", "fault", "strike"),
    [
        (0, "the head freezes (docker pause)", Node.freeze),
        (1, "a node freezes (docker pause)", Node.freeze),
        (0, "the head loses power (docker kill)", Node.power_off),
        (1, "a node loses power (docker kill)", Node.power_off),
        (1, "a node is cut off the network", Node.cut),
    ],
    ids=["frozen-head", "frozen-node", "dead-head", "dead-node", "cut-node"],
)
def test_a_node_that_vanishes(
    cluster: Cluster, timeline: Timeline, victim: int, fault: str, strike: Callable[[Node], None]
) -> None:
    run = counting(cluster)
    await_lines(run, cluster, "line 250$")  # by then the nodes watch over each other
    job, node = run.job, cluster.nodes[victim]
    others = [other for other in cluster.nodes if other is not node]
    at = time.monotonic()
    strike(node)
    assert run.wait() == 2
    bound = NODE_TIMEOUT_SECONDS + GRACE_SECONDS + END_SECONDS
    assert run.ended_at - at < bound
    cause = rf"rank {victim} \(node{victim}\) "
    record = cluster.record(job)
    assert record["state"] == "failed"
    assert re.match(cause, record["cause"])
    assert re.search(VANISHED, record["cause"])
    assert [rank["state"] for rank in record["ranks"]] == ["lost" if rank == victim else "stopped" for rank in range(3)]
    cluster.await_nothing_left(job, END_SECONDS, others)
    node.heal()
    cluster.await_nothing_left(job, bound, [node])  # it finds out by itself that it was given up
    cluster.disconnect()
    timeline.note_end(fault, run, at, rf"{cause}({VANISHED})")


def test_a_cable_that_is_plugged_in_again(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, lines=900)
    job, node, at = run.job, cluster.nodes[1], time.monotonic()
    node.cut()
    time.sleep(NODE_TIMEOUT_SECONDS / 2)  # the fault itself: that it lasts this long
    node.mend()
    assert run.wait() == 0
    for rank, one in enumerate(cluster.nodes):
        assert_log_whole(cluster, job, one, 900)
        assert run.printed(rank) == [f"line {number}" for number in range(900)]
    assert cluster.record(job)["state"] == "succeeded"
    silence = NODE_TIMEOUT_SECONDS / 2
    timeline.note(f"a node is cut off for {silence:.0f} s", "the job goes on, and no line is lost", None, None)
    assert run.ended_at > at


def test_sshd_is_restarted_everywhere(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster, lines=700)
    job = run.job
    cluster.everywhere(Node.drop_connections)
    assert run.wait() == 0
    for rank, node in enumerate(cluster.nodes):
        assert_log_whole(cluster, job, node, 700)
        assert run.printed(rank) == [f"line {number}" for number in range(700)]
    assert cluster.record(job)["state"] == "succeeded"
    timeline.note("sshd restarts on every node, all sessions are killed", "the job goes on, and no line is lost")


def test_a_node_reboots(cluster: Cluster, timeline: Timeline) -> None:
    run = counting(cluster)
    job, at = run.job, time.monotonic()
    cluster.nodes[1].reboot()
    assert run.wait() == 2
    cause = r"rank 1 \(node1\) "
    record = cluster.record(job)
    assert record["state"] == "failed"
    assert re.match(cause, record["cause"])
    assert [record["ranks"][rank]["state"] for rank in (0, 2)] == ["stopped", "stopped"]
    cluster.nodes[1].await_sshd()
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a node reboots", run, at, cause)
    again = cluster.run("succeeds.py")
    assert again.wait() == 0, again.text


def test_out_of_memory(cluster: Cluster, timeline: Timeline) -> None:
    run = cluster.run("greedy.py", "-e", "logs=all")
    await_lines(run, cluster, "ready")
    job, node = run.job, cluster.nodes[1]
    node.execute("systemctl", "set-property", "--runtime", f"thunderhead-{job}.scope", "MemoryMax=64M")
    at = time.monotonic()
    node.touch(job, "go")
    assert run.wait() == 2
    cause = r"rank 1 \(node1\) .*(out of memory|memory)"
    assert re.search(cause, run.words)
    assert cluster.record(job)["ranks"][1]["signal"] == 9
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a rank runs out of memory", run, at, cause)


def test_a_script_that_ignores_sigterm(cluster: Cluster, timeline: Timeline) -> None:
    run = cluster.run("ignores_sigterm.py", "-e", "logs=all")
    await_lines(run, cluster, "deaf")
    job, at = run.job, time.monotonic()
    cluster.nodes[1].kill_processes(job, "ignores_sigterm.py")
    assert run.wait() == 2
    assert run.ended_at - at < END_SECONDS + GRACE_SECONDS
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a rank is killed, and the others ignore SIGTERM", run, at, r"rank 1 \(node1\) was killed")
