# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import observe_script
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
    FileReadObserver,
    RendezvousObserver,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings
from local_nodes import Altered, LocalNode, by_rank, code, free_port, gang_of, until

LISTENS = """\
import os, socket, time
store = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
store.listen()
meeting = store.accept()
"""
CONNECTS = """\
import os, socket, time
while True:
    try:
        store = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        break
    except OSError:
        time.sleep(0.02)
"""
IMPORTS = "import time; time.sleep(1.2)\n"  # torch takes longer
STAYS = "time.sleep(0.6)\n"
ALONE = "time.sleep(0.5)\n"
# As much of torchrun as is seen from outside: its agents meet at MASTER_PORT whatever the script does.
AGENT = f"""\
import os, socket, subprocess, sys, threading, time
def serve():
    store = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
    while True:
        threading.Thread(target=lambda client: (client.recv(1), client.close()), args=store.accept()[:1]).start()
rank = int(os.environ["NODE_RANK"])
if rank == 0:
    threading.Thread(target=serve, daemon=True).start()
{CONNECTS}
code = subprocess.run([sys.executable, sys.argv[-1]]).returncode
if rank == 0:
    time.sleep(1)  # the last agent to leave holds the store
os._exit(code)
"""


ALWAYS_KNOWN = ("GAP_SHARE = 0.1", "GAP_SHARE = 1")
"""A change by which a busy machine, where looks are late, does not leave it unknown whether short scripts met."""


def ended(launch: Any, nodes: list[LocalNode]) -> list[Any]:
    """Run a launch to its end, and return whether each node's rank met the others, as state.json says."""
    for node in nodes:
        node.connection = Altered(ALWAYS_KNOWN)
    launch.prepare()
    launch.start()
    for node in nodes:
        state, log = node.wait()
        assert state["state"] == "succeeded", log
    return [node.state().get("met") for node in nodes]


def together(launcher: str, met: list[Any]) -> bool | None:
    """Return what the controller makes of it."""
    return job_warnings.met({"launcher": launcher}, [(f"node{rank}", {"met": one}) for rank, one in enumerate(met)])


@pytest.mark.parametrize(
    ("scripts", "met"),
    [
        ((LISTENS + STAYS, CONNECTS + STAYS), True),
        ((LISTENS.replace('(os.environ["MASTER_ADDR"]', '(""') + STAYS, CONNECTS + STAYS), True),
        ((IMPORTS + LISTENS + "time.sleep(0.2)", IMPORTS + CONNECTS), True),  # and gone
        ((ALONE, ALONE), False),
        (("", ""), False),
        ((f"{LISTENS.replace('meeting = store.accept()', '')}{STAYS}", ALONE), False),
    ],
    ids=["together", "any address", "for a moment", "alone", "gone at once", "one alone"],
)
def test_ranks_that_meet(nodes: list[LocalNode], tmp_path: Path, scripts: tuple[str, str], met: bool) -> None:
    """What a script did is seen in the kernel's sockets; both nodes share them here, as in the demo."""
    found = ended(gang_of(nodes, code(tmp_path / "code", by_rank(*scripts))), nodes)
    assert together("lightning", found) is met, found


@pytest.mark.parametrize(
    ("script", "met"),
    [
        (IMPORTS + CONNECTS + STAYS, True),  # one that is closed at once may be gone before it is seen whose it is
        (IMPORTS, False),
    ],
)
def test_torchruns_agents_do_not_count(nodes: list[LocalNode], tmp_path: Path, script: str, met: bool) -> None:
    package = tmp_path / "code" / "torch" / "distributed"
    package.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py"):
        (package / name).write_text("")
    (package / "run.py").write_text(AGENT)
    found = ended(gang_of(nodes, code(tmp_path / "code", script), launcher="torchrun"), nodes)
    assert together("torchrun", found) is met, found


def test_a_rank_that_meets_nobody_yet_is_told_in_time(nodes: list[LocalNode], tmp_path: Path) -> None:
    for node in nodes:
        node.connection = Altered(("NOTICE_SECONDS = 45", "NOTICE_SECONDS = 0.3"), ALWAYS_KNOWN)
    wait = "while not os.path.exists(os.path.join(os.environ['JOB_DIR'], 'work', 'go')): time.sleep(0.01)\n"
    launch = gang_of(nodes, code(tmp_path / "code", by_rank(wait + LISTENS + STAYS, wait + CONNECTS + STAYS)))
    launch.prepare()
    launch.start()
    until(lambda: [node.state().get("met") for node in nodes] == [False, False])
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()
    until(lambda: [node.state().get("met") for node in nodes] == [True, True])
    assert [node.wait()[0]["met"] for node in nodes] == [True, True]


def test_what_was_said_not_to_have_met_is_taken_back_where_that_is_not_known(
    nodes: list[LocalNode], tmp_path: Path
) -> None:
    late = tmp_path / "late"
    for node in nodes:
        node.connection = Altered(
            ("NOTICE_SECONDS = 45", "NOTICE_SECONDS = 0.3"), ("self._gap <=", f"9 * os.path.exists({str(late)!r}) <=")
        )
    wait = "while not os.path.exists(os.path.join(os.environ['JOB_DIR'], 'work', 'go')): time.sleep(0.01)\n"
    launch = gang_of(nodes, code(tmp_path / "code", f"import os, time\n{wait}"))
    launch.prepare()
    launch.start()
    until(lambda: [node.state().get("met") for node in nodes] == [False, False])
    late.touch()
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()
    ended_as = [node.wait()[0] for node in nodes]
    assert [(one["state"], one["met"]) for one in ended_as] == [("succeeded", None)] * 2
    assert together("lightning", [one["met"] for one in ended_as]) is None
    gang = nodes[0].job_dir() / "gang.json"  # the head hears of the other's end after that is written down there
    until(lambda: [one["met"] for one in json.loads(gang.read_text())["ranks"]] == [None, None])


def test_nobody_is_looked_for_where_nodes_work_for_themselves(nodes: list[LocalNode], tmp_path: Path) -> None:
    """S2."""
    assert ended(gang_of(nodes, code(tmp_path / "code", ""), gang=False), nodes) == [None, None]


def test_one_node_meets_nobody(node: LocalNode, tmp_path: Path) -> None:
    assert "met" not in node.run("pass", tmp_path / "code")[0]


@pytest.fixture
def store() -> Iterator[socket.socket]:
    with socket.create_server(("::", free_port()), family=socket.AF_INET6, dualstack_ipv6=True) as one:
        yield one


def test_only_the_jobs_own_sockets_count(store: socket.socket) -> None:
    """Those of processes below this one: it looks as a supervisor does."""
    port = store.getsockname()[1]
    one = RendezvousObserver(port, False, os.getpid())
    with socket.create_connection(("127.0.0.1", port)):
        connects = f"import socket, sys; s = socket.create_connection(('::1', {port})); sys.stdin.read()"
        for begun in (False, True):
            script = subprocess.Popen([sys.executable, "-c", connects if begun else "input()"], stdin=subprocess.PIPE)
            try:
                deadline = time.monotonic() + (10 if begun else 1.5)
                while not one.seen and time.monotonic() < deadline:
                    one.update()
                    time.sleep(0.02)
                assert one.seen is begun
            finally:
                script.communicate(b"\n")


OPENS = "import socket, sys\nheld = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for line in sys.stdin]"


@pytest.fixture
def opens(store: socket.socket) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a process below this one that opens a connection whenever it reads a line."""
    started = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", OPENS, str(store.getsockname()[1])]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0))
        return started[-1]

    yield start
    for process in started:
        process.communicate()


def connect(process: subprocess.Popen[bytes], one: RendezvousObserver) -> None:
    """Have it open a connection."""
    before = len(one._read_table()[0])
    process.stdin.write(b"\n")  # type: ignore[union-attr]
    until(lambda: len(one._read_table()[0]) > before)


def update(one: RendezvousObserver, counts: bool) -> None:
    """Look now, and at which processes there are only if that is asked for, or needed."""
    one._next, one._next_count = 0, 0 if counts else time.monotonic() + 60
    one.update()


def test_a_connection_of_a_process_that_is_not_counted_yet_is_no_strangers(
    store: socket.socket, opens: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Torchrun opens a connection of its own while the script that it just started has one."""
    agent = opens()
    one = RendezvousObserver(store.getsockname()[1], False, agent.pid)
    connect(agent, one)
    update(one, counts=True)
    script = opens()
    connect(script, one)
    connect(agent, one)
    update(one, counts=False)
    assert one.seen


def test_a_connection_that_ends_while_it_is_looked_whose_it_is(
    store: socket.socket, opens: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a stranger's, as no process was seen to have it."""
    for launcher in (None, 1):  # torchrun's agents have short connections of their own
        one = RendezvousObserver(store.getsockname()[1], False, launcher)
        update(one, counts=True)
        script = opens()
        connect(script, one)
        one._pids = [os.getpid()]  # which has another socket

        def descendants(_pid: int, script: subprocess.Popen[bytes] = script) -> list[int]:
            script.communicate()
            return [os.getpid()]

        monkeypatch.setattr(observe_script, "descendants", descendants)
        update(one, counts=False)
        assert not one.seen
        one.update(last=True)
        assert one.seen is (launcher is None)


def test_a_look_every_twentieth_of_a_second_is_too_seldom(store: socket.socket) -> None:
    """A script that only reduces a number is connected for 45 ms, and who closes last keeps no trace of it."""
    one = RendezvousObserver(store.getsockname()[1], True, None)
    update(one, counts=True)
    assert one.pause <= 0.02
    one._pids = [os.getpid()]
    update(one, counts=False)
    assert (one.seen, one.pause) == (True, float("inf"))


def test_connections_of_torchruns_here_are_not_the_scripts(
    store: socket.socket, opens: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """Neither this node's nor those of other nodes on this machine, whose processes are not below this one."""
    agent = opens()
    one = RendezvousObserver(store.getsockname()[1], False, agent.pid)
    with contextlib.ExitStack() as elsewhere:
        for _time in range(3):
            elsewhere.enter_context(socket.create_connection(("127.0.0.1", store.getsockname()[1])))
            connect(agent, one)
            update(one, counts=True)
    agent.communicate()
    one.update(last=True)
    assert not one.seen


@pytest.mark.parametrize("launcher", [None, 1])
def test_what_was_there_before_the_job_is_no_sign_of_it(store: socket.socket, launcher: int | None) -> None:
    """What came and went between two looks is."""
    port = store.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        pass
    late = RendezvousObserver(port, False, launcher)
    late.update(last=True)
    assert not late.seen  # a script that ends before the first look is too short to import torch
    time.sleep(observe_script.FIRST_SECONDS)
    late.update()
    late.update(last=True)
    assert not late.seen
    with socket.create_connection(("127.0.0.1", port)):
        pass
    late.update(last=True)
    assert late.seen


def test_the_table_is_read_for_new_tcp_sockets_only(store: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's processes have others, which used up what looking may take before the ranks met on a busy machine."""
    one = RendezvousObserver(free_port(), False, None)
    update(one, counts=True)
    reads = []

    def read_table() -> tuple[list[tuple[str, str, str]], set[str]]:
        reads.append(time.monotonic())
        return RendezvousObserver._read_table(one)

    monkeypatch.setattr(one, "_read_table", read_table)
    one._pids = [os.getpid()]
    with contextlib.ExitStack() as held:
        for _time in range(20):
            for other in (*socket.socketpair(), socket.socket(type=socket.SOCK_DGRAM)):
                held.enter_context(other)
            update(one, counts=False)
    assert len(reads) <= 1, "for those that this process has, the store among them"
    with socket.socket():
        for _time in range(20):
            update(one, counts=False)
    assert 1 < len(reads) <= 1 + 6, "it may yet listen or connect"


@pytest.mark.parametrize(
    ("look_seconds", "gap_seconds", "known"),
    [
        (0.0003, 0, [False] * 5),
        (0.028, 0, [False, None, None, False, False]),  # on a node with 1,500 processes
        (0.0003, 5, [False, None, None, False, False]),  # a machine that stood still
    ],
)
def test_what_is_looked_for_too_seldom_is_not_known(
    monkeypatch: pytest.MonkeyPatch, look_seconds: float, gap_seconds: float, known: list[bool | None]
) -> None:
    """Nor is it forgotten when it is looked for often again. After 2, 15, 30, 90 and 300 s."""
    now = spent = 0.0
    clocks = SimpleNamespace(monotonic=lambda: now, process_time=lambda: spent)
    monkeypatch.setattr(observe_script, "time", clocks)

    def takes_part(_now: float) -> bool:
        nonlocal spent
        spent += look_seconds
        return False

    one = RendezvousObserver(29500, True, None)
    monkeypatch.setattr(one, "_takes_part", takes_part)
    found = []
    for seconds in (2, 15, 30, 90, 300):
        while now < seconds:
            now = min(now + max(one.pause, gap_seconds if 5 < now < 7 else 0, 0.001), seconds)
            one.update()
        found.append(one.seen)
    assert found == known
    assert spent < 0.25 + 0.004 * 300 + look_seconds


def test_looking_costs_little(store: socket.socket) -> None:
    """Under half a percent of a core, beside what it may take at first, where sockets are opened all the time."""
    one = RendezvousObserver(store.getsockname()[1], False, None)
    one._spent = observe_script.CREDIT_SECONDS
    opens = "import socket, time\nheld = []\nwhile True: held.append(socket.socket()); time.sleep(0.05)"
    script = subprocess.Popen([sys.executable, "-c", opens])
    began = time.monotonic()
    while time.monotonic() < began + 5:
        one.update()
        time.sleep(0.1)
    script.kill()
    script.wait()
    assert 0 < one._spent - observe_script.CREDIT_SECONDS < 5 * 0.005 + 0.01  # the last look of all


# ------------------------------------------------------------------------------------------------------- the checkpoint


@pytest.mark.parametrize(
    ("script", "read"),
    [
        ("open(os.environ['CKPT_PATH']).close()", True),
        ("os.path.exists(os.environ['CKPT_PATH'])", False),
        ("import subprocess; subprocess.run(['cat', os.environ['CKPT_PATH']])", True),
    ],
)
def test_whether_the_checkpoint_was_read(node: LocalNode, tmp_path: Path, script: str, read: bool) -> None:
    """That a job goes on is said only of a script that reads what it is given."""
    launch = gang_of([node], code(tmp_path / "code", f"import os\n{script}"), checkpoint="last one.ckpt")
    launch.prepare()
    (node.job_dir() / "work" / "last one.ckpt").write_text("x")
    launch.start()
    assert node.wait()[0]["checkpoint_read"] is read


def test_a_file_that_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileReadObserver(os.fsencode(tmp_path / "none"))


def test_without_a_checkpoint_nothing_is_said_of_it(node: LocalNode, tmp_path: Path) -> None:
    assert "checkpoint_read" not in node.run("pass", tmp_path / "code")[0]
