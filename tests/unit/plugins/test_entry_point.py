# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.plan_job import describe_job, make_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.entry_point import (
    check_module,
    require_no_relative_imports,
    search_path,
)
from user_options import run_options


def project(folder: Path, **files: str) -> Path:
    """Return a folder with these files; a double underscore stands for a slash, and a dunder file for itself."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("module", "env", "script"),
    [
        ("pkg.train", {}, "pkg/train.py"),
        ("top", {}, "top.py"),
        ("tool", {}, "tool/__main__.py"),
        ("inner.start", {"PYTHONPATH": "/elsewhere:lib:"}, "lib/inner/start.py"),
    ],
)
def test_modules(tmp_path: Path, module: str, env: dict[str, str], script: str) -> None:
    """-e module=pkg.train."""
    project(tmp_path, pkg__train="", top="", lib__inner__start="")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text("")
    assert check_module(tmp_path, module, env) == script


@pytest.mark.parametrize("home", ["project", "project/me"])
@pytest.mark.parametrize("started", [{"script": "train.py"}, {"module": "train"}])
def test_a_home_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, started: dict[str, str]
) -> None:
    """Its keys went to every node."""
    folder = project(tmp_path / "project", train="", me__a="")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    with pytest.raises(JobError, match=f"^project_dir {folder} holds your home {tmp_path / home}, and with it keys"):
        make_job(run_options(tmp_path, project_dir=folder, **started), {}, "")


def test_a_module_where_the_inventorys_pythonpath_leads(tmp_path: Path) -> None:
    folder = project(tmp_path / "project", src__pkg__train="import lightning as L\n\nL.Trainer()")
    inherited = {"PYTHONPATH": "src"}
    job = make_job(run_options(tmp_path, project_dir=folder, module="pkg.train"), {}, "", inherited)
    assert (job.script, job.launcher, job.env) == ("src/pkg/train.py", "lightning", {})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "pkg/train.py",
            "module is pkg/train.py, but a module's name has parts with dots between them; write -e module=pkg.train",
        ),
        (
            "./pkg/train.py",
            "module is ./pkg/train.py, but a module's name has parts with dots between them; write -e module=pkg.train",
        ),
        ("-m", "module is -m, but a module's name has parts with dots between them"),
        (
            "pkg.nowhere",
            "module pkg.nowhere is neither pkg/nowhere.py nor pkg/nowhere/__main__.py in project_dir PROJECT; check "
            "its name, or set -e project_dir= to the folder that holds its first part",
        ),
        ("pkg", "module pkg is a package without a __main__.py; name the module of it that is to run"),
        (
            "inner.start",
            "module inner.start lies in lib/ of project_dir PROJECT, where Python does not look; add "
            '-e \'{"env": {"PYTHONPATH": "lib"}}\'',
        ),
    ],
)
def test_modules_that_are_none(tmp_path: Path, module: str, message: str) -> None:
    project(tmp_path, pkg__train="", lib__inner__start="")
    (tmp_path / "pkg" / "__init__.py").write_text("")
    with pytest.raises(JobError) as caught:
        check_module(tmp_path, module, {})
    assert str(caught.value) == message.replace("PROJECT", str(tmp_path))


@pytest.mark.parametrize(
    ("script", "packages", "remedy"),
    [
        ("pkg/train.py", ["pkg"], "-e module=pkg.train"),
        ("pkg/deep/train.py", ["pkg", "pkg/deep"], "-e module=pkg.deep.train"),
        ("pkg/deep/train.py", [], "-e module=pkg.deep.train"),
        ("src/pkg/train.py", ["src/pkg"], '-e module=pkg.train -e \'{"env": {"PYTHONPATH": "src"}}\''),
        ("train.py", [""], "-e project_dir=PARENT -e module=proj.train"),
    ],
)
def test_a_script_with_relative_imports_is_told_before_anything_starts(
    tmp_path: Path, script: str, packages: list[str], remedy: str
) -> None:
    folder = tmp_path / "proj"
    for package in packages:
        (folder / package).mkdir(parents=True, exist_ok=True)
        (folder / package / "__init__.py").write_text("")
    (folder / script).parent.mkdir(parents=True, exist_ok=True)
    (folder / script).write_text("import os\nif __name__ == '__main__':\n    from ..models import net\n")
    with pytest.raises(JobError) as caught:
        make_job(run_options(tmp_path, project_dir=folder, script=script), {}, "")
    assert str(caught.value) == (
        f"script {script} has a relative import in line 3, which works only in a module of a package; start it as one: "
        f"{remedy.replace('PARENT', str(tmp_path))} instead of script="
    )
    if "PARENT" not in remedy and "PYTHONPATH" not in remedy:
        make_job(run_options(tmp_path, project_dir=folder, module=remedy.partition("=")[2]), {}, "")


def test_relative_imports_that_may_fail(tmp_path: Path) -> None:
    project(tmp_path, train="try:\n    from . import net\nexcept ImportError:\n    import net\n")
    require_no_relative_imports(tmp_path, "train.py")


def test_a_job_with_a_module(tmp_path: Path) -> None:
    folder = project(tmp_path / "proj", pkg__train="from .loop import fit", pkg__loop="from lightning import Trainer")
    one = run_options(tmp_path, project_dir=folder, module="pkg.train")
    job = make_job(one, {}, "")
    assert (job.module, job.script, job.launcher, job.reason) == (
        *("pkg.train", "pkg/train.py", "lightning"),
        "pkg/loop.py uses Lightning's Trainer",
    )
    assert "-train-" in job.identity.id
    earlier = describe_job(job, one)
    again = make_job(run_options(tmp_path, project_dir=folder, resume="20260101-000000-train-0000"), earlier, "")
    assert (again.module, again.script) == ("pkg.train", "pkg/train.py")
    (folder / "other.py").write_text("")
    other = make_job(
        run_options(tmp_path, project_dir=folder, resume="20260101-000000-train-0000", script="other.py"), earlier, ""
    )
    assert (other.module, other.script) == ("", "other.py")


def test_the_launcher_is_seen_through_what_the_script_puts_on_its_path(tmp_path: Path) -> None:
    """src/train.py that finds its project's root by itself."""
    folder = project(
        tmp_path / "proj",
        src__train="import sys\nsys.path.append('.')\nimport src.loop",
        src__loop="from lightning import Trainer",
    )
    assert make_job(run_options(tmp_path, project_dir=folder, script="src/train.py"), {}, "").launcher == "lightning"
    assert search_path(folder, "src/train.py", "", {"PYTHONPATH": ".:src"}) == [folder / "src", folder]
