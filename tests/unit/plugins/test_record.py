# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import datetime
import json
import os
import re
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import new_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record, merge_ranks

NOW = datetime.datetime(2026, 11, 22, 17, 30, 5)


@pytest.mark.parametrize(
    ("script", "stem"),
    [
        ("train.py", "train"),
        ("experiments/my run (2).py", "my-run-2"),
        ("日本.py", "job"),
        ("-x.py", "x"),
        ("a.b.py", "a-b"),
        ("x" * 99, "x" * 40),
    ],
)
def test_job_id(script: str, stem: str) -> None:
    assert re.fullmatch(f"20261122-173005-{re.escape(stem)}-[0-9a-f]{{4}}", new_job_id(script, NOW))


@pytest.mark.parametrize("script", ["train.py", "日本.py", "-x.py", "_.py", "x" * 99])
def test_a_job_id_is_one(script: str) -> None:
    assert is_job_id(new_job_id(script, NOW))


def test_job_ids_of_the_same_second_differ() -> None:
    assert len({new_job_id("train.py", NOW) for _ in range(20)}) > 15


def test_job_json_is_whole_at_any_time(tmp_path: Path) -> None:
    record = Record(tmp_path / "runs", "id-1")
    record.create(state="running", project_dir="/home/zoë")
    record.update(state="failed", cause="because")
    assert json.loads((tmp_path / "runs/id-1/job.json").read_text(encoding="utf-8")) == {
        "id": "id-1",
        "state": "failed",
        "project_dir": "/home/zoë",
        "cause": "because",
    }
    assert sorted(path.name for path in (tmp_path / "runs/id-1").iterdir()) == ["artifacts", "job.json", "logs"]


def test_a_record_is_never_written_over(tmp_path: Path) -> None:
    Record(tmp_path, "id-1").create(state="running")
    with pytest.raises(FileExistsError):
        Record(tmp_path, "id-1").create(state="running")


def test_log_path(tmp_path: Path) -> None:
    settings = NodeSettings(host="gpu-1", address=None, directory="/d", master_port=29500, user="", env={})
    (node,) = rank_nodes([settings], {"gpu-1": {"address": "198.18.0.1", "interface": "eth0"}}).nodes
    assert Record(tmp_path, "id-1").log_path(node) == tmp_path / "id-1" / "logs" / "rank0-gpu-1.log"


@pytest.mark.parametrize("name", ["a", "a/b.ckpt", "...", "a b/ü", "..a/b..", "-"])
def test_artifact_path(tmp_path: Path, name: str) -> None:
    assert Record(tmp_path, "id-1").artifact_path(name) == tmp_path / "id-1" / "artifacts" / name


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/"])
def test_artifact_path_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    assert Record(tmp_path, "id-1").artifact_path(name) is None


def test_what_an_earlier_command_left(tmp_path: Path) -> None:
    assert Record.read(tmp_path, "id-1") is None
    Record(tmp_path, "id-1").create(state="running")
    record = Record.read(tmp_path, "id-1")
    assert record
    assert record.data == {"id": "id-1", "state": "running"}
    record.update(state="failed")
    again = Record.read(tmp_path, "id-1")
    assert again and again.data["state"] == "failed"


def test_job_json_is_synced_once_the_job_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path, "id-1")
    synced: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        synced.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", renamed)
    record.create(state="prepared")
    assert synced == ["renamed"]
    record.update(state="running")
    folder = tmp_path / "id-1"
    assert synced[1:] == [f"{folder}/job.json.{os.getpid()}.part", "renamed", str(folder), str(tmp_path)]


def test_what_is_left_of_a_record_is_made_one_again(tmp_path: Path) -> None:
    (tmp_path / "id-1" / "logs").mkdir(parents=True)
    (tmp_path / "id-1" / "logs" / "rank0-a.log").write_text("line")
    (tmp_path / "id-1" / "job.json").write_text("")
    Record(tmp_path, "id-1").restore(script="train.py")
    record = Record.read(tmp_path, "id-1")
    assert record and record.data == {"id": "id-1", "script": "train.py"}
    assert (tmp_path / "id-1" / "logs" / "rank0-a.log").read_text() == "line"
    assert (tmp_path / "id-1" / "artifacts").is_dir()


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "id-1").mkdir()
    (tmp_path / "id-1" / "job.json").write_text(text)
    assert Record.read(tmp_path, "id-1") is None
    (tmp_path / "id-1" / "job.json").write_text("[1]")
    record = Record.read(tmp_path, "id-1")
    assert record and record.data == {"id": "id-1"}


def test_a_node_that_is_not_asked_any_more_keeps_no_rank_that_another_has(tmp_path: Path) -> None:
    record = Record(tmp_path, "20260101-000000-train-0001")
    record.data["ranks"] = [{"rank": rank, "host": f"n{rank}"} for rank in range(2)]
    assert merge_ranks(record, [{"rank": 0, "host": "n0"}, {"rank": 1, "host": "n2"}]) == [
        *({"rank": 0, "host": "n0"}, {"rank": 1, "host": "n2"}),
        {"rank": None, "host": "n1"},
    ]
