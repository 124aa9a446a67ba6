# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody looks on: the nodes end the job together all the same."""

import re
import time

import pytest
from jobs import END_SECONDS, detached
from machines import GRACE_SECONDS, NODE_TIMEOUT_SECONDS, Cluster, Node
from measuring import Timeline


def test_a_rank_dies_while_nobody_looks_on(cluster: Cluster, timeline: Timeline) -> None:
    job = detached(cluster, "raises.py", "-e", "script_args=1", ready="ready")
    cluster.nodes[1].touch(job, "go")
    at = time.monotonic()
    cluster.await_nothing_left(job, GRACE_SECONDS + END_SECONDS)
    ended = time.monotonic() - at
    states = [node.state(job) for node in cluster.nodes]
    assert [state["state"] for state in states] == ["stopped", "failed", "stopped"]
    assert all(re.search(r"rank 1 \(node1\) exited with code 1", states[rank]["because"]) for rank in (0, 2))
    timeline.note("a rank raises while the job is detached", states[0]["because"], None, ended)
    # Who asks afterwards is told the cause, not the victims.
    logs = cluster.playbook("logs.yml", "-e", f"job={job}")
    assert logs.wait() == 2
    assert re.search(r"rank 1 \(node1\) exited with code 1 after \d+ s: RuntimeError: deliberate", logs.words)
    assert cluster.record(job)["state"] == "failed"


def test_a_unit_is_killed_while_nobody_looks_on(cluster: Cluster, timeline: Timeline) -> None:
    job = detached(cluster, "raises.py", "-e", "script_args=none", ready="ready")
    cluster.nodes[0].kill_unit(job)
    at = time.monotonic()
    cluster.await_nothing_left(job, NODE_TIMEOUT_SECONDS + GRACE_SECONDS + END_SECONDS)
    ended = time.monotonic() - at
    states = [node.state(job) for node in cluster.nodes]
    assert [states[rank]["state"] for rank in (1, 2)] == ["stopped", "stopped"]
    assert all("node0" in states[rank]["because"] for rank in (1, 2))
    timeline.note("the head's unit is killed while the job is detached", states[1]["because"], None, ended)


@pytest.mark.parametrize(
    ("victim", "fault", "strike"),
    [
        (0, "the head freezes while the job is detached", Node.freeze),
        (1, "a node is cut off while the job is detached", Node.cut),
    ],
    ids=["frozen-head", "cut-node"],
)
def test_a_node_vanishes_while_nobody_looks_on(
    cluster: Cluster, timeline: Timeline, victim: int, fault: str, strike: object
) -> None:
    job = detached(cluster, "raises.py", "-e", "script_args=none", ready="ready")
    node = cluster.nodes[victim]
    others = [other for other in cluster.nodes if other is not node]
    assert callable(strike)
    strike(node)
    at = time.monotonic()
    cluster.await_nothing_left(job, NODE_TIMEOUT_SECONDS + GRACE_SECONDS + END_SECONDS, others)
    ended = time.monotonic() - at
    states = [other.state(job) for other in others]
    assert [state["state"] for state in states] == ["stopped", "stopped"]
    assert all(node.name in state["because"] for state in states)
    timeline.note(fault, states[0]["because"], None, ended)
    node.heal()
    cluster.await_nothing_left(job, NODE_TIMEOUT_SECONDS + GRACE_SECONDS + END_SECONDS)
    assert node.state(job)["state"] in ("stopped", "failed")
