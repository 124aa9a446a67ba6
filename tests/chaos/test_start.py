# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a job runs: two at once, a node that is taken, a port that is taken, what a crash left."""

import re
import time

from jobs import counting, detached
from machines import JOBS, Cluster, Node, until
from measuring import Timeline
from playbook import Playbook

# Takes MASTER_PORT as soon as a job has been prepared on this node, and says so.
GRAB = f"""\
import os, socket, time
before = set(os.listdir({JOBS!r}))
print("watching", flush=True)
while not any(os.path.isdir(f"{JOBS}/{{name}}") for name in set(os.listdir({JOBS!r})) - before): time.sleep(0.0005)
taken = socket.create_server(("0.0.0.0", 29500))
print("taken", flush=True)
time.sleep(60)
"""


def test_two_at_the_same_moment(cluster: Cluster, timeline: Timeline) -> None:
    for number in range(5):
        before = cluster.everywhere(Node.jobs)
        folders = [cluster.runs / f"{number}-{rival}" for rival in "ab"]
        both = [cluster.run("succeeds.py", "-e", "script_args=2", runs=folder) for folder in folders]
        assert sorted(run.wait() for run in both) == [0, 2], "\n\n".join(run.text for run in both)
        won, lost = sorted(both, key=lambda run: run.process.returncode)
        held = rf"(runs|is held for) job {won.job}, which \S+ started at \S+, and a node runs one job at a time"
        assert re.search(held, lost.words), f"{won.text}\n{lost.text}"
        assert "Nothing was started on any node" in lost.words
        assert [path.name for path in folders[both.index(won)].iterdir() if path.name[0] != "."] == [won.job]
        assert not folders[both.index(lost)].exists()
        for node, then in zip(cluster.nodes, before, strict=True):
            new = [name for name in node.jobs() if name not in then and name not in ("lock", "current")]
            assert new == [won.job]
    timeline.note("two run.yml at the same moment (5 times)", "one wins, the other changes nothing and says who has it")


def test_a_second_job_is_refused_or_waits(cluster: Cluster, timeline: Timeline) -> None:
    first = counting(cluster, lines=1500)
    job = first.job
    refused = cluster.run("succeeds.py")
    assert refused.wait() == 2
    assert re.search(rf"node0 runs job {job}, which \S+ started at \S+", refused.words)
    waiting = cluster.run("succeeds.py", "-e", "wait=60")
    waiting.await_line(rf"waiting for up to 60 s: .*{job}")
    assert first.wait() == 0, first.text
    assert waiting.wait() == 0, waiting.text
    assert waiting.first(r"^\[0 node0\] +done")
    timeline.note("-e wait=SECONDS", "starts when the first has ended", None, waiting.ended_at - first.ended_at)


def test_a_wait_that_was_too_short(cluster: Cluster) -> None:
    job = detached(cluster, "count.py", "-e", "script_args=100000", ready="line 1")
    waiting = cluster.run("succeeds.py", "-e", "wait=2")
    assert waiting.wait() == 2
    assert re.search(rf"runs job {job}, which \S+ started at", waiting.words)
    assert all(node.scripts(job, "count.py") for node in cluster.nodes)


def test_a_hold_that_a_crash_left_is_void(cluster: Cluster, timeline: Timeline) -> None:
    job = detached(cluster, "count.py", "-e", "script_args=100000", ready="line 1")
    cluster.everywhere(Node.power_off)
    cluster.everywhere(Node.heal)
    cluster.disconnect()
    status = cluster.playbook("status.yml", "-e", "format=json")
    assert status.wait() == 0, status.text
    run = cluster.run("succeeds.py")
    assert run.wait() == 0, run.text
    for node in cluster.nodes:
        assert re.search(rf"{node.name} was still locked by job {job}.*crash or a reboot", run.words)
    again = cluster.run("succeeds.py")
    assert again.wait() == 0, again.text
    assert "was still locked" not in again.words
    timeline.note("every node loses power and comes back", "the next job says whose lock it removed, and runs")


def test_master_port_is_grabbed_between_prepare_and_start(cluster: Cluster, timeline: Timeline) -> None:
    head = cluster.nodes[0]
    head.execute("sh", "-c", "cat > /root/grab.py; nohup python3 /root/grab.py > /root/grab.out 2>&1 &", text=GRAB)
    until(lambda: "watching" in head.execute("cat", "/root/grab.out"), "the grabber waits")
    try:
        at = time.monotonic()
        run = cluster.run("listens.py")
        assert run.wait() == 2
        assert "taken" in head.execute("cat", "/root/grab.out")
        cause = r"rank 0 \(node0\) exited with code 1 after \d+ s: OSError: \[Errno 98\] Address already in use"
        assert re.search(cause, run.words)
        cluster.await_nothing_left(run.job, 5)
        timeline.note_end("MASTER_PORT is taken between prepare and start", run, at, cause)
    finally:
        head.execute("pkill", "-KILL", "-f", "/root/grab.py", check=False)


def interrupted(run: Playbook) -> int:
    run.press_ctrl_c()
    return run.wait()


def test_ctrl_c_before_the_start(cluster: Cluster) -> None:
    job = detached(cluster, "count.py", "-e", "script_args=100000", ready="line 1")
    waiting = cluster.run("succeeds.py", "-e", "wait=60", terminal=True)
    waiting.await_line(rf"waiting for up to 60 s: .*{job}")
    before = cluster.everywhere(Node.jobs)
    assert interrupted(waiting) == 99
    assert cluster.everywhere(Node.jobs) == before
    assert "logs.yml" not in waiting.words, "there is no job to come back to"
