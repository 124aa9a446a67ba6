# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.unpack import unpack_bundle
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import BUNDLE_MTIME
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import split_patterns
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project import project_files
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import (
    Bundle,
    check_script,
    make_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import RESULTS, TOOLS
from local_nodes import IS_ROOT, NOBODY, closed


@pytest.fixture(autouse=True)
def _git_of_no_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def repository(folder: Path, files: dict[str, str]) -> Path:
    fill(folder, files)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def entries(bundle: Bundle) -> dict[str, tuple[str, Any]]:
    """What a node unpacks: each name to its kind, and its size or target."""
    found: dict[str, tuple[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("bundles", "jobs/job"):
            os.makedirs(os.path.join(folder, name))
        Path(folder, "bundles", bundle.sha256).write_bytes(zlib.decompress(bundle.content))
        me = SimpleNamespace(acting=contextlib.nullcontext)
        unpack_bundle({"directory": folder, "job": {"id": "job"}, "bundle": bundle.sha256}, me)  # type: ignore[arg-type]
        work = Path(folder, "jobs", "job", "work")
        for path in sorted(work.rglob("*")):
            if path.is_symlink():
                found[str(path.relative_to(work))] = ("link", os.readlink(path))
            elif path.is_file():
                assert int(path.stat().st_mtime) == BUNDLE_MTIME
                kind = "program" if path.stat().st_mode & 0o111 else "file"
                found[str(path.relative_to(work))] = (kind, path.stat().st_size)
    return found


def names(project: Path, script: str = "train.py", **more: Any) -> list[str]:
    return sorted(entries(make_bundle(project, script, 100, **more)))


# ------------------------------------------------------------------------------------------------------ what belongs in


def test_outside_git_everything_but_junk(tmp_path: Path) -> None:
    fill(tmp_path, {"train.py": "", "lib/model.py": "", "lib/model.pyc": "", "data.csv": "", ".hidden": ""})
    for name in TOOLS | RESULTS:
        fill(tmp_path, {f"lib/{name}/inside": ""})
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert sorted(entries(bundle)) == [".hidden", "data.csv", "lib/model.py", "train.py"]
    assert (bundle.commit, bundle.dirty) == (None, None)


def test_a_repository_gives_what_git_would_track(tmp_path: Path) -> None:
    files = {"train.py": "", "gone.py": "", "edited.py": "old", "wandb/kept.py": "", ".gitignore": "*.ckpt\n/data/\n"}
    repository(tmp_path, files)
    fill(tmp_path, {"untracked.py": "", "last.ckpt": "", "data/digits.csv": "", "edited.py": "new"})
    (tmp_path / "gone.py").unlink()
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert sorted(entries(bundle)) == [".gitignore", "edited.py", "train.py", "untracked.py", "wandb/kept.py"]
    assert bundle.size == len("*.ckpt\n/data/\n") + len("new")


def test_commit_and_dirtiness(tmp_path: Path) -> None:
    repository(tmp_path, {"project/train.py": "", "elsewhere.py": ""})
    project, head = tmp_path / "project", git(tmp_path, "rev-parse", "HEAD").strip()
    clean = make_bundle(project, "train.py", 100)
    fill(tmp_path, {"elsewhere.py": "changed"})
    other = make_bundle(project, "train.py", 100)
    fill(tmp_path, {"project/train.py": "changed"})
    dirty = make_bundle(project, "train.py", 100)
    assert [(one.commit, one.dirty) for one in (clean, other, dirty)] == [(head, False), (head, False), (head, True)]


@pytest.mark.parametrize("everything", [False, True])
def test_a_start_starts_git_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything: bool) -> None:
    """A start waits for each."""
    repository(tmp_path, {"train.py": "", ".gitignore": "*.bin"})
    fill(tmp_path, {"new.py": "", "a.bin": ""})
    run, started = subprocess.run, []

    def counted(command: list[str], **more: Any) -> Any:
        started.append(command)
        return run(command, **more)

    monkeypatch.setattr(subprocess, "run", counted)
    assert make_bundle(tmp_path, "train.py", 100, everything=everything).dirty
    assert len(started) == (2 if everything else 3), started


@pytest.mark.parametrize("change", ["renamed", "staged", "deleted", "new", "new and ignored", "mode", "elsewhere"])
@pytest.mark.parametrize("everything", [False, True])
def test_what_makes_it_dirty(tmp_path: Path, change: str, everything: bool) -> None:
    project = tmp_path / "project"
    repository(tmp_path, {"project/train.py": "1", "project/# a.py": "2\n" * 9, ".gitignore": "*.bin"})
    if change == "renamed":
        git(project, "mv", "# a.py", "# b.py")
    elif change == "staged":
        fill(project, {"train.py": "2"})
        git(project, "add", "train.py")
    elif change == "deleted":
        (project / "# a.py").unlink()
    elif change == "mode":
        (project / "train.py").chmod(0o755)
    else:
        fill(tmp_path, {{"new": "project/new.py", "new and ignored": "project/a.bin"}.get(change, "new.py"): ""})
    bundle = make_bundle(project, "train.py", 100, everything=everything)
    assert bundle.dirty is (change not in ("new and ignored", "elsewhere"))
    assert bundle.commit == git(project, "rev-parse", "HEAD").strip()


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    fill(tmp_path, {"train.py": "", "a.tmp": "", ".gitignore": "*.tmp"})
    git(tmp_path, "init", "--quiet")
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert sorted(entries(bundle)) == [".gitignore", "train.py"]
    assert (bundle.commit, bundle.dirty) == (None, None)


def test_a_project_in_a_folder_of_its_repository(tmp_path: Path) -> None:
    repository(tmp_path, {"README": "", "project/train.py": "", "project/lib/a.py": "", ".gitignore": "*.log"})
    fill(tmp_path, {"project/lib/run.log": ""})
    assert names(tmp_path / "project") == ["lib/a.py", "train.py"]


def test_submodules_are_part_of_the_code(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"tensor.py": "", "deep/er.py": "", ".gitignore": "*.so"})
    project = repository(tmp_path / "project", {"train.py": ""})
    git(project, "submodule", "--quiet", "add", str(library), "vendor/library")
    git(project, "commit", "--quiet", "--message", "submodule")
    fill(project, {"vendor/library/new.py": "", "vendor/library/new.so": ""})
    inside = [f"vendor/library/{name}" for name in (".gitignore", "deep/er.py", "new.py", "tensor.py")]
    assert names(project) == [".gitmodules", "train.py", *inside]


def test_a_submodule_that_was_never_fetched_is_empty(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"tensor.py": ""})
    project = repository(tmp_path / "project", {"train.py": ""})
    git(project, "submodule", "--quiet", "add", str(library), "vendor")
    git(project, "commit", "--quiet", "--message", "submodule")
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    assert names(tmp_path / "clone") == [".gitmodules", "train.py"]


def test_a_repository_inside_the_repository_is_part_of_the_code(tmp_path: Path) -> None:
    repository(tmp_path, {"train.py": ""})
    repository(tmp_path / "tool", {"tool.py": "", ".gitignore": "*.o"})
    fill(tmp_path, {"tool/tool.o": ""})
    assert names(tmp_path) == ["tool/.gitignore", "tool/tool.py", "train.py"]


@pytest.mark.parametrize("in_git", [False, True])
def test_links_stay_links(tmp_path: Path, in_git: bool) -> None:
    fill(tmp_path, {"outside/data.csv": "", "project/train.py": "", "project/lib/a.py": ""})
    project = tmp_path / "project"
    targets = {"file": "train.py", "folder": "lib", "lib/up": "../train.py", "out": "../outside", "broken": "nowhere"}
    for name, target in targets.items():
        (project / name).symlink_to(target)
    if in_git:
        repository(project, {})
    found = entries(make_bundle(project, "train.py", 100))
    assert {name: value for name, (kind, value) in found.items() if kind == "link"} == targets
    assert sorted(name for name, (kind, _value) in found.items() if kind != "link") == ["lib/a.py", "train.py"]


def test_names_that_are_no_utf8_and_things_that_are_no_files(tmp_path: Path) -> None:
    fill(tmp_path, {"train.py": "", "ünïcode and space\n.py": ""})
    (tmp_path / os.fsdecode(b"latin-\xe9.py")).write_text("")
    os.mkfifo(tmp_path / "pipe")
    expected = [os.fsdecode(b"latin-\xe9.py"), "train.py", "ünïcode and space\n.py"]
    assert sorted(names(tmp_path)) == sorted(expected)
    git(tmp_path, "init", "--quiet")
    assert sorted(names(tmp_path)) == sorted(expected)


JOB = "20261122-173000-train-9f3a"


@pytest.mark.parametrize("state", ["no git", "untracked", "ignored", "tracked"])
def test_the_records_of_jobs_never_travel(tmp_path: Path, state: str) -> None:
    """run.yml in the project itself, several times, whatever git thinks of runs/."""
    fill(tmp_path, {"train.py": "", "runs/tune.yaml": ""})
    fill(tmp_path, {f"runs/{JOB}/job.json": "{}", f"runs/{JOB}/logs/rank0.log": "", f"runs/.bundles/{'a' * 64}": ""})
    fill(tmp_path, {f"elsewhere/mine/{JOB}/job.json": "{}", f"elsewhere/{JOB}/data.csv": ""})
    expected = [f"elsewhere/{JOB}/data.csv", "train.py"]
    if state != "no git":
        repository(tmp_path, {".gitignore": "/runs/" if state == "ignored" else ""} if state != "tracked" else {})
        expected += [".gitignore"] if state != "tracked" else []
    if state == "untracked":
        git(tmp_path, "rm", "-r", "--cached", "--quiet", "runs")
        git(tmp_path, "commit", "--quiet", "--message", "without")
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert sorted(entries(bundle)) == sorted(expected)
    assert (bundle.notes, bundle.dirty) == ((), None if state == "no git" else False)
    fill(tmp_path, {"runs/__init__.py": "", "runs/plan.py": ""})
    package = {"runs/__init__.py", "runs/plan.py", "runs/tune.yaml"}
    assert {name for name in names(tmp_path, everything=True) if "runs" in name} == package


@pytest.mark.parametrize("in_git", [False, True])
def test_what_tools_have_made_does_not_travel(tmp_path: Path, in_git: bool) -> None:
    """An own repository without .gitignore; an environment is known by what is in it, not by its name."""
    fill(tmp_path, {"train.py": "", "env/model.py": "", "venv/pyvenv.cfg": "", "venv/lib/torch.py": ""})
    fill(tmp_path, {"conda/conda-meta/history": "", "conda/lib/torch.so": "", "pkg/__pycache__/a.pyc": ""})
    if in_git:
        git(tmp_path, "init", "--quiet")
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert (sorted(entries(bundle)), bundle.notes) == (["env/model.py", "train.py"], ())
    assert names(tmp_path, everything=True) == ["env/model.py", "train.py"]
    assert names(tmp_path, include=["*.py"]) == ["env/model.py", "train.py"]
    assert names(tmp_path, include=["/venv/"]) == ["env/model.py", "train.py", "venv/lib/torch.py", "venv/pyvenv.cfg"]


@pytest.mark.parametrize(
    ("include", "brought"),
    [
        (["*.so", ".env"], ["pkg/fast.so", ".env"]),  # none of which names env/, venv/ or .cache/
        (["/lib/.cachet"], ["lib/.cachet"]),
        (["env/"], ["env/pyvenv.cfg", "env/lib/torch.so", "env/lib/.env"]),
        (["env/lib/*.so"], ["env/lib/torch.so"]),
        (["/**/lib/*.so"], []),
        (["e[n]v/**/*.so"], []),
        (["*.pyc"], ["pkg/a.pyc"]),
        (["a.pyc"], ["pkg/a.pyc"]),
        (["pkg/*"], ["pkg/fast.so"]),
        (["!env/", "*.so"], ["pkg/fast.so"]),
    ],
)
def test_what_tools_have_made_is_brought_by_its_name_only(
    tmp_path: Path, include: list[str], brought: list[str]
) -> None:
    """-e include='*.so .env' brings no virtual environment that is called env."""
    made = {"env/pyvenv.cfg": "", "env/lib/torch.so": "", "env/lib/.env": "", ".cache/x.so": "", "pkg/a.pyc": ""}
    fill(tmp_path, {"pkg/fast.so": "", ".env": "", "lib/.cachet": "", **made})
    fill(tmp_path, {"train.py": "", ".gitignore": "/env/\n/.env\n.cache*\n*.so\n*.pyc\n"})
    git(tmp_path, "init", "--quiet")
    assert names(tmp_path, include=include) == sorted([".gitignore", "train.py", *brought])
    (tmp_path / ".thunderheadinclude").write_text("\n".join(["# env .cache", *include]))
    assert names(tmp_path) == sorted([".gitignore", ".thunderheadinclude", "train.py", *brought])


def test_what_was_left_out_outside_git_is_said(tmp_path: Path) -> None:
    """Folders of results that are not imported."""
    fill(
        tmp_path,
        {"train.py": "import wandb", "checkpoints/a.ckpt": "x", "wandb/run/b.log": "xyz", "wandb/run/c.py": ""},
    )
    bundle = make_bundle(tmp_path, "train.py", 100)
    assert sorted(entries(bundle)) == ["train.py"]
    assert bundle.notes == (
        "not part of the job's code: 3 files in checkpoints, wandb, where results usually lie, the largest "
        "wandb/run/b.log (3 B); bring what the script needs with -e include='wandb/run/', a .thunderheadinclude "
        "file, or -e project_files=all",
    )
    assert names(tmp_path, include=["wandb/run/"]) == ["train.py", "wandb/run/b.log", "wandb/run/c.py"]
    assert names(tmp_path, include=["wandb/run/b.log"]) == ["train.py", "wandb/run/b.log"]
    everything = make_bundle(tmp_path, "train.py", 100, everything=True)
    assert sorted(entries(everything)) == ["checkpoints/a.ckpt", "train.py", "wandb/run/b.log", "wandb/run/c.py"]
    assert everything.notes == ()


@pytest.mark.parametrize(
    ("files", "script"),
    [
        ({"runs/__init__.py": "", "runs/loop.py": "", "train.py": ""}, "train.py"),
        (
            {"checkpoints/load.py": "", "lib/net.py": "def f():\n    from checkpoints import load", "train.py": ""},
            "train.py",
        ),
        ({"checkpoints/deep/load.py": "", "train.py": "import checkpoints.deep.load as load"}, "train.py"),
        ({"src/wandb/tool.py": "", "src/train.py": "from wandb.tool import x"}, "src/train.py"),
        ({"runs/first/train.py": "", "runs/first/conf.yaml": ""}, "runs/first/train.py"),
        ({"runs/__init__.py": "", "runs/wandb/__init__.py": "", "train.py": ""}, "train.py"),
    ],
)
def test_a_package_or_an_imported_module_is_no_junk(tmp_path: Path, files: dict[str, str], script: str) -> None:
    """It is code, whatever its name."""
    fill(tmp_path, {**files, "lightning_logs/x": ""})
    bundle = make_bundle(tmp_path, script, 100)
    assert sorted(entries(bundle)) == sorted(files)
    assert ["lightning_logs" in note for note in bundle.notes] == [True]


@pytest.mark.parametrize("in_git", [False, True])
def test_files_that_are_brought_although_they_are_ignored(tmp_path: Path, in_git: bool) -> None:
    """pkg/_version.py, .env, *.so, train.bin."""
    files = {"train.py": "", "pkg/a.py": "", "pkg/keep.txt": ""}
    ignored = {"wandb/.env": "", "wandb/a.bin": "", "wandb/deep/b.bin": "", "wandb/c.so": ""}
    fill(tmp_path, {**files, **ignored})
    if in_git:
        repository(tmp_path, {".gitignore": "wandb/"})
        files[".gitignore"] = ""
    assert names(tmp_path) == sorted(files)
    brought = make_bundle(tmp_path, "train.py", 100, include=["*.bin", ".env"])
    assert sorted(entries(brought)) == sorted([*files, "wandb/.env", "wandb/a.bin", "wandb/deep/b.bin"])
    assert brought.notes[0].startswith("not part of the job's code: 1 file ")
    fill(tmp_path, {".thunderheadinclude": "# what git ignores\n/wandb/*\n!/wandb/deep/\n!*.bin\n"})
    own = [*files, ".thunderheadinclude", "wandb/.env", "wandb/c.so"]
    assert names(tmp_path) == sorted(own)
    assert names(tmp_path, include=["b.bin"]) == sorted([*own, "wandb/deep/b.bin"])


def test_files_of_a_submodule_are_brought_too(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"tensor.py": "", ".gitignore": "*.so"})
    project = repository(tmp_path / "project", {"train.py": ""})
    git(project, "submodule", "--quiet", "add", str(library), "vendor")
    fill(project, {"vendor/fast.so": ""})
    assert "vendor/fast.so" not in names(project)
    assert "vendor/fast.so" in names(project, include=["*.so"])


@pytest.mark.parametrize("in_git", [False, True])
def test_patterns_that_bring_nothing_are_named(tmp_path: Path, in_git: bool) -> None:
    fill(tmp_path, {"train.py": "", "wandb/model.bin": ""})
    if in_git:
        repository(tmp_path, {".gitignore": "*.bin"})
    expected = "include='modle.bin *.pt' brings nothing, because no file that was left out matches it"
    notes = make_bundle(tmp_path, "train.py", 100, include=["modle.bin", "*.pt"]).notes
    assert notes[1:] == (expected,)
    assert len(make_bundle(tmp_path, "train.py", 100, include=["*.bin", "*.pt"]).notes) == 0


@pytest.mark.parametrize("name", ["data/a.bin", "a [1]*.bin", "it's.bin", 'a,"b".bin', "#ü\\!.bin"])
def test_what_is_said_brings_the_file(tmp_path: Path, name: str) -> None:
    repository(tmp_path, {"train.py": "", ".gitignore": "*.bin"})
    fill(tmp_path, {name: "xy", "a 11.bin": "x"})
    (note,) = make_bundle(tmp_path, "train.py", 100).notes
    option = re.search(r"with -e (.*), a \.thunderheadinclude", note)
    assert option
    (given,) = shlex.split(option[1])
    include = json.loads(given)["include"] if given.startswith("{") else split_patterns(given.removeprefix("include="))
    brought = make_bundle(tmp_path, "train.py", 100, include=include).paths
    assert set(brought) == {".gitignore", "train.py", name}


def test_what_git_ignores_is_said(tmp_path: Path) -> None:
    """Said once: how many, the largest, how to bring it; nothing of what tools make."""
    repository(tmp_path, {"train.py": "", ".gitignore": "*.bin\n/data/\n/.venv/\n__pycache__/\n"})
    fill(tmp_path, {"a.bin": "x" * 1200, "data/one.csv": "", "data/__pycache__/a.pyc": "", ".venv/torch.py": ""})
    assert make_bundle(tmp_path, "train.py", 100).notes == (
        "not part of the job's code: 2 files that git ignores, the largest a.bin (1.2 kB); bring what the script needs "
        "with -e include='a.bin', a .thunderheadinclude file, or -e project_files=all",
    )
    assert names(tmp_path, everything=True) == [".gitignore", "a.bin", "data/one.csv", "train.py"]


@pytest.fixture
def ours() -> Iterator[Path]:
    """A folder of somebody who is not root, whom ``closed`` makes of us: root may enter all."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def give(folder: Path) -> None:
    if IS_ROOT:
        for path in (folder, *folder.rglob("*")):
            os.lchown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("in_git", [False, True])
def test_folders_that_the_user_may_not_enter(ours: Path, in_git: bool) -> None:
    """As a database's; until Python 3.14 pathlib raises PermissionError for what is in them."""
    files = {"train.py": "import data", "data/a.bin": "", "wandb/deep/b": "", "wandb/c": "xyz"}
    fill(ours, files)
    if in_git:
        repository(ours, {".gitignore": "/data/\n/wandb/\n"})
    give(ours)
    with closed(ours / "data"), closed(ours / "wandb" / "deep"):
        bundle = make_bundle(ours, "train.py", 100)
    assert bundle.paths - {".gitignore"} == {"train.py"}
    assert "not part of the job's code: 1 file " in bundle.notes[0]


def test_code_in_a_folder_that_the_user_may_not_enter(ours: Path) -> None:
    repository(ours, {"train.py": "", "lib/a.py": ""})
    give(ours)
    with closed(ours / "lib"), pytest.raises(JobError) as caught:
        make_bundle(ours, "train.py", 100)
    assert str(caught.value) == (
        f"project file {ours}/lib/a.py cannot be read: Permission denied; fix it, or add it to .gitignore"
    )


@pytest.mark.parametrize(
    ("closing", "words"),
    [
        ("vendor", "git cannot list the code in OURS/project/vendor: cannot change to 'OURS/project/vendor'"),
        (".thunderheadinclude", "OURS/project/.thunderheadinclude cannot be read: Permission denied; fix it"),
    ],
)
def test_what_says_what_is_code_has_to_be_readable(ours: Path, closing: str, words: str) -> None:
    library = repository(ours / "library", {"tensor.py": ""})
    project = repository(ours / "project", {"train.py": "", ".thunderheadinclude": "*.bin"})
    git(project, "submodule", "--quiet", "add", str(library), "vendor")
    give(ours)
    with closed(project / closing), pytest.raises(JobError) as caught:
        make_bundle(project, "train.py", 1)
    assert str(caught.value).startswith(words.replace("OURS", str(ours)))


def test_files_that_go_while_they_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, {"a": "xy"})
    left = project_files.Left()
    assert left.add(tmp_path, ["gone", "a", "a/b"])
    assert (left.count, left.largest, left.size) == (1, "a", 2)


def test_not_all_that_is_left_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_files, "MOST_COUNTED", 2)
    fill(tmp_path, {"train.py": "", "wandb/a": "", "wandb/b": "", "wandb/c": "", "runs/d": ""})
    (note,) = make_bundle(tmp_path, "train.py", 100).notes
    assert note.startswith("not part of the job's code: 2 files or more in ")


def test_patterns_need_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"train.py": "", "wandb/a.bin": ""})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError) as caught:
        make_bundle(tmp_path, "train.py", 100, include=["*.bin"])
    assert str(caught.value) == (
        "include is given, but git, which finds the files that such patterns match, cannot be used on this machine; "
        "install it, or set -e project_files=all"
    )
    assert names(tmp_path, everything=True) == ["train.py", "wandb/a.bin"]


def break_config(repository: Path) -> None:
    (repository / ".git" / "config").write_text("[core")


def break_index(repository: Path) -> None:
    (repository / ".git" / "index").write_bytes(b"no index")


def break_link(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    (repository / ".git").write_text("gitdir: /nowhere/worktrees/it\n")


def break_version(repository: Path) -> None:
    git(repository, "config", "core.repositoryformatversion", "99")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_config, "bad config line "),
        (break_index, "index file smaller than expected"),
        (break_link, "not a git repository: /nowhere/worktrees/it"),
        (break_version, "99"),
    ],
)
def test_a_repository_that_git_cannot_read(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    """What it ignores, such as .env, is not sent then."""
    repository(tmp_path, {"train.py": "", ".gitignore": ".env"})
    fill(tmp_path, {".env": "PASSWORD=1"})
    damage(tmp_path)
    with pytest.raises(JobError) as caught:
        make_bundle(tmp_path, "train.py", 1)
    start, _colon, rest = str(caught.value).partition(": ")
    why, _semicolon, remedy = rest.partition("; ")
    assert start == f"git cannot list the code in {tmp_path}" and words in why
    assert remedy == f"correct that (git -C {tmp_path} status), or set -e project_files=all"
    assert names(tmp_path, everything=True)[:3] == [".env", ".gitignore", "train.py"]


@pytest.mark.parametrize("below", ["", "project"])
def test_a_repository_without_a_git_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    project = tmp_path / below
    fill(project, {"train.py": "", ".env": "PASSWORD=1"})
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError) as caught:
        make_bundle(project, "train.py", 1)
    assert str(caught.value) == (
        f"{project} lies in a git repository, but git, which lists the code there, cannot be started on this "
        "machine (No such file or directory); install it, or set -e project_files=all"
    )
    assert names(project, everything=True) == [".env", "train.py"]


def test_a_submodule_that_was_never_fetched_is_named(tmp_path: Path) -> None:
    library = repository(tmp_path / "library", {"tensor.py": ""})
    project = repository(tmp_path / "project", {"train.py": ""})
    git(project, "submodule", "--quiet", "add", str(library), "vendor")
    git(project, "commit", "--quiet", "--message", "submodule")
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    notes = make_bundle(tmp_path / "clone", "train.py", 100).notes
    assert notes == ("submodule vendor was never fetched; run: git submodule update --init",)


def test_what_git_lfs_never_fetched_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    fill(tmp_path, {"train.py": "", "model.pt": pointer})
    assert make_bundle(tmp_path, "train.py", 100).notes == (
        "the content of model.pt was never fetched by Git LFS, so only a pointer to it is part of the job's code; run: "
        "git lfs pull",
    )


def test_links_that_lead_out_are_named(tmp_path: Path) -> None:
    project = fill(tmp_path / "project", {"train.py": "", "lib/a.py": ""})
    for name, target in {
        "up": "../data",
        "data": "/mnt/data",
        "lib/b.py": "a.py",
        "mine": str(project / "lib"),
    }.items():
        (project / name).symlink_to(target)
    assert make_bundle(project, "train.py", 100).notes == (
        f"links lead out of the project (data to /mnt/data, mine to {project}/lib, up to ../data), and what they lead "
        "to is no part of the job's code; have it at that place on every node, or put it into the project",
    )


# ------------------------------------------------------------------------------------------------------------- its name


def test_the_same_code_has_the_same_name_everywhere(tmp_path: Path) -> None:
    first = fill(tmp_path / "first", {"train.py": "print(1)", "lib/a.py": "a", "lib/b.py": "b"})
    second = tmp_path / "elsewhere" / "second"
    second.parent.mkdir()
    shutil.copytree(first, second)
    for number, path in enumerate(sorted(second.rglob("*"), reverse=True)):
        os.utime(path, (1e9 + number, 1e9 + number))
    (second / "lib").chmod(0o700)
    (second / "train.py").chmod(0o600)
    bundles = [make_bundle(project, "train.py", 100) for project in (first, second, repository(second, {}))]
    assert len({bundle.sha256 for bundle in bundles}) == 1
    assert len({bundle.content for bundle in bundles}) == 1


def test_the_name_is_that_of_the_content(tmp_path: Path) -> None:
    bundle = make_bundle(fill(tmp_path, {"train.py": "print(1)"}), "train.py", 100)
    assert hashlib.sha256(zlib.decompress(bundle.content)).hexdigest() == bundle.sha256


@pytest.mark.parametrize("change", ["content", "name", "executable", "link"])
def test_other_code_has_another_name(tmp_path: Path, change: str) -> None:
    fill(tmp_path, {"train.py": "print(1)", "a.sh": "true"})
    before = make_bundle(tmp_path, "train.py", 100).sha256
    if change == "content":
        fill(tmp_path, {"a.sh": "tru3"})
    elif change == "name":
        (tmp_path / "a.sh").rename(tmp_path / "b.sh")
    elif change == "executable":
        (tmp_path / "a.sh").chmod(0o755)
    else:
        (tmp_path / "a.sh").unlink()
        (tmp_path / "a.sh").symlink_to("true")
    assert make_bundle(tmp_path, "train.py", 100).sha256 != before


@pytest.mark.parametrize(
    ("mode", "kind"), [(0o600, "file"), (0o664, "file"), (0o755, "program"), (0o700, "program"), (0o4755, "program")]
)
def test_of_the_mode_only_the_executable_bit_travels(tmp_path: Path, mode: int, kind: str) -> None:
    fill(tmp_path, {"train.py": ""})
    (tmp_path / "train.py").chmod(mode)
    assert entries(make_bundle(tmp_path, "train.py", 100)) == {"train.py": (kind, 0)}


# ------------------------------------------------------------------------------------------------------ what is refused


def test_too_large_names_the_largest(tmp_path: Path) -> None:
    fill(tmp_path, {"train.py": ""})
    for name, mebibytes in {"a.bin": 0.5, "data/b.bin": 1.25, "c.bin": 0.25, "d.bin": 0.75}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            file.truncate(int(mebibytes * 2**20))
    with pytest.raises(JobError) as caught:
        make_bundle(tmp_path, "train.py", 2)
    assert str(caught.value) == (
        f"project_dir {tmp_path} has 2.8 MB of files, but a job's code may have 2 MB (job_bundle_max_mb); the largest "
        "are data/b.bin (1.2 MB), d.bin (0.8 MB), a.bin (0.5 MB); add data and results to .gitignore, or raise the "
        "limit"
    )
    assert make_bundle(tmp_path, "train.py", 3).size == 2.75 * 2**20


def test_exactly_the_limit_is_allowed(tmp_path: Path) -> None:
    fill(tmp_path, {"train.py": "x" * 2**20})
    assert make_bundle(tmp_path, "train.py", 1).size == 2**20


def test_a_file_that_fails_to_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    fill(tmp_path, {"train.py": ""})
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(JobError) as caught:
        make_bundle(tmp_path, "train.py", 1)
    assert str(caught.value) == (
        f"project file {tmp_path}/train.py cannot be read: Input/output error; fix it, or add it to .gitignore"
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("train.py", "train.py"),
        ("./train.py", "train.py"),
        ("lib/../train.py", "train.py"),
        ("lib//a.py", "lib/a.py"),
        ("link.py", "link.py"),
    ],
)
def test_script(tmp_path: Path, script: str, expected: str) -> None:
    fill(tmp_path, {"train.py": "", "lib/a.py": ""})
    (tmp_path / "link.py").symlink_to("lib/a.py")
    assert check_script(tmp_path, script) == expected


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "no script was given; name one in the project, as in: -e script=train.py"),
        (
            "nowhere.py",
            "script nowhere.py does not exist in project_dir PROJECT; check its name, or set -e project_dir=",
        ),
        ("lib", "script lib is a folder in project_dir PROJECT; check its name, or set -e project_dir="),
        (".", "script . is a folder in project_dir PROJECT; check its name, or set -e project_dir="),
        ("broken.py", "script broken.py does not exist in project_dir PROJECT; check its name, or set -e project_dir="),
        ("/etc/passwd", "script /etc/passwd is an absolute path; name it relative to project_dir PROJECT"),
        *[
            (
                script,
                f"script {script} is outside project_dir PROJECT; only the project is copied to the nodes, so name the "
                "script relative to it, or set -e project_dir=",
            )
            for script in ("../outside.py", "lib/../../outside.py", "..")
        ],
        *[
            (
                script,
                f"script {script} is outside project_dir PROJECT; only the project is copied to the nodes, and it is a "
                "link to OUTSIDE/outside.py; put the file itself into the project",
            )
            for script in ("out.py", "folder/outside.py")
        ],
    ],
)
def test_script_refused(tmp_path: Path, script: str, message: str) -> None:
    project = fill(tmp_path / "project", {"lib/a.py": ""})
    fill(tmp_path, {"outside.py": ""})
    (project / "out.py").symlink_to("../outside.py")
    (project / "folder").symlink_to("..")
    (project / "broken.py").symlink_to("nowhere.py")
    with pytest.raises(JobError) as caught:
        check_script(project, script)
    assert str(caught.value) == message.replace("PROJECT", str(project)).replace("OUTSIDE", str(tmp_path))


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_project_that_is_no_folder(tmp_path: Path, kind: str) -> None:
    project = tmp_path / "project"
    if kind == "file":
        project.write_text("")
    with pytest.raises(JobError) as caught:
        check_script(project, "train.py")
    assert str(caught.value) == (
        f"project_dir {project} is not a directory; set -e project_dir= to the folder that holds train.py"
    )


def test_script_that_git_ignores(tmp_path: Path) -> None:
    repository(tmp_path, {".gitignore": "/local_*"})
    fill(tmp_path, {"local_train.py": ""})
    with pytest.raises(JobError) as caught:
        make_bundle(tmp_path, "local_train.py", 1)
    assert str(caught.value) == (
        f"script local_train.py is ignored by git in {tmp_path}, and a job's code is what git would track; "
        "take it out of .gitignore, bring it with -e include='local_train.py', or set -e project_dir="
    )


def test_script_in_a_folder_that_is_left_out(tmp_path: Path) -> None:
    for in_git in (False, True):
        if in_git:
            git(tmp_path, "init", "--quiet")
        for script in (".tox/train.py", f"runs/{JOB}/artifacts/train.py"):
            fill(tmp_path, {script: "", f"runs/{JOB}/job.json": ""})
            with pytest.raises(JobError) as caught:
                make_bundle(tmp_path, script, 1)
            assert str(caught.value) == (
                f"script {script} lies in a folder that is no part of a job's code, because a tool has made it, or "
                "run.yml for its records; move it, or set -e project_dir="
            )
