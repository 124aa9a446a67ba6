# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import make_bundle, names_in
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.missing_files import explained, of_job
from local_nodes import IS_ROOT, NOBODY, closed

IGNORED = [
    "pkg/_version.py",
    "pkg/fast.cpython-311.so",
    ".env",
    "train.bin",
    "data/a/b.csv",
    "src/conf.yaml",
    "gen/new.py",
]
WORK = "/opt/thunderhead/jobs/20261122-173000-train-9f3a/work"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose script, src/train.py, needs what git ignores."""
    for name in ["src/train.py", "pkg/__init__.py", "top.py", *IGNORED]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".gitignore").write_text("\n".join(IGNORED))
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def said(project: Path, reason: str) -> str:
    travelled = names_in(make_bundle(project, "src/train.py", 1).content)
    return explained(reason, project, travelled, "src/train.py")


@pytest.mark.parametrize(
    ("reason", "name", "pattern"),
    [
        ("ModuleNotFoundError: No module named 'pkg._version'", "pkg/_version.py", "pkg/_version.py"),
        ("ModuleNotFoundError: No module named 'pkg.fast'", "pkg/fast.cpython-311.so", "pkg/fast.cpython-311.so"),
        ("ModuleNotFoundError: No module named 'gen'", "gen", "gen/"),
        (
            f"ImportError: cannot import name '_version' from 'pkg' ({WORK}/pkg/__init__.py)",
            *("pkg/_version.py", "pkg/_version.py"),
        ),
        (
            "ImportError: cannot import name '_version' from partially initialized module 'pkg' (most likely due to …)",
            *("pkg/_version.py", "pkg/_version.py"),
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: '.env'", ".env", ".env"),
        ("FileNotFoundError: [Errno 2] No such file or directory: './data/a/'", "data/a", "data/a/"),
        (f"FileNotFoundError: [Errno 2] No such file or directory: '{WORK}/train.bin'", "train.bin", "train.bin"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'conf.yaml'", "src/conf.yaml", "src/conf.yaml"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '../train.bin'", "train.bin", "train.bin"),
        (
            "FileNotFoundError: Unable to open file (unable to open file: name = 'train.bin', errno = 2)",
            *("train.bin", "train.bin"),
        ),
        (
            f"OSError: {WORK}/pkg/fast.cpython-311.so: cannot open shared object file: No such file or directory",
            *("pkg/fast.cpython-311.so", "pkg/fast.cpython-311.so"),
        ),
        ('ValueError: Config file "train.bin" does not exist', "train.bin", "train.bin"),
    ],
)
def test_what_git_ignores_is_named(project: Path, reason: str, name: str, pattern: str) -> None:
    """The cause names the file, git, and the remedy, which works."""
    assert said(project, reason) == (
        f"{name} lies in the project, but git ignores it, so it was no part of the job's code; bring it with -e "
        f"include='{pattern}'"
    )
    brought = names_in(make_bundle(project, "src/train.py", 1, include=[pattern]).content)
    assert any(path == name or path.startswith(f"{name}/") for path in brought)
    assert "bring it" not in explained(reason, project, brought, "src/train.py")


@pytest.mark.parametrize(
    "reason",
    [
        "KeyError: 'train.bin'",
        "ModuleNotFoundError: No module named 'einops'",
        "ModuleNotFoundError: No module named '..'",
        "FileNotFoundError: [Errno 2] No such file or directory: '/etc/hosts'",
        "FileNotFoundError: [Errno 2] No such file or directory: '../../train.bin'",
        "FileNotFoundError: [Errno 2] No such file or directory: ''",
        "FileNotFoundError: [Errno 2] No such file or directory: 'a\0b'",
        f"FileNotFoundError: [Errno 2] No such file or directory: '{'x' * 400}'",
        f"ModuleNotFoundError: No module named '{'x' * 400}'",
        f"ModuleNotFoundError: No module named '{'x' * 400}.part'",
        f"ModuleNotFoundError: No module named '{'x.' * 4000}part'",
        f"ImportError: cannot import name '{'x' * 400}' from '{'x' * 400}'",
        "ModuleNotFoundError: No module named '...'",
        "FileNotFoundError: [Errno 2] No such file or directory: 'src'",
    ],
)
def test_what_is_no_file_of_the_project_that_was_left_out(project: Path, reason: str) -> None:
    assert said(project, reason) == ""


@pytest.mark.parametrize(
    ("module", "path", "above"),
    [
        ("src", "src/deep/model.py", "."),
        ("model", "src/deep/model.py", "src/deep"),
        ("deep.model", "src/deep/model.py", "src"),
        ("inside", "", ""),  # of a package
        ("einops", "", ""),
        ("conf", "", ""),  # has no module
    ],
)
def test_a_module_that_lies_where_python_does_not_look(tmp_path: Path, module: str, path: str, above: str) -> None:
    """Not what requirements.txt lacks."""
    travelled = {"src/deep/model.py", "pkg/__init__.py", "pkg/inside.py", "conf/a.yaml"}
    remedy = f'add -e \'{{"env": {{"PYTHONPATH": "{above}"}}}}\''
    sentence = f"{path} lies in the project, where Python does not look for it; {remedy}" if path else ""
    reason = f"ModuleNotFoundError: No module named '{module}'"
    assert explained(reason, tmp_path, travelled, "train.py") == sentence


def test_a_module_in_a_folder_that_the_user_may_not_enter() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "closed" / "in").mkdir(parents=True)
        if IS_ROOT:
            for path in (project, *project.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        with closed(project / "closed"):
            for name in ("closed.in.part", "closed.in"):
                assert explained(f"ModuleNotFoundError: No module named '{name}'", project, [], "train.py") == ""
            reason = "FileNotFoundError: [Errno 2] No such file or directory: 'closed/in'"
            assert explained(reason, project, [], "train.py") == ""


def test_whatever_a_rank_prints_the_job_s_end_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(project / "runs", "20261122-173000-train-9f3a")
    bundle = make_bundle(project, "src/train.py", 1)
    (project / "runs" / ".bundles").mkdir(parents=True)
    (project / "runs" / ".bundles" / bundle.sha256).write_bytes(bundle.content)
    record.data = {"project_dir": str(project), "bundle": {"sha256": bundle.sha256}, "script": "src/train.py"}
    assert "git ignores it" in of_job(
        "No such file or directory: 'train.bin'", record.data, record.path.parent / ".bundles"
    )
    assert of_job("ModuleNotFoundError: No module named 'einops'", record.data, record.path.parent / ".bundles") == (
        " (no node has a package with that module; add it to what python_env_requirements names, and run: "
        "ansible-playbook setup.yml)"
    )
    assert (
        of_job("ModuleNotFoundError: No module named 'torch.no_such'", record.data, record.path.parent / ".bundles")
        == ""
    )
    for error in (OSError(36, "File name too long"), ValueError("embedded null byte")):
        monkeypatch.setattr(os.path, "lexists", Mock(side_effect=error))
        assert of_job("No such file or directory: 'train.bin'", record.data, record.path.parent / ".bundles") == ""


def test_a_job_of_whose_code_nothing_is_known(tmp_path: Path) -> None:
    record = Record(tmp_path / "runs", "20261122-173000-train-9f3a")
    reason = "FileNotFoundError: [Errno 2] No such file or directory: 'train.bin'"
    for about in ({}, {"project_dir": None}, {"project_dir": str(tmp_path)}, {"bundle": {"sha256": "0" * 64}}):
        record.data = about
        assert of_job(reason, record.data, record.path.parent / ".bundles") == ""
