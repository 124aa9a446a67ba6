# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import datetime
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following import follow_ranks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_ranks import JobFollower
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from local_nodes import (
    APART,
    NO_PYTHON,
    SLEEP,
    Altered,
    Connection,
    LocalNode,
    Unobserving,
    by_rank,
    code,
    gang_of,
    until,
)


class JobObserver(Unobserving):
    """Each rank's log in a folder, and what was shown live."""

    def __init__(self, folder: Path, nodes: list[LocalNode]) -> None:
        super().__init__()
        self.files = {node.host: RankLog(folder / f"{node.host}.log") for node in nodes}
        self.shown: dict[str, bytes] = {node.host: b"" for node in nodes}

    def output(self, node: Node) -> None:
        self.shown[node.host] = self.read(node.host)

    def read(self, host: str) -> bytes:
        return self.files[host].path.read_bytes()


def following(launch: Launch, observer: JobObserver, live: str = "node0") -> JobFollower:
    job = launch.job
    return JobFollower(
        launch.gang,
        observer.files,
        lambda node: node.host in live,
        observer,
        job.node_timeout_seconds,
        job.grace_seconds,
    )


def followed(launch: Launch, observer: JobObserver, live: str = "node0") -> dict[str, RankEnding]:
    endings = following(launch, observer, live).run(lambda: False)
    assert endings is not None
    return endings


def launched(nodes: list[LocalNode], folder: Path, script: str, **changes: Any) -> Launch:
    launch = gang_of(nodes, code(folder / "code", script), **changes)
    launch.prepare()
    launch.start()
    return launch


def in_turn(folder: Path, first: str, later: str, second: str) -> str:
    """Return a script that does ``first`` and ``later`` on rank 0, and ``second`` on rank 1 once ``first`` is done."""
    done = str(folder / "first")
    return by_rank(
        f"{first}\nopen({done!r}, 'x')\n{later}", f"while not os.path.exists({done!r}): time.sleep(0.01)\n{second}"
    )


@pytest.fixture(autouse=True)
def _quiet_ranks_are_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_ranks, "QUIET_SECONDS", 0.05)


@pytest.fixture
def unwatched(nodes: list[LocalNode]) -> list[LocalNode]:
    """Two nodes whose supervisors do not connect to each other: only who follows can end the job on both."""
    for node in nodes:
        node.connection = Altered(*APART)
    return nodes


# ----------------------------------------------------------------------------------------------------------- to its end


def test_success(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(nodes, tmp_path, "import os\nprint(os.environ['NODE_RANK'])")
    observer = JobObserver(tmp_path, nodes)
    endings = followed(launch, observer)
    assert list(endings) == ["node0", "node1"]
    for ending in endings.values():
        assert (ending.state, ending.exit_code, ending.signal, ending.note) == ("succeeded", 0, None, "")
        assert (ending.because, ending.stopping, ending.oom) == ("", None, 0)
    assert [observer.read(node.host) for node in nodes] == [b"0\n", b"1\n"]
    assert observer.shown == {"node0": b"0\n", "node1": b""}


class Counting(Connection):
    """Counts the questions for a log."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        self.count += b'"op": "follow"' in in_data
        return super().exec_command(command, in_data)


@pytest.mark.parametrize("end", ["raise SystemExit(0)", "raise SystemExit(3)"])
def test_a_rank_that_is_not_shown_rests_while_the_head_says_that_it_runs(
    three: list[LocalNode], tmp_path: Path, end: str
) -> None:
    """Its log comes when it has ended, on its own or because of another; nobody is told that it is silent."""
    _shown, resting, last = three
    for node in (resting, last):
        node.connection = Counting()
    prints = "print(1, flush=True); time.sleep(4); print(2, flush=True); "
    launch = launched(three, tmp_path, by_rank("time.sleep(6)", prints + end, "time.sleep(6)"), node_timeout_seconds=2)
    observer, began = JobObserver(tmp_path, three), time.monotonic()
    endings = followed(launch, observer)
    assert endings["node1"].state == ("succeeded" if "(0)" in end else "failed")
    assert time.monotonic() - began < 0.5 * follow_ranks.REST_SECONDS, "who rests is woken"
    assert observer.read("node1") == b"1\n2\n"
    assert [node.connection.count <= 4 for node in (resting, last)] == [True, True]
    assert observer.said == []


ENDS_SLOWLY = (
    "import signal\n"
    "signal.signal(15, lambda *_: (time.sleep(0.5), signal.signal(15, signal.SIG_DFL), os.kill(os.getpid(), 15)))\n"
)
"""Ends half a second after SIGTERM: ``arrived`` counts from each rank's own start, and either may start first."""


@pytest.mark.parametrize("kept", ["nodes", "unwatched"])
def test_the_first_that_fails_ends_the_others(kept: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    both = request.getfixturevalue(kept)
    first = ENDS_SLOWLY + "print('waiting', flush=True)"
    script = in_turn(tmp_path, first, "time.sleep(600)", "time.sleep(0.5); raise SystemExit(7)")
    launch = launched(both, tmp_path, script)
    began, observer = time.monotonic(), JobObserver(tmp_path, both)
    endings = followed(launch, observer)
    assert time.monotonic() - began < 6
    assert list(endings) == ["node0", "node1"]
    assert [(one.state, one.exit_code, one.signal) for one in endings.values()] == [
        ("stopped", 143, 15),
        ("failed", 7, None),
    ]
    assert endings["node0"].because == "rank 1 (node1) exited with code 7"
    assert endings["node0"].stopping is not None and endings["node0"].stopping > 0.4
    assert endings["node1"].arrived < endings["node0"].arrived
    assert endings["node1"].seconds is not None and 0.4 < endings["node1"].seconds < 5
    assert observer.shown == {"node0": b"waiting\n", "node1": b""}


def test_order_of_causes_is_that_of_the_ends_not_of_the_news(unwatched: list[LocalNode], tmp_path: Path) -> None:
    """Rank 0's node answers late."""

    class Late(Altered):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            answer = super().exec_command(command, in_data)
            if b'"op": "follow"' in in_data:
                until(lambda: "ended" in unwatched[1].state())
                time.sleep(0.5)  # for the news of it
            return answer

    unwatched[0].connection = Late(*APART)
    script = in_turn(tmp_path, "", "raise SystemExit(1)", "time.sleep(1); raise SystemExit(2)")
    launch = launched(unwatched, tmp_path, script)
    endings = followed(launch, JobObserver(tmp_path, unwatched))
    assert [endings[host].state for host in ("node0", "node1")] == ["failed", "failed"]
    assert endings["node0"].arrived < endings["node1"].arrived


def test_a_stop_on_request_is_no_failure(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(nodes, tmp_path, SLEEP)
    observer = JobObserver(tmp_path, nodes)
    until(lambda: all(node.state() for node in nodes))
    threading.Timer(0.3, launch.gang.stop, (2,)).start()
    endings = followed(launch, observer)
    assert [(one.state, one.because, one.note) for one in endings.values()] == [("stopped", "", "")] * 2


# ---------------------------------------------------------------------------------------------------------- bad weather


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between retries is a twentieth here."""
    monkeypatch.setattr(follow_ranks, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(follow_ranks, "LONGEST_PAUSE_SECONDS", 0.05)


class EverySecond(Connection):
    """Fails at every second poll: before it is sent, with its reply lost, or with half of its reply."""

    polls = 0

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if b'"op": "follow"' not in in_data:
            return super().exec_command(command, in_data)
        self.polls += 1
        kind = self.polls % 6
        if kind == 1:
            raise AnsibleConnectionFailure("Connection refused")
        code, output, errors = super().exec_command(command, in_data)
        if kind == 3:
            raise AnsibleConnectionFailure("Connection reset by peer")
        if kind == 5:
            return 255, output[: len(output) - 7], b"client_loop: send disconnect: Broken pipe"
        return code, output, errors


@pytest.mark.usefixtures("_impatient")
def test_a_bad_connection_loses_and_repeats_nothing(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_ranks, "CHUNK_BYTES", 997)
    noise = random.Random(3).randbytes(4000)
    project = tmp_path / "code"
    project.mkdir()
    (project / "noise").write_bytes(noise)
    script = (
        "import sys, time\ndata = open('noise', 'rb').read()\n"
        "for start in range(0, len(data), 200):\n"
        "    sys.stdout.buffer.write(data[start:start + 200]); sys.stdout.flush(); time.sleep(0.04)\n"
    )
    for node in nodes:
        node.connection = EverySecond()
    launch = launched(nodes, tmp_path, script)
    observer = JobObserver(tmp_path, nodes)
    endings = followed(launch, observer, live="node0 node1")
    assert [ending.state for ending in endings.values()] == ["succeeded", "succeeded"]
    assert [observer.read(node.host) for node in nodes] == [noise, noise]
    assert [observer.shown[node.host] for node in nodes] == [noise, noise]
    assert all(node.connection.polls > 6 for node in nodes)


class Cut(Connection):
    """Works until ``cut`` is set."""

    cut = False

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if self.cut:
            return 255, b"", b"ssh: connect to host 198.18.0.2 port 22: No route to host\r\n"
        return super().exec_command(command, in_data)


CUT_OFF = "node1 is unreachable: ssh: connect to host 198.18.0.2 port 22: No route to host"
WAITS = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('over')\n"


def let_go(*nodes: LocalNode) -> None:
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()


def cut_at_the_next_poll(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> Cut:
    monkeypatch.setattr(follow_ranks, "POLL_SECONDS", 0.2)
    cut = node.connection = Cut()
    return cut


@pytest.mark.usefixtures("_impatient")
def test_a_node_that_only_this_machine_cannot_reach_is_not_lost(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = cut_at_the_next_poll(nodes[1], monkeypatch)
    launch = launched(nodes, tmp_path, WAITS, node_timeout_seconds=1)
    observer = JobObserver(tmp_path, nodes)
    cut.cut = True

    def mend() -> None:
        until(lambda: observer.said)
        time.sleep(1.5)
        cut.cut = False
        until(lambda: len(observer.said) > 1)
        let_go(*nodes)

    threading.Thread(target=mend).start()
    endings = followed(launch, observer)
    assert [(one.state, one.exit_code) for one in endings.values()] == [("succeeded", 0), ("succeeded", 0)]
    assert observer.said == [
        f"this machine got no reply from rank 1 (node1) for 1 s: {CUT_OFF}. The job still runs, as far as is known; "
        "this machine asks again",
        "rank 1 (node1) replies again",
    ]
    assert observer.read("node1") == b"over\n"


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("live", [1, 2])
def test_who_does_not_know_how_it_ends_says_so(
    live: int, nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only node, or the only one that has not ended."""
    monkeypatch.setattr(follow_ranks, "NO_REPLY_SECONDS", 2)
    monkeypatch.setattr(follow_ranks, "NO_REPLY_TIMES", 2)
    some = [nodes[1]] if live == 1 else nodes
    cut = cut_at_the_next_poll(nodes[1], monkeypatch)
    launch = launched(some, tmp_path, WAITS, node_timeout_seconds=1)
    cut.cut = True
    let_go(*some[:-1])
    began = time.monotonic()
    with pytest.raises(JobError) as caught:
        followed(launch, JobObserver(tmp_path, some))
    assert 2 < time.monotonic() - began < 8
    assert str(caught.value) == (
        f"this machine got no reply from rank {live - 1} (node1) for 2 s: {CUT_OFF}. It is not known "
        "whether the job still runs; to follow it again: ansible-playbook logs.yml -e job=job-1"
    )
    assert nodes[1].state()["state"] == "running"
    cut.cut = False
    let_go(*some)
    again = JobObserver(tmp_path, some)
    assert all(ending.state == "succeeded" for ending in followed(launch, again).values())


@pytest.mark.usefixtures("_impatient")
def test_this_machine_is_cut_off_from_all(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_ranks, "NO_REPLY_SECONDS", 2)
    monkeypatch.setattr(follow_ranks, "NO_REPLY_TIMES", 2)
    cuts = [cut_at_the_next_poll(node, monkeypatch) for node in nodes]
    launch = launched(nodes, tmp_path, WAITS, node_timeout_seconds=1)
    for cut in cuts:
        cut.cut = True
    with pytest.raises(JobError) as caught:
        followed(launch, JobObserver(tmp_path, nodes))
    assert str(caught.value) == (
        f"this machine got no reply from rank 0 (node0), rank 1 (node1) for 2 s: {CUT_OFF.replace('1', '0', 1)}. "
        "The job still runs, as far as is known; to follow it again: ansible-playbook logs.yml -e job=job-1"
    )
    for cut in cuts:
        cut.cut = False
    assert [node.follow(wait_seconds=0)[0]["state"] for node in nodes] == ["running", "running"]


def halt(node: LocalNode) -> None:
    """Have the node's supervisor send no heartbeat any more."""
    pid = node.supervisor()
    assert pid
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_the_others_have_given_up_is_lost(
    victim: int, nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = cut_at_the_next_poll(nodes[victim], monkeypatch)
    launch = launched(nodes, tmp_path, "import time; print(1); time.sleep(600)", node_timeout_seconds=1)
    until(lambda: nodes[1 - victim].state())
    cut.cut = True
    halt(nodes[victim])
    began = time.monotonic()
    endings = followed(launch, JobObserver(tmp_path, nodes))
    assert 1 < time.monotonic() - began < 8
    lost, other = endings[f"node{victim}"], endings[f"node{1 - victim}"]
    head = "" if victim else ", the head,"
    assert (other.state, other.because) == (
        "stopped",
        f"the node of rank {victim} (node{victim}){head} sent no heartbeat for 1 s",
    )
    assert (lost.state, lost.note, lost.unknown) == ("lost", "sent no heartbeat for 1 s", False)
    cut.cut = False


class Frozen(Connection):
    """Answers no poll and no stop until it thaws."""

    def __init__(self) -> None:
        super().__init__()
        self.thaw = threading.Event()

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if b'"op": "follow"' in in_data or b'"op": "stop"' in in_data:
            self.thaw.wait(30)
        return super().exec_command(command, in_data)


def test_a_node_that_freezes_is_lost(nodes: list[LocalNode], tmp_path: Path) -> None:
    frozen = nodes[1].connection = Frozen()
    launch = launched(nodes, tmp_path, "import time; time.sleep(600)", node_timeout_seconds=1)
    until(lambda: nodes[0].state())
    time.sleep(2)
    halt(nodes[1])
    began = time.monotonic()
    endings = followed(launch, JobObserver(tmp_path, nodes))
    assert time.monotonic() - began < 8
    frozen.thaw.set()
    assert [(one.state, one.note) for one in endings.values()] == [
        ("stopped", ""),
        ("lost", "sent no heartbeat for 1 s"),
    ]


def no_files() -> tuple[int, bytes, bytes]:
    raise OSError(24, "Too many open files")


def no_thread() -> tuple[int, bytes, bytes]:
    raise RuntimeError("can't start new thread")


def no_memory() -> tuple[int, bytes, bytes]:
    raise MemoryError


def no_ssh() -> tuple[int, bytes, bytes]:
    raise AnsibleError("Unable to execute ssh command line on a controller due to: Too many open files")


def no_connection() -> tuple[int, bytes, bytes]:
    raise AnsibleConnectionFailure("Failed to connect to the host via ssh: Connection refused")


FORGED = b'{"ok": true, "state": "failed", "offset": 77, "more": false}'


FAILING: list[Callable[[], tuple[int, bytes, bytes]]] = [
    no_files,
    no_thread,
    no_memory,
    no_ssh,
    no_connection,
    lambda: (137, b"", b"Killed"),
    lambda: (-9, b"", b""),
    lambda: (127, b"", b"sh: 1: python3: not found"),
    lambda: (127, b"", b"sh: 1: sudo: not found"),
    lambda: (126, b"", b"sh: 1: sudo: Permission denied"),
    lambda: (1, b"", b"sudo: a password is required"),
    lambda: (0, b"", b""),
    lambda: (0, b"thunderhead-reply 60 0\n" + FORGED, b""),
    lambda: (0, b"thunderhead-reply 60 900\n" + FORGED, b""),
    lambda: (0, b'thunderhead-reply 65 0\n{"ok": false, "refusal": "failed at follow: Too many open files"}', b""),
]


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("count", [1, 2])
def test_no_failing_poll_ends_a_job(
    count: int, nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the nodes' own time-out, the only one or one of two gives no answer, or none that is valid."""
    monkeypatch.setattr(follow_ranks, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(follow_ranks, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(follow_ranks, "LONGEST_PAUSE_SECONDS", 0.1)
    left = [*FAILING]

    class Failing(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "follow"' in in_data:
                if left:
                    return left.pop(0)()
                let_go(*some)
            return super().exec_command(command, in_data)

    some = nodes[-count:]
    some[-1].connection = Failing()
    launch = launched(some, tmp_path, WAITS, node_timeout_seconds=1)
    observer = JobObserver(tmp_path, some)
    endings = followed(launch, observer)
    assert [(one.state, one.exit_code, one.note) for one in endings.values()] == [("succeeded", 0, "")] * count
    assert [observer.read(node.host) for node in some] == [b"over\n"] * count
    assert observer.said[0].startswith(f"this machine got no reply from rank {count - 1} (node1) for 1 s: ")


@pytest.mark.usefixtures("_impatient")
def test_a_thread_that_cannot_be_started_is_started_later(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name == "node1" and len(failures) < 5:
            failures.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    launch = launched(nodes, tmp_path, "print(1)")
    monkeypatch.setattr(threading.Thread, "start", start)
    endings = followed(launch, JobObserver(tmp_path, nodes))
    assert [one.state for one in endings.values()] == ["succeeded", "succeeded"]
    assert len(failures) == 5


def test_asking_again_does_not_hammer(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that counts connections, six in 30 s, lets the seventh in; after that it is used less often."""
    pauses: list[float] = []
    polls: list[float] = []

    class Counting(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "follow"' in in_data:
                polls.append(float(re.findall(rb'"pace_seconds": ([0-9.]+)', in_data)[0]))
                if len(polls) <= 6:
                    raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    nodes[0].connection = Counting()
    launch = launched(nodes[:1], tmp_path, WAITS)
    one = following(launch, JobObserver(tmp_path, nodes[:1]))
    wait = threading.Event.wait

    def paused(event: threading.Event, timeout: float | None = None) -> bool:
        if event is not one._given_up:
            return wait(event, timeout)
        pauses.append(timeout or 0)
        return wait(event, 0)

    monkeypatch.setattr(threading.Event, "wait", paused)
    let_go(nodes[0])
    endings = one.run(lambda: False)
    assert endings is not None and endings["node0"].state == "succeeded"
    assert pauses == [1, 2, 4, 8, 10, 10]
    assert polls == [0, 1, 2, 4, 8, 10, 10]


class Deaf(Connection):
    """Cannot be stopped so many times."""

    times = 1_000_000

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if b'"op": "stop"' in in_data and self.times:
            self.times -= 1
            raise AnsibleConnectionFailure("Connection refused")
        return super().exec_command(command, in_data)


class DeafAndUnwatched(Altered, Deaf):
    pass


@pytest.mark.usefixtures("_impatient")
def test_a_node_that_cannot_be_stopped(
    unwatched: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_ranks, "STOP_SECONDS", 1)
    monkeypatch.setattr(follow_ranks, "NO_REPLY_SECONDS", 8)
    monkeypatch.setattr(follow_ranks, "NO_REPLY_TIMES", 0)
    unwatched[0].connection = DeafAndUnwatched(*APART)
    script = by_rank("time.sleep(600)", "raise SystemExit(1)")
    launch = launched(unwatched, tmp_path, script, grace_seconds=1)
    began, observer = time.monotonic(), JobObserver(tmp_path, unwatched)
    endings = followed(launch, observer)
    assert time.monotonic() - began < 25
    assert (endings["node0"].state, endings["node0"].note, endings["node0"].unknown) == (
        "lost",
        "could not be stopped (node0 is unreachable: Connection refused), and may still run there",
        True,
    )
    assert observer.said == [
        "rank 0 (node0) could not be stopped: node0 is unreachable: Connection refused; this machine tries again"
    ]


@pytest.mark.usefixtures("_impatient")
def test_a_stop_that_failed_is_tried_again(unwatched: list[LocalNode], tmp_path: Path) -> None:
    deaf = unwatched[0].connection = DeafAndUnwatched(*APART)
    deaf.times = 3
    launch = launched(unwatched, tmp_path, by_rank("time.sleep(600)", "raise SystemExit(1)"), grace_seconds=1)
    observer = JobObserver(tmp_path, unwatched)
    endings = followed(launch, observer)
    assert [(one.state, one.unknown) for one in endings.values()] == [("stopped", False), ("failed", False)]
    assert len(observer.said) == 1


def test_what_a_stop_leaves_is_said(unwatched: list[LocalNode], tmp_path: Path) -> None:
    change = ("    left = end_leftovers(request)\n", "    left = [4711]\n")
    unwatched[0].connection = Altered(*APART, change)
    launch = launched(unwatched, tmp_path, by_rank(SLEEP, "raise SystemExit(1)"), grace_seconds=1)
    observer = JobObserver(tmp_path, unwatched)
    followed(launch, observer)
    until(lambda: observer.said)
    assert observer.said == [
        "node0 still runs processes of the job that cannot be ended: 4711; this machine tries again"
    ]


@pytest.mark.usefixtures("_impatient")
def test_a_stop_on_request_that_nobody_confirms_is_none(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = cut_at_the_next_poll(nodes[0], monkeypatch)
    launch = launched(nodes[:1], tmp_path, SLEEP, node_timeout_seconds=1)
    cut.cut = True
    with pytest.raises(JobError) as caught:
        following(launch, JobObserver(tmp_path, nodes[:1])).run(lambda: False, stop=True)
    assert str(caught.value) == (
        f"rank 0 (node0) could not be stopped ({CUT_OFF.replace('1', '0', 1)}), and may still run there. "
        "It is not known whether the job still runs; to stop it: ansible-playbook stop.yml -e job=job-1"
    )
    cut.cut = False
    assert nodes[0].state()["state"] == "running"
    endings = following(launch, JobObserver(tmp_path, nodes[:1])).run(lambda: False, stop=True)
    assert endings is not None and (endings["node0"].state, endings["node0"].because) == ("stopped", "")


def test_a_supervisor_that_was_killed(unwatched: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(unwatched, tmp_path, "import os, time; print(os.getpid()); time.sleep(600)")
    until(lambda: unwatched[1].follow(wait_seconds=0)[1])
    state, data = unwatched[1].follow(wait_seconds=0)
    for pid in (state["pid"], int(data)):
        os.kill(pid, signal.SIGKILL)
    endings = followed(launch, JobObserver(tmp_path, unwatched))
    assert [(one.state, one.exit_code, one.note) for one in endings.values()] == [
        ("stopped", 143, ""),
        ("lost", None, "lost its supervisor process"),
    ]
    assert endings["node0"].because == "rank 1 (node1) lost its supervisor process"


def test_a_job_whose_folder_is_gone(unwatched: list[LocalNode], tmp_path: Path) -> None:
    """Nobody can say any more how it ended there; the others, who would have been ended with it, run on."""
    script = by_rank(WAITS, "pass")
    launch = launched(unwatched, tmp_path, script, node_timeout_seconds=1)
    unwatched[1].wait()
    shutil.rmtree(unwatched[1].job_dir())
    observer = JobObserver(tmp_path, unwatched)
    threading.Timer(3, let_go, unwatched[:1]).start()
    endings = followed(launch, observer)
    assert [(one.state, one.note) for one in endings.values()] == [("succeeded", ""), ("lost", "has no job job-1")]
    assert len(observer.said) == 1


def test_a_script_that_cannot_start_is_said(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    nodes[1].connection = Altered(NO_PYTHON)
    launch.prepare()
    launch.start()
    endings = followed(launch, JobObserver(tmp_path, nodes))
    note = "did not start: No such file or directory: /no/such/python"
    assert [(one.state, one.note) for one in endings.values()] == [("stopped", ""), ("failed", note)]
    assert endings["node0"].because == f"rank 1 (node1) {note}"


def test_a_full_disk_here_is_the_end_of_following(unwatched: list[LocalNode], tmp_path: Path) -> None:
    class Full(RankLog):
        def write(self, data: bytes, offset: int) -> None:
            raise OSError(28, "No space left on device")

    launch = launched(unwatched, tmp_path, SLEEP)
    observer = JobObserver(tmp_path, unwatched)
    observer.files["node1"] = Full(tmp_path / "full.log")
    with pytest.raises(JobError) as caught:
        followed(launch, observer)
    assert str(caught.value) == (
        "the log of rank 1 (node1) cannot be written: [Errno 28] No space left on device. The job still runs; to "
        "follow it again: ansible-playbook logs.yml -e job=job-1"
    )
    assert [node.state()["state"] for node in unwatched] == ["running", "running"]


def test_a_defect_is_seen(nodes: list[LocalNode], tmp_path: Path) -> None:
    class Broken(JobObserver):
        def output(self, node: Node) -> None:
            raise ZeroDivisionError

    launch = launched(nodes, tmp_path, "print(1)")
    with pytest.raises(ZeroDivisionError):
        followed(launch, Broken(tmp_path, nodes))


def test_what_the_controller_holds_is_bounded(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_ranks, "CHUNK_BYTES", 10_000)
    sizes = []

    write = RankLog.write

    def measured(log: RankLog, data: bytes, offset: int) -> None:
        sizes.append(len(data))
        write(log, data, offset)

    monkeypatch.setattr(RankLog, "write", measured)
    launch = launched(nodes, tmp_path, "print('x' * 199_999)")
    observer = JobObserver(tmp_path, nodes)
    followed(launch, observer)
    assert max(sizes) <= 10_000
    assert [len(observer.read(node.host)) for node in nodes] == [200_000, 200_000]


# ----------------------------------------------------------------------------------------- given up, and taken up again


def test_who_gives_up_leaves_the_job_alone(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(nodes, tmp_path, SLEEP)
    observer = JobObserver(tmp_path, nodes)
    assert following(launch, observer).run(lambda: b"ready" in observer.shown["node0"]) is None
    assert [node.follow(wait_seconds=0)[0]["state"] for node in nodes] == ["running", "running"]


def test_who_has_given_up_writes_nothing_any_more(nodes: list[LocalNode], tmp_path: Path) -> None:
    """What comes later must be there for the next who follows, and was not shown to anybody."""
    answered = threading.Event()

    class Slow(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            answer = super().exec_command(command, in_data)
            if b'"op": "follow"' in in_data and b"later" in answer[1]:
                given_up.wait(10)
                answered.set()
            return answer

    given_up = threading.Event()
    nodes[0].connection = Slow()
    script = (
        "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('later')\n" + SLEEP
    )
    launch = launched(nodes, tmp_path, script)
    observer = JobObserver(tmp_path, nodes)

    def interrupted() -> bool:
        if observer.shown["node0"] and not given_up.is_set():
            (nodes[0].job_dir() / "work" / "go").touch()
            until(lambda: b"later" in (nodes[0].job_dir() / "log").read_bytes())
            time.sleep(0.5)  # for the poll to have it
            return True
        return False

    one = following(launch, observer)
    assert one.run(interrupted) is None
    threads = [thread for thread in threading.enumerate() if thread.name == "node0"]
    given_up.set()
    assert answered.wait(10)
    for thread in threads:
        thread.join(10)
    assert observer.read("node0") == observer.shown["node0"] == b"first\n"


def test_the_next_goes_on_at_the_offset_of_the_last(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('then')\n"
    launch = launched(nodes, tmp_path, script)
    observer = JobObserver(tmp_path, nodes)
    live = "node0 node1"
    assert following(launch, observer, live).run(lambda: all(observer.shown.values())) is None
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()
    again = JobObserver(tmp_path, nodes)
    endings = followed(launch, again, live)
    assert [one.state for one in endings.values()] == ["succeeded", "succeeded"]
    assert again.shown == {node.host: b"first\nthen\n" for node in nodes}
    assert [again.read(node.host) for node in nodes] == [b"first\nthen\n"] * 2


def test_a_job_that_has_ended_is_followed_too(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Arrived is when it ended, not when that was heard of."""
    ended_at = datetime.datetime.now().astimezone() - datetime.timedelta(seconds=2)
    first = ENDS_SLOWLY + "print(0, flush=True)"
    script = in_turn(tmp_path, first, "time.sleep(600)", "time.sleep(0.4); raise SystemExit(3)")
    launch = launched(nodes, tmp_path, script, start=ended_at.isoformat(timespec="seconds"))
    for node in nodes:
        node.wait()
    observer = JobObserver(tmp_path, nodes)
    before = time.monotonic()
    endings = followed(launch, observer)
    assert [(one.state, one.exit_code) for one in endings.values()] == [("stopped", 143), ("failed", 3)]
    assert endings["node1"].arrived < endings["node0"].arrived < before
    assert endings["node0"].because == "rank 1 (node1) exited with code 3"
    assert observer.shown["node0"] == b"0\n"


def test_several_may_follow_a_job_at_once(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import time\nfor n in range(30):\n    print(n)\n    time.sleep(0.02)\n"
    launch = launched(nodes, tmp_path, script)
    expected = b"".join(b"%d\n" % n for n in range(30))
    onlookers = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        onlookers.append(JobObserver(tmp_path / str(number), nodes))
    threads = [threading.Thread(target=followed, args=(launch, one, "node0 node1")) for one in onlookers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in onlookers:
        assert one.shown == {"node0": expected, "node1": expected}
        assert one.read("node0") == expected


def test_a_node_that_answers_late_is_no_silent_one(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Whoever shows must not block; even so, a poll that took long counts as a heartbeat when it comes."""
    waits: Callable[[], bool] = lambda: False  # noqa: E731
    launch = launched(nodes, tmp_path, "import time\nfor n in range(60):\n    print(n)\n    time.sleep(0.05)")
    endings = following(launch, JobObserver(tmp_path, nodes), "node0 node1").run(waits)
    assert endings is not None
    assert [(one.state, one.note) for one in endings.values()] == [("succeeded", ""), ("succeeded", "")]
