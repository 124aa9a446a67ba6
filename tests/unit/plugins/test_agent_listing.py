import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.listing import LAST_LINE_BYTES, last_words
from left_jobs import leave
from local_nodes import SLEEP, LocalNode, code, until


def listed(node: LocalNode, newest: int = 20, only: str | None = None) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = node.channel().call(
        {"op": "jobs", "directory": str(node.directory), "user": "", "newest": newest, "only": only}
    )[0]["jobs"]
    return jobs


def test_a_node_without_jobs(node: LocalNode, tmp_path: Path) -> None:
    assert listed(node) == []
    assert listed(LocalNode(tmp_path / "never set up")) == []


def test_the_newest_come_first(node: LocalNode) -> None:
    for name in ("20260101-job", "20260301-job", "20260201-job"):
        leave(node, name, spec={"id": name})
    assert [job["id"] for job in listed(node)] == ["20260301-job", "20260201-job", "20260101-job"]
    assert [job["id"] for job in listed(node, newest=2)] == ["20260301-job", "20260201-job"]
    assert [job["id"] for job in listed(node, newest=1, only="20260101-job")] == ["20260101-job"]
    assert listed(node, only="20260401-job") == []


def test_every_state(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "print('last words')\n")
    node.start(bundle)
    node.wait()
    leave(node, "job-0", state="running")
    node.prepare(bundle, "job-2")
    found = {job["id"]: job for job in listed(node)}
    assert {name: job["state"]["state"] for name, job in found.items()} == {
        "job-0": "lost",
        "job-1": "succeeded",
        "job-2": "prepared",
    }
    assert (found["job-1"]["size"], found["job-1"]["last_line"]) == (11, b"last words")
    assert found["job-1"]["spec"] == json.loads((node.job_dir() / "spec.json").read_text())
    assert (found["job-2"]["spec"], found["job-2"]["size"], found["job-2"]["last_line"]) == (None, 0, b"")


def test_a_job_that_runs_and_one_whose_supervisor_was_killed(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP))
    until(lambda: listed(node)[0]["last_line"] == b"ready")
    assert listed(node)[0]["state"]["state"] == "running"
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: listed(node)[0]["state"]["state"] == "lost")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", b""),
        (b"one\ntwo\n", b"two"),
        (b"one\nno newline", b"no newline"),
        (b"one\n\n  \n", b"one"),
        (b"\n", b""),
        (b"x" * 5000, b"x" * LAST_LINE_BYTES),
        (b"bar 1%\rbar 2%", b"bar 2%"),
        (b"\xff\xfe\n", b"\xff\xfe"),
    ],
)
def test_last_words(tmp_path: Path, content: bytes, expected: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    assert last_words(str(tmp_path / "log")) == (len(content), expected)


def test_a_log_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "link", "pipe", "."):
        assert last_words(str(tmp_path / name)) == (0, b"")


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
    leave(node, spec={"id": "job-1", "rank": 0, **broken})
    assert listed(node)[0]["spec"] is None


def test_of_a_spec_only_what_is_known_is_passed_on(node: LocalNode) -> None:
    leave(node, spec={"id": "job-1", "rank": 0, "devices": None, "project_dir": "/etc"})
    assert listed(node)[0]["spec"] == {"id": "job-1", "rank": 0, "devices": None}


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
    leave(node)
    (node.job_dir() / "state.json").write_text(text)
    assert listed(node)[0]["state"] == {"state": "lost"}


def test_ranks_come_from_rank_0_or_for_one_job(node: LocalNode) -> None:
    ranks = [{"rank": 0, "host": "node0", "address": "127.0.0.1"}]
    leave(node, "job-0", spec={"rank": 0, "ranks": ranks})
    leave(node, "job-1", spec={"rank": 1, "ranks": ranks})
    assert [job["spec"] for job in listed(node)] == [{"rank": 1}, {"rank": 0, "ranks": ranks}]
    assert listed(node, only="job-1")[0]["spec"] == {"rank": 1, "ranks": ranks}
