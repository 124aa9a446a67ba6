# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that get no answer: whatever keeps it away, the job goes on, and no line is lost.

pytest tests/chaos/test_polls.py --rounds 20     each way twenty times, on four nodes, with a
                                                 job that prints and with one that trains; a round takes two minutes
"""

import contextlib
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import assert_log_whole, await_lines
from machines import NODE_TIMEOUT_SECONDS, Cluster, Node
from measuring import Timeline
from playbook import Playbook, descendants

QUIET = '{"env": {"TORCH_CPP_LOG_LEVEL": "ERROR"}}'
"""So that the log has the script's lines alone: else torch tells there that the head left first."""
HEARD_SECONDS = 45
"""How long it may take until a node replies again, once it can be: ssh notices, and the pauses have grown."""
SHORT, LONG = 2 * NODE_TIMEOUT_SECONDS, 30
"""How long a fault lasts: longer than the nodes would wait for each other."""


# Each takes a node, the job's id, and how long to go on; it returns when the fault is over.


def agent_killed(node: Node, job: str, _seconds: float) -> None:
    killed = 0
    deadline = time.monotonic() + 20
    while not killed:
        assert time.monotonic() < deadline, f"no agent was seen on {node}"
        killed = node.kill_agents(job)


def sudo_gone(node: Node, job: str, _seconds: float) -> None:
    with node.without("/usr/bin/sudo"):
        time.sleep(SHORT)


def python_gone(node: Node, job: str, _seconds: float) -> None:
    with node.without("/usr/bin/python3"):
        time.sleep(SHORT)


def refused(node: Node, job: str, seconds: float) -> None:
    with node.closed("reject with tcp reset"):
        time.sleep(seconds)


def dropped(node: Node, job: str, seconds: float) -> None:
    with node.closed("drop"):
        time.sleep(seconds)


def counted(node: Node, job: str, seconds: float) -> None:
    """Of the connections that are made anew, three a minute are let in; none is kept."""
    with node.closed("ct state new limit rate over 3/minute burst 3 packets reject with tcp reset"):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            node.end_sessions()
            time.sleep(2)


def sessions_ended(node: Node, job: str, _seconds: float) -> None:
    """Again and again, so that some reply is cut off in its middle."""
    for _time in range(10):
        node.end_sessions()
        time.sleep(random.uniform(0.05, 0.6))


WAYS: dict[str, Callable[[Node, str, float], None]] = {
    "the agent is killed": agent_killed,
    "sudo is gone for 12 s": sudo_gone,
    "Python is gone for 12 s": python_gone,
    "connections are refused": refused,
    "connections are dropped": dropped,
    "a firewall counts new connections": counted,
    "sessions end in the middle of replies": sessions_ended,
}
UNHEARD = (sudo_gone, python_gone, refused, dropped)
"""After these the user is told that the node sent no reply for longer than job_node_timeout_seconds."""


@contextlib.contextmanager
def few_files(run: Playbook) -> Iterator[None]:
    """Let ansible-playbook and its worker open no file more."""
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in [run.process.pid, *workers(run)]}
    for pid, (_soft, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        for pid, both in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, both)


def workers(run: Playbook) -> list[int]:
    """Return the ids of ansible-playbook's own processes, not those of its connections."""
    pids = descendants(run.process.pid)
    return [pid for pid in pids if b"ansible-playbook" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def go_through(cluster: Cluster, script: str, seconds: float) -> dict[str, int]:
    """Have a job, which prints numbered lines, live through each way once; return how often each was tried.

    The order is random, and so are the moments.
    """
    tried = dict.fromkeys([*WAYS, "no file can be opened here for 10 s", "the connections are killed here"], 0)
    run = cluster.run(script, "-e", "logs=all", "-e", "launcher=python", "-e", QUIET)
    await_lines(run, cluster, "line 250$", 120)  # by then the nodes watch over each other; four import torch before
    job = run.job

    def await_all() -> None:
        since = time.monotonic()
        for rank, node in enumerate(cluster.nodes):
            run.await_line(rf"^\[{rank} {node.name}\] +line \d", HEARD_SECONDS, since)

    def suffer(node: Node, ways: list[str]) -> None:
        rank = cluster.nodes.index(node)
        for way in ways:
            time.sleep(random.uniform(0, 3))
            since = time.monotonic()
            WAYS[way](node, job, seconds)
            over = time.monotonic()
            run.await_line(rf"^\[{rank} {node.name}\] +line \d", HEARD_SECONDS, over)
            if WAYS[way] in UNHEARD:
                assert run.first(rf"this machine got no reply from .*\({node.name}\)", since), way
            tried[way] += 1

    with few_files(run):
        time.sleep(NODE_TIMEOUT_SECONDS + 4)
    await_all()
    tried["no file can be opened here for 10 s"] += 1
    assert run.first(r"this machine got no reply from .*Too many open files"), run.text[-2000:]
    assert cluster.kill_connections()
    await_all()
    tried["the connections are killed here"] += 1
    order = random.sample([*WAYS], len(WAYS))
    shares = [order[number :: len(cluster.nodes)] for number in range(len(cluster.nodes))]
    with ThreadPoolExecutor(len(cluster.nodes)) as threads:
        list(threads.map(suffer, cluster.nodes, shares))
    states = [node.state(job)["state"] for node in cluster.nodes]
    assert states == ["running"] * len(cluster.nodes)
    for node in cluster.nodes:
        node.touch(job, "go")
    assert run.wait() == 0, run.text[-3000:]
    assert cluster.record(job)["state"] == "succeeded"
    for rank, node in enumerate(cluster.nodes):
        assert_log_whole(cluster, job, node)
        assert run.printed(rank) == cluster.log(job, node).splitlines()
    assert not re.search(r"(lost|stopped|failed)", "\n".join(rank["state"] for rank in cluster.record(job)["ranks"]))
    return tried


def test_no_failing_poll_ends_a_job(cluster: Cluster, timeline: Timeline) -> None:
    go_through(cluster, "goes_on.py", SHORT)
    timeline.note("a question gets no answer, in nine ways", "the job goes on, and no line is lost")


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Cluster]:
    """Four nodes of their own, with the project's own requirements."""
    made = Cluster([f"node{number}" for number in range(4)], "thunderhead-polls", "198.18.62")
    made.runs = tmp_path / "runs"
    try:
        made.create(reuse=False)
        setup = made.playbook("setup.yml")
        assert setup.wait(900) == 0, setup.text
        yield made
    finally:
        made.heal()
        made.remove()
        made.close()


@pytest.mark.rounds
@pytest.mark.parametrize("script", ["goes_on.py", "trains_on.py"])
def test_rounds(four: Cluster, request: pytest.FixtureRequest, script: str) -> None:
    total: dict[str, int] = {}
    rounds = request.config.getoption("--rounds")
    for number in range(rounds):
        for way, count in go_through(four, script, LONG).items():
            total[way] = total.get(way, 0) + count
        print(f"round {number + 1} of {rounds}: {total}; jobs ended: 0", flush=True)
