# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rank, a unit, a machine, a cable: what breaks while a job runs. Whether somebody looks on makes no difference."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from jobs import ALIKE_SECONDS, END_SECONDS, assert_log_whole, await_lines, counting
from machines import GRACE_SECONDS, NODE_TIMEOUT_SECONDS, Cluster, Node
from measuring import Timeline
from playbook import Playbook

VANISHED = r"(lost|sent no heartbeat|unreachable)"


@dataclass(frozen=True)
class Fault:
    """What breaks, and what comes of it.

    Attributes:
        what: for the table.
        victim: the rank that it happens to.
        strike: does it, to the victim's node and a job.
        cause: a pattern of what the user is told.
        vanishes: the node cannot say anything itself after that, or not at once.
        script: that runs meanwhile.
        alone: no other test may run: the kernel counts for all containers together how often memory ran out.
    """

    what: str
    victim: int
    strike: Callable[[Node, str], Any]
    cause: str
    vanishes: bool = False
    script: str = "raises.py"
    alone: bool = False


def run_out_of_memory(node: Node, job: str) -> None:
    node.execute("systemctl", "set-property", "--runtime", f"thunderhead-{job}.scope", "MemoryMax=64M")
    node.touch(job, "go")


def freeze(node: Node, _job: str) -> None:
    node.freeze()


def power_off(node: Node, _job: str) -> None:
    node.power_off()


def cut(node: Node, _job: str) -> None:
    node.cut()


def reboot(node: Node, _job: str) -> None:
    node.reboot()


def how(reason: str) -> str:
    """Return a reason without what may differ: that a supervisor is dead is known by a refusal, or by its silence."""
    said = re.sub(rf"{VANISHED}.*", "vanished", reason)
    return said.removeprefix("the node of ").replace(", the head,", "")


def named(rank: int, what: str) -> str:
    return rf"(the node of )?rank {rank} \(node{rank}\)(, the head,)? {what}"


FAULTS = [
    Fault(
        "a rank is killed (SIGKILL)",
        1,
        lambda node, job: node.kill_processes(job, "raises.py"),
        named(1, r"was killed by SIGKILL after \d+ s"),
    ),
    Fault(
        "a rank raises an exception",
        2,
        lambda node, job: node.touch(job, "go"),
        named(2, r"exited with code 1 after \d+ s: RuntimeError: deliberate, on rank 2"),
    ),
    Fault(
        "a rank runs out of memory",
        1,
        run_out_of_memory,
        named(1, ".*memory"),
        script="greedy.py",
        alone=True,
    ),
    Fault(
        "a node's whole unit is killed, its supervisor too",
        1,
        Node.kill_unit,
        named(1, VANISHED),
        vanishes=True,
    ),
    Fault(
        "the head's whole unit is killed, its supervisor too",
        0,
        Node.kill_unit,
        named(0, VANISHED),
        vanishes=True,
    ),
    Fault("the head freezes (docker pause)", 0, freeze, named(0, VANISHED), vanishes=True),
    Fault("a node freezes (docker pause)", 1, freeze, named(1, VANISHED), vanishes=True),
    Fault("the head loses power (docker kill)", 0, power_off, named(0, VANISHED), vanishes=True),
    Fault("a node loses power (docker kill)", 1, power_off, named(1, VANISHED), vanishes=True),
    Fault("a node is cut off the network", 1, cut, named(1, VANISHED), vanishes=True),
    Fault("a node reboots", 1, reboot, named(1, ""), vanishes=True),
]


@dataclass
class Course:
    """How a job ended.

    Attributes:
        job: its id.
        states: of the ranks whose nodes stay, with the reasons that these give.
        reason: one of these as it stands.
        seconds: from the fault to the last of these ends, by the nodes' clock.
        record: job.json, in the end.
        run: run.yml, or logs.yml where nobody followed.
    """

    job: str
    run: Playbook
    states: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    record: dict[str, Any] = field(default_factory=dict)


def course_of(cluster: Cluster, fault: Fault, timeline: Timeline, follows: bool) -> Course:
    """Run a job, break something, and return what came of it."""
    run = cluster.run(fault.script, "-e", f"script_args={fault.victim}", "-e", "logs=all" if follows else "detach=true")
    if follows:
        await_lines(run, cluster, "ready")
    else:
        assert run.wait() == 0, run.text
    found, node = Course(run.job, run), cluster.nodes[fault.victim]
    cluster.everywhere(lambda one: one.await_log(found.job, "ready"))
    others = [other for other in cluster.nodes if other is not node] if fault.vanishes else cluster.nodes
    at, struck = time.monotonic(), time.time()
    fault.strike(node, found.job)
    bound = NODE_TIMEOUT_SECONDS + GRACE_SECONDS + END_SECONDS
    cluster.await_nothing_left(found.job, bound, others)
    ends = [other.state(found.job) for other in others]
    found.states = [(end["state"], how(end.get("because", ""))) for end in ends]
    found.reason = next(end["because"] for end in ends if end.get("because"))
    found.seconds = max(end["ended"] for end in ends) - struck
    if follows:
        assert run.wait() == 2, run.text
        timeline.note_end(fault.what, run, at, fault.cause)
    node.heal()
    cluster.await_nothing_left(found.job, bound, [node])  # one that was away finds out that it was given up
    if node not in others:
        cluster.disconnect()
    if not follows:
        found.run = cluster.playbook("logs.yml", "-e", f"job={found.job}")
        assert found.run.wait() == 2, found.run.text
    found.record = cluster.record(found.job)
    return found


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            one,
            id=re.sub(r" \(.*|,.*|'", "", one.what).replace(" ", "-"),
            marks=[pytest.mark.alone] if one.alone else [],
        )
        for one in FAULTS
    ],
)
def test_a_fault(cluster: Cluster, timeline: Timeline, fault: Fault) -> None:
    followed = course_of(cluster, fault, timeline, follows=True)
    alone = course_of(cluster, fault, timeline, follows=False)
    assert followed.states == alone.states
    assert abs(followed.seconds - alone.seconds) < ALIKE_SECONDS, (followed.seconds, alone.seconds)
    for course in (followed, alone):
        assert course.record["state"] == "failed"
        assert re.match(fault.cause, course.record["cause"]), course.record["cause"]
        assert re.search(fault.cause, course.run.words)
        states = [rank["state"] for rank in course.record["ranks"]]
        assert [state for rank, state in enumerate(states) if rank != fault.victim] == ["stopped", "stopped"]
        assert not re.search(r"rank \d+ \(node\d+\)", re.sub(named(fault.victim, ""), "", course.record["cause"]))
    timeline.note(f"{fault.what}, while nobody follows the job", alone.reason, None, alone.seconds)


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


def test_a_script_that_ignores_sigterm(cluster: Cluster, timeline: Timeline) -> None:
    run = cluster.run("ignores_sigterm.py", "-e", "logs=all")
    await_lines(run, cluster, "deaf")
    job, at = run.job, time.monotonic()
    cluster.nodes[1].kill_processes(job, "ignores_sigterm.py")
    assert run.wait() == 2
    assert run.ended_at - at < END_SECONDS + GRACE_SECONDS
    cluster.await_nothing_left(job, END_SECONDS)
    timeline.note_end("a rank is killed, and the others ignore SIGTERM", run, at, r"rank 1 \(node1\) was killed")
