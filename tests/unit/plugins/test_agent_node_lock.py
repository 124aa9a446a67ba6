# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import fcntl
import os
import re
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import files, node_lock
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from local_nodes import SLEEP, LocalNode, code, refused, until

BUSY = (
    "node0 {} job job-1, which trainer started at 2026-11-22T17:30:00+01:00, and a node runs one job at a time; wait "
    "for it with -e wait=SECONDS, end it with: ansible-playbook stop.yml -e job=job-1, or leave the node out with "
    "--limit"
)
RUNS, HELD = BUSY.format("runs"), BUSY.format("is held for")


def test_a_second_job_is_refused_while_one_runs(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    node.start(bundle)
    assert refused(node, "prepare", bundle, job="job-2") == RUNS
    assert node.jobs == ["job-1"]
    node.ask("stop", grace_seconds=5)
    assert node.ask("prepare", bundle, job="job-2")["has_bundle"]


def test_a_prepared_job_holds_the_node_until_it_is_discarded(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    assert refused(node, "prepare", bundle, job="job-2") == HELD
    assert refused(node, "prepare", bundle, job="job-2", dry=True) == HELD
    node.ask("discard")
    assert node.prepare(bundle, "job-2")["job_dir"] == str(node.job_dir("job-2"))


def test_a_prepared_job_whose_supervisor_was_killed_holds_nothing(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not node.supervisor())
    assert node.follow(wait_seconds=0)[0]["state"] == "lost"
    node.prepare(bundle, "job-2")


def test_who_holds_a_node_may_be_unknown(node: LocalNode, tmp_path: Path) -> None:
    with open(node.directory / "jobs" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refused(node, "prepare", code(tmp_path / "code", "")) == (
            "node0 is held for job ?, which ? started at ?, and a node runs one job at a time; wait for it with -e "
            "wait=SECONDS, end it with: ansible-playbook stop.yml -e job=?, or leave the node out with --limit"
        )


def test_a_look_does_not_keep_a_job_out(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.run("", tmp_path / "code")
    ended = threading.Event()
    states = []

    def look() -> None:
        while not ended.is_set():
            states.append(node.follow(wait_seconds=0.2)[0]["state"])

    watchers = [threading.Thread(target=look) for _number in range(2)]
    for watcher in watchers:
        watcher.start()
    for number in range(2, 8):
        node.ask("prepare", bundle, job=f"job-{number}")
        node.ask("discard", job=f"job-{number}")
    ended.set()
    for watcher in watchers:
        watcher.join()
    assert len(states) >= len(watchers) and set(states) == {"succeeded"}


def test_of_jobs_that_come_at_the_same_moment_one_is_let_in(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    outcomes: list[str] = []

    def prepare(number: int) -> None:
        try:
            node.ask("prepare", bundle, job=f"job-{number}")
            outcomes.append("prepared")
        except NodeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("prepared") == 1
    held = re.compile(re.escape(HELD).replace("job\\-1", r"job-\d"))
    assert all(held.fullmatch(outcome) for outcome in outcomes if outcome != "prepared"), outcomes
    assert len(node.jobs) == 1


def test_discard_leaves_the_hold_of_another_job_alone(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    node.ask("discard", job="job-2")
    assert refused(node, "prepare", bundle, job="job-3") == HELD


def test_a_job_that_is_not_here(node: LocalNode) -> None:
    for op in ("follow", "list_artifacts", "read_files"):
        assert refused(node, op, parts=[], offset=0) == "node0 has no job job-1"
    assert refused(node, "stop", grace_seconds=1) == "node0 has no job job-1"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    files.write_file(str(path), b"new", 0o600, durable=True)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)

    def fail(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_lock.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_file(str(path), b"newer", 0o600)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("victim")
    (tmp_path / "victim").write_text("precious")
    files.write_file(str(tmp_path / "file"), b"new", 0o600)
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / f"other.{os.getpid()}").symlink_to("victim")
    with pytest.raises(FileExistsError):
        files.write_file(str(tmp_path / "other"), b"new", 0o600)


@pytest.mark.parametrize(
    ("content", "expected"), [(None, None), ("", None), ("[1]", None), ("{", None), ('{"a": 1}', {"a": 1})]
)
def test_read_json(tmp_path: Path, content: str | None, expected: Any) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    assert files.read_json(str(path)) == expected
    assert files.read_json(str(path), most=5) is None


def test_what_the_controller_is_told_of_the_job_that_has_the_node(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    node.prepare(bundle)

    def busy() -> dict[str, Any]:
        with pytest.raises(NodeError) as caught:
            node.ask("prepare", bundle, job="job-2")
        facts: dict[str, Any] = caught.value.facts["busy"]
        return facts

    about = {"id": "job-1", "user": "trainer", "start": "2026-11-22T17:30:00+01:00", "pid": str(node.supervisor())}
    about["process_start"] = node_lock.process_start_time(about["pid"])
    assert busy() == {**about, "prepared": True}
    node.ask("discard")
    node.start(bundle)
    until(node.state)
    about |= {"pid": str(node.supervisor()), "process_start": node_lock.process_start_time(node.supervisor() or 0)}
    assert busy() == {**about, "prepared": False}


def test_a_job_that_ended_without_a_last_word_is_told_once(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    node.start(bundle)
    until(node.state)
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not node.supervisor())
    stale = node.prepare(bundle, "job-2")["stale"]
    assert stale.pop("process_start").isdecimal()
    assert stale == {
        "id": "job-1",
        "user": "trainer",
        "start": "2026-11-22T17:30:00+01:00",
        "pid": str(supervisor),
    }
    node.ask("discard", job="job-2")
    assert "stale" not in node.prepare(bundle, "job-3")


def test_a_job_that_ended_well_is_not_stale(node: LocalNode, tmp_path: Path) -> None:
    node.run("", tmp_path / "code")
    assert "stale" not in node.prepare(code(tmp_path / "code", ""), "job-2")


def test_a_supervisor_that_says_good_bye_is_waited_for(node: LocalNode) -> None:
    """Its job has ended, and so has the state: it only tells the others yet."""
    node_lock.write_holder(node.request("", job="job-0"), os.getpid())
    node.job_dir("job-0").mkdir()
    (node.job_dir("job-0") / "state.json").write_text('{"state": "failed", "ended": 1.0}')
    with open(node.directory / "jobs" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.7, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        assert node.ask("prepare")["job_dir"] == str(node.job_dir())


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_a_job_put_in_the_place_of_a_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.json"
    if kind == "link":
        (tmp_path / "secret").write_text('{"a": 1}')
        path.symlink_to("secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert files.read_json(str(path)) is None
    with pytest.raises(OSError):
        files.open_own(str(path))


@pytest.mark.parametrize("text", ["", "job-1\n", "job-1\nme\n2026\n"])
def test_who_held_the_node_last_may_be_known_in_part(tmp_path: Path, text: str) -> None:
    (tmp_path / "current").write_text(text)
    found = node_lock.read_holder(str(tmp_path))
    assert set(found) == {"id", "user", "start", "pid", "process_start"}
    assert found["id"] == text.split("\n")[0]


@pytest.mark.parametrize("missing", ["lock", "current", "stat"])
def test_who_cannot_look_does_not_say_that_the_job_is_lost(
    missing: str, node: LocalNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a file descriptor to spare has lost no job."""
    node.start(code(tmp_path / "code", SLEEP))
    request = node.request("follow")
    real, real_os = open, os.open

    def full(path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path).endswith(missing):
            raise OSError(errno.ENFILE, "Too many open files in system")
        return (real_os if arguments and isinstance(arguments[0], int) else real)(path, *arguments, **more)

    holder = node_lock.LockHolder(request)
    assert holder.pid()
    monkeypatch.setattr(node_lock.os, "open", full)
    monkeypatch.setattr(node_lock, "open", full, raising=False)
    with pytest.raises(OSError, match="Too many open files"):
        node_lock.LockHolder(request).pid()
