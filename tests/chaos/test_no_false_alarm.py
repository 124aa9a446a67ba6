# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to a healthy job's nodes for less than the time-out ends nothing; for an hour with --minutes=60."""

import random
import re
import time
from collections.abc import Callable

import pytest
from jobs import detached
from machines import NODE_TIMEOUT_SECONDS, Cluster, Node, until
from measuring import Timeline
from playbook import Playbook

SHORT_SECONDS = 0.6 * NODE_TIMEOUT_SECONDS
"""Less than a node may be silent."""
HOUR = 3600
FOLLOWER_SECONDS = 60
"""How long a follower lives."""
ALARM = re.compile("lost|stopped|failed(?!=0)|no heartbeat")
"""In what a follower says; Ansible's recap has failed=0."""


def lose_packets(node: Node, _job: str) -> str:
    """Have the network lose most of what a node sends and gets."""
    share = random.choice((50, 80, 99))
    count, seconds = node.lose_packets(share, SHORT_SECONDS)
    assert count, f"{node} lost no packet"
    return f"{node} loses {share} % of its packets, {count} of them, for {seconds:.1f} s"


def stop_supervisor(node: Node, job: str) -> str:
    """Have a supervisor do nothing."""
    pid = node.state(job)["pid"]
    script = f"kill -STOP {pid}; sleep {SHORT_SECONDS}; ps --no-headers -o state {pid}; kill -CONT {pid}"
    began = time.monotonic()
    state = node.execute("sh", "-ec", script).strip()
    assert state == "T", f"the supervisor of {node} was not stopped, but {state}"
    return f"the supervisor of {node} stands still for {time.monotonic() - began:.1f} s or less"


def set_clock(node: Node, _job: str) -> str:
    """Set a node's clock by an hour, either way."""
    seconds = random.choice((-HOUR, HOUR))
    node.set_clock(seconds)
    return f"the clock of {node} is {seconds} s off"


def freeze(node: Node, _job: str) -> str:
    """Freeze a machine."""
    began = time.monotonic()
    node.freeze()
    time.sleep(SHORT_SECONDS)
    node.thaw()
    return f"{node} freezes for {time.monotonic() - began:.1f} s or less"


HAPPENINGS: list[Callable[[Node, str], str]] = [lose_packets, stop_supervisor, set_clock, freeze]


@pytest.mark.alone
def test_what_is_shorter_than_the_time_out_ends_nothing(
    cluster: Cluster, timeline: Timeline, request: pytest.FixtureRequest
) -> None:
    random.seed(0)
    minutes = request.config.getoption("--minutes")
    cluster.everywhere(Node.shift_clocks)
    job = detached(cluster, "computes.py", "-e", "job_rendezvous_timeout_seconds=10", ready="ready")
    deadline = time.monotonic() + 60 * minutes
    followers: list[Playbook] = []
    happened: dict[str, int] = {}
    while time.monotonic() < deadline or len(happened) < len(HAPPENINGS):
        if not followers or time.monotonic() - followers[-1].started_at > FOLLOWER_SECONDS:
            for follower in followers[-1:]:
                follower.kill()
            followers.append(cluster.playbook("logs.yml", "-e", f"job={job}"))
        happening = HAPPENINGS[sum(happened.values()) % len(HAPPENINGS)]
        what = happening(random.choice(cluster.nodes), job)
        happened[happening.__name__] = happened.get(happening.__name__, 0) + 1
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        time.sleep(NODE_TIMEOUT_SECONDS)  # else two short silences are a long one
        states = [node.state(job) for node in cluster.nodes]
        assert all(state["state"] == "running" and "because" not in state for state in states), f"{what}: {states}"
        assert not followers[-1].ended_at, (what, followers[-1].text)
    print(happened, f"{len(followers)} followers")
    for node in cluster.nodes:
        node.touch(job, "go")
        until(lambda node=node: node.state(job)["state"] == "succeeded", f"{node} has succeeded")  # type: ignore[misc]
    assert followers[-1].wait() == 0, followers[-1].text
    alarms = [line.text for one in followers for line in one.lines if ALARM.search(line.text)]
    assert not alarms, alarms
    record = cluster.record(job)
    assert record["state"] == "succeeded", record
    for rank in record["ranks"]:
        assert 0 < rank["seconds"] < HOUR + 60 * minutes, rank
    times = sum(happened.values())
    timeline.note(
        f"for {minutes:g} min, all nodes compute without a word, and every 10 s one loses packets, freezes, its "
        f"supervisor stops, for {SHORT_SECONDS:.1f} s, or its clock is set by an hour ({times} times; "
        f"{len(followers) - 1} followers killed)",
        "the job goes on, and no one says otherwise",
    )
