# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.list_jobs import (
    LAST_LINE_BYTES,
    size_and_last_line,
)
from left_jobs import leave
from local_nodes import NOBODY, SLEEP, LocalNode, as_root, code, until

JOBS = [f"2026010{day}-000000-job-000{day}" for day in (1, 2, 3)]


def listed(node: LocalNode, newest: int = 20, only: str | None = None) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = node.channel().call(
        {"op": "list_jobs", "directory": str(node.directory), "user": "", "newest": newest, "only": only}
    )[0]["jobs"]
    return jobs


def test_a_node_without_jobs(node: LocalNode, tmp_path: Path) -> None:
    assert listed(node) == []
    assert listed(LocalNode(tmp_path / "never set up")) == []


def test_the_newest_come_first(node: LocalNode) -> None:
    for name in (JOBS[0], JOBS[2], JOBS[1]):
        leave(node, name, spec={"id": name})
    assert [job["id"] for job in listed(node)] == [JOBS[2], JOBS[1], JOBS[0]]
    assert [job["id"] for job in listed(node, newest=2)] == [JOBS[2], JOBS[1]]
    assert [job["id"] for job in listed(node, newest=1, only=JOBS[0])] == [JOBS[0]]
    assert listed(node, only="20260401-000000-job-0000") == []


def test_what_is_no_job_takes_no_jobs_place(node: LocalNode) -> None:
    leave(node, JOBS[0])
    for name in ("photos", "x", "trash"):
        leave(node, name)
    assert [job["id"] for job in listed(node, newest=1)] == [JOBS[0]]


def test_every_state(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "print('last words')\n")
    node.start(bundle, JOBS[1])
    node.wait(JOBS[1])
    leave(node, JOBS[0], state="running")
    node.prepare(bundle, JOBS[2])
    found = {job["id"]: job for job in listed(node)}
    assert {name: job["state"]["state"] for name, job in found.items()} == {
        JOBS[0]: "lost",
        JOBS[1]: "succeeded",
        JOBS[2]: "prepared",
    }
    assert (found[JOBS[1]]["size"], found[JOBS[1]]["last_line"]) == (11, "last words")
    assert found[JOBS[1]]["spec"] == json.loads((node.job_dir(JOBS[1]) / "spec.json").read_text())
    assert (found[JOBS[2]]["spec"], found[JOBS[2]]["size"], found[JOBS[2]]["last_line"]) == (None, 0, "")


def test_a_job_that_runs_and_one_whose_supervisor_was_killed(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP), JOBS[0])
    until(lambda: listed(node)[0]["last_line"] == "ready")
    assert listed(node)[0]["state"]["state"] == "running"
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: listed(node)[0]["state"]["state"] == "lost")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"one\ntwo\n", "two"),
        (b"one\nno newline", "no newline"),
        (b"one\n\n  \n", "one"),
        (b"\n", ""),
        (b"x" * 5000, "x" * LAST_LINE_BYTES),
        (b"bar 1%\rbar 2%", "bar 2%"),
        (b"\xff\xfe\n", "\ufffd\ufffd"),
    ],
)
def test_size_and_last_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert size_and_last_line(str(tmp_path)) == (len(content), expected)


@pytest.mark.parametrize("kind", ["absent", "link", "twin", "pipe", "folder"])
def test_a_log_that_is_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "job").mkdir()
    make: dict[str, Callable[[Path], Any]] = {
        "absent": lambda path: None,
        "link": lambda path: path.symlink_to(tmp_path / "secret"),
        "twin": lambda path: path.hardlink_to(tmp_path / "secret"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }
    make[kind](tmp_path / "job" / "log")
    assert size_and_last_line(str(tmp_path / "job")) == (0, "")


@as_root
def test_a_file_of_somebody_else_is_no_log(tmp_path: Path) -> None:
    """Whose other name was taken away: it has one only, in the job's folder."""
    (tmp_path / "log").write_text("root:secret")
    os.chown(tmp_path, NOBODY, NOBODY)
    assert size_and_last_line(str(tmp_path)) == (0, "")
    os.link(tmp_path / "log", f"{tmp_path}.log")
    assert size_and_last_line(str(tmp_path)) == (0, "")
    os.chown(tmp_path / "log", NOBODY, NOBODY)
    assert size_and_last_line(str(tmp_path)) == (11, "root:secret")


def test_the_log_of_a_job_that_put_something_else_in_its_place(node: LocalNode, tmp_path: Path) -> None:
    script = "import os\nprint('true')\nlog = os.environ['JOB_DIR'] + '/log'\nos.unlink(log)\nos.mkfifo(log)\n"
    node.start(code(tmp_path / "code", script), JOBS[0])
    node.wait(JOBS[0])
    assert listed(node)[0]["last_line"] == "true"


@pytest.mark.parametrize(
    "broken",
    [
        {"args": "--lr 1"},
        {"args": [1]},
        {"devices": True},
        {"rank": "0"},
        {"script": ["x"]},
        {"script": "x" * 5000},
        {"grace_seconds": float("nan")},
        {"world_size": 10**400},
        {"ranks": [{"rank": 0, "host": "a"}]},
        {"ranks": [{"rank": 0, "host": 1, "address": ""}]},
        {"ranks": {}},
    ],
)
def test_a_spec_that_is_not_believed(node: LocalNode, broken: dict[str, Any]) -> None:
    leave(node, JOBS[0], spec={"id": JOBS[0], "rank": 0, **broken})
    assert listed(node)[0]["spec"] is None


def test_of_a_spec_only_what_is_known_is_passed_on(node: LocalNode) -> None:
    leave(node, JOBS[0], spec={"id": JOBS[0], "rank": 0, "devices": None, "project_dir": "/etc"})
    assert listed(node)[0]["spec"] == {"id": JOBS[0], "rank": 0, "devices": None}


@pytest.mark.parametrize(
    "text",
    [
        '{"state": "fine"}',
        "{}",
        '{"state": []}',
        '{"state": "failed", "ended": NaN}',
        '{"state": "failed", "oom": 1e999}',
    ],
)
def test_a_state_that_is_not_believed(node: LocalNode, text: str) -> None:
    leave(node, JOBS[0])
    (node.job_dir(JOBS[0]) / "state.json").write_text(text)
    assert listed(node)[0]["state"] == {"state": "lost"}


def test_ranks_come_from_rank_0_or_for_one_job(node: LocalNode) -> None:
    ranks = [{"rank": 0, "host": "node0", "address": "127.0.0.1"}]
    leave(node, JOBS[0], spec={"rank": 0, "ranks": ranks})
    leave(node, JOBS[1], spec={"rank": 1, "ranks": ranks})
    assert [job["spec"] for job in listed(node)] == [{"rank": 1}, {"rank": 0, "ranks": ranks}]
    assert listed(node, only=JOBS[1])[0]["spec"] == {"rank": 1, "ranks": ranks}
