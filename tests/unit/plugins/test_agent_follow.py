# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_nodes import SLEEP, Altered, LocalNode, as_root, code, node_of_nobody, until


def test_the_log_from_any_offset_in_any_pieces(node: LocalNode, tmp_path: Path) -> None:
    node.run("print('0123456789' * 10, end='')", tmp_path / "code")
    whole, offset, polls = b"", 0, 0
    more = True
    while more:
        reply, data = node.follow(offset, max_bytes=33)
        assert reply["offset"] == offset + len(data)
        whole, offset, more, polls = whole + data, reply["offset"], reply["more"], polls + 1
    assert (whole, polls) == (b"0123456789" * 10, 4)
    assert node.follow(95)[1] == b"56789"
    assert node.follow(100)[1] == b""


def test_a_poll_waits_for_news(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('news')\ntime.sleep(600)"
    )
    node.start(code(tmp_path / "code", script))
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=0.5)
    assert (reply["state"], reply["offset"], reply["more"], data) == ("running", 0, False, b"")
    assert time.monotonic() - began >= 0.5
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=30)
    assert (reply["state"], data) == ("running", b"news\n")
    assert time.monotonic() - began < 10


def test_a_poll_gathers_what_comes_in_quick_succession(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import time\nfor n in range(100):\n  print(n)\n  time.sleep(0.02)"))
    _reply, data = node.follow(wait_seconds=30, linger_seconds=0.5)
    assert 10 < data.count(b"\n") < 60


def test_a_quiet_poll_waits_for_much_or_for_the_end(node: LocalNode, tmp_path: Path) -> None:
    script = "import pathlib, time\nprint('x' * 99)\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    node.start(code(tmp_path / "code", script))
    until(lambda: node.follow(wait_seconds=0)[1])
    began = time.monotonic()
    assert node.follow(wait_seconds=30, quiet=True, max_bytes=50)[1] == b"x" * 50, "enough has gathered"
    assert time.monotonic() - began < 10
    assert len(node.follow(wait_seconds=0.5, quiet=True, max_bytes=1000)[1]) == 100
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    assert node.follow(100, wait_seconds=30, quiet=True)[0]["state"] == "succeeded"
    assert time.monotonic() - began < 10


def test_a_supervisor_that_vanished_is_a_lost_job(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP))
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    reply, data = node.follow(wait_seconds=0)
    os.kill(reply["pid"], signal.SIGKILL)
    os.kill(int(data.split()[0]), signal.SIGKILL)
    state, log = node.wait()
    assert state["state"] == "lost"
    assert log.endswith("ready\n")


# Does something to its own log, and goes on to print until it is told to end.
SPOILS = """\
import os, time
log = os.path.join(os.environ["JOB_DIR"], "log")
print("before")
while not os.path.exists("spoil"): time.sleep(0.01)
{}
print("after")
open("spoilt", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
print("the end")
"""
SPOILT = {
    "pipe": ("os.unlink(log); os.mkfifo(log)", "Not a regular file: {log}"),
    "link": ("os.unlink(log); os.symlink('/dev/zero', log)", "Too many levels of symbolic links: {log}"),
    "folder": ("os.unlink(log); os.mkdir(log)", "Not a regular file: {log}"),
    "nothing": ("os.unlink(log)", "No such file or directory: {log}"),
    "file": ("os.rename(log, log + '.1'); open(log, 'w').close()", "Another file: {log}"),
}


@pytest.fixture(params=[False, pytest.param(True, marks=as_root)])
def any_node(request: pytest.FixtureRequest, node: LocalNode) -> Iterator[LocalNode]:
    """A node whose jobs run as this account, or as another."""
    if not request.param:
        yield node
        return
    with node_of_nobody() as other:
        yield other
        other.end_all()


def spoilt_job(node: LocalNode, folder: Path, what: str) -> bytes:
    """Start a job that spoils its log, and return the log as it is known by then."""
    node.start(code(folder, SPOILS.format(what)))
    known = b""
    while b"before" not in known:
        known += node.follow(len(known))[1]
    (node.job_dir() / "work" / "spoil").touch()
    until((node.job_dir() / "work" / "spoilt").exists)
    return known


@pytest.mark.parametrize("kind", SPOILT)
def test_a_job_that_spoils_its_log_lives_and_is_followed(any_node: LocalNode, tmp_path: Path, kind: str) -> None:
    what, why = SPOILT[kind]
    known = spoilt_job(any_node, tmp_path / "code", what)
    log = any_node.job_dir() / "log"
    done = f"put something else in the place of its log ({why.format(log=log)}); what it prints is shown all the same"
    began = time.monotonic()
    reply, data = any_node.follow(len(known), wait_seconds=1)
    assert (reply["state"], data, reply["trouble"]) == ("running", b"after\n", done)
    assert time.monotonic() - began < 5
    (any_node.job_dir() / "work" / "go").touch()
    until(lambda: any_node.state()["state"] == "succeeded")
    until(lambda: not any_node.supervisor())
    reply, data = any_node.follow(len(known))
    assert (reply["state"], data, reply["trouble"]) == ("succeeded", b"after\nthe end\n", done)


def test_a_log_that_was_spoilt_where_files_have_one_name(any_node: LocalNode, tmp_path: Path) -> None:
    """As on a file system without hard links."""
    link = "os.link(path, log_path(job_directory(request)))"
    any_node.connection = Altered((link, "raise OSError"))
    known = spoilt_job(any_node, tmp_path / "code", SPOILT["pipe"][0])
    assert not os.path.exists(f"{any_node.job_dir()}.log")
    reply, data = any_node.follow(len(known), wait_seconds=0.2)
    assert (reply["state"], data) == ("running", b"")
    assert reply["trouble"].endswith("/log); what it prints is not shown")


def test_a_job_that_makes_its_log_shorter(any_node: LocalNode, tmp_path: Path) -> None:
    known = spoilt_job(any_node, tmp_path / "code", "print('x' * 1000); time.sleep(1); os.truncate(log, 0)")
    reply, data = any_node.follow(len(known) + 1000, wait_seconds=0.2)
    assert (reply["state"], data, reply["offset"]) == ("running", b"", len(known) + 1000)
    assert reply["trouble"] == (
        f"made its log shorter; its output is shown again once that is longer than {len(known) + 1000} bytes, as it was"
    )


def test_another_name_of_the_log_is_no_trouble(any_node: LocalNode, tmp_path: Path) -> None:
    known = spoilt_job(any_node, tmp_path / "code", "os.link(log, 'mine')")
    (any_node.job_dir() / "work" / "go").touch()
    until(lambda: not any_node.supervisor())
    reply, data = any_node.follow(len(known))
    assert (data, "trouble" in reply) == (b"after\nthe end\n", False)


def test_what_a_job_spoils_is_said_once_and_the_job_goes_on(nodes: list[LocalNode], tmp_path: Path) -> None:
    from test_follow_ranks import JobObserver, followed, launched

    spoils = SPOILT["pipe"][0].replace("log", "os.environ['JOB_DIR'] + '/log'")
    script = f"import os, time\nif os.environ['NODE_RANK'] == '1':\n    {spoils}\ntime.sleep(2)\nprint('done')\n"
    observer = JobObserver(tmp_path, nodes)
    endings: dict[str, Any] = followed(launched(nodes, tmp_path, script), observer, "node0 node1")
    assert [ending.state for ending in endings.values()] == ["succeeded", "succeeded"]
    assert observer.read("node0") == b"done\n"
    (note,) = observer.said
    assert note.startswith("rank 1 (node1) put something else in the place of its log (Not a regular file: ")
