# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the files of a project that a job gets: what git would track, or all."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from importlib.util import decode_source
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    format_bytes,
    join_names,
    pluralize,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.imports import imported_by, own_files

INCLUDE_FILE = ".thunderheadinclude"
"""Of a project: patterns of files that are brought besides, in the syntax of a .gitignore."""
CHOICES = ("git", "all")
TOOLS = frozenset({".git", ".hg", ".svn", ".venv", ".tox", ".nox", "node_modules", ".DS_Store"}) | frozenset(
    {"__pycache__", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
)
"""Names of what tools make for themselves: unless git tracks it, it is no code."""
RESULTS = frozenset({"lightning_logs", "checkpoints", "wandb", "runs"})
"""Names of folders that hold results where no git lists their files, unless they are imported."""
MOST_COUNTED = 5_000
"""No more of the files that are left out are counted: a start waits for it."""
COMPILED = (".pyc", ".pyo")
SHARED = (".bundles", ".checkpoints")
"""Beside the jobs' records, what they have in common; each file in it has its SHA-256 for a name."""
_NO_REPOSITORY = ("not a git repository (or any", "must be run in a work tree")
_STATUS = ("status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no", "-z", "--", ".")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Left:
    """Files that do not travel.

    Attributes:
        count: how many, at most MOST_COUNTED.
        largest: path of the largest of those, relative to the project.
        size: of that, bytes.
        why: folders that they lie in where git does not say it.
        folders: how many lie in each folder itself.
    """

    count: int = 0
    largest: str = ""
    size: int = -1
    why: list[str] = field(default_factory=list)
    folders: Counter[str] = field(default_factory=Counter)

    def add(self, project: Path, paths: Iterable[str]) -> bool:
        """Count files in; return whether there were any."""
        before = self.count
        for path in paths:
            if self.count == MOST_COUNTED:
                break
            with contextlib.suppress(OSError):  # it may go meanwhile, or lie where this user may not look
                size = os.lstat(os.path.join(project, path)).st_size
                self.count += 1
                self.folders[os.path.dirname(path)] += 1
                if size > self.size:
                    self.largest, self.size = path, size
        return self.count > before

    @property
    def sentence(self) -> str:
        """What was left out, why, and how to bring it; "" if nothing was."""
        if not self.count:
            return ""
        files = pluralize(self.count, "file") if self.count < MOST_COUNTED else f"{MOST_COUNTED} files or more"
        folder = os.path.dirname(self.largest)
        needed = f"{folder}/" if folder and self.folders[folder] > 1 else self.largest  # it may be one of several
        why = f"in {join_names(self.why)}, where results usually lie" if self.why else "that git ignores"
        return (
            f"not part of the job's code: {files} {why}, the largest {self.largest} ({format_bytes(self.size)}); bring "
            f"what the script needs with {bringing(needed)}, a {INCLUDE_FILE} file, or -e project_files=all"
        )


@dataclass
class Files:
    """What was chosen of a project.

    Attributes:
        paths: relative to it, sorted.
        in_git: whether git has said what belongs to it.
        commit: which is checked out, or None.
        dirty: whether the project differs from it.
        left: what was left out.
        unfetched: submodules that are empty.
        brought: how many files the patterns have matched.
    """

    paths: list[str]
    in_git: bool
    commit: str | None
    dirty: bool
    left: Left
    unfetched: list[str]
    brought: int = 0


def bringing(path: str) -> str:
    """Return the option that brings a file, or a folder with a slash at its end."""
    pattern = re.sub(r"([\\*?[\]!#])", r"\\\1", path)
    if re.fullmatch(r"[^\s,'\"\\]+", pattern):
        return f"-e include='{pattern}'"
    return f"-e {shlex.quote(json.dumps({'include': [pattern]}, ensure_ascii=False))}"


def with_python_path(folder: str) -> str:
    """Return the option that has Python look for modules in a folder of the project too."""
    return f"-e {shlex.quote(json.dumps({'env': {'PYTHONPATH': folder}}, ensure_ascii=False))}"


def choose(project: Path, script: str, include: Sequence[str] = (), everything: bool = False) -> Files:
    """Return what belongs to a job's code.

    Args:
        project: folder on the controller.
        script: what is started, relative to it: no folder that holds it is one of results.
        include: patterns of files to be brought besides, as in a .gitignore.
        everything: bring what git ignores, and results too.

    Raises:
        JobError: git is needed and cannot be used.
    """
    found = Files([], False, None, False, Left(), [])
    chooser = _Chooser(project, found, include)
    try:
        status = git(project, *_STATUS)
        found.dirty = everything and status is not None and bool(chooser.listed("")[1])
    except JobError:
        if not everything:
            raise
        status = None
    if status is not None:
        lines = status.split("\0")[:-1]
        found.in_git = True
        found.commit = next((line[13:] for line in lines if re.match("# branch.oid [0-9a-f]", line)), None)
        found.dirty |= any(not line.startswith("# ") for line in lines)
    if everything:
        chooser.add_all(script, everything=True)
    elif found.in_git:
        chooser.add_tracked("")
    else:
        chooser.add_all(script, everything=False)
    found.paths = sorted(chooser.chosen)
    return found


def not_made(project: Path, paths: Iterable[str] | None = None) -> list[str]:
    """Return of files, or of all in a project, those that neither a tool nor run.yml has made."""
    chooser = _Chooser(project, Files([], False, None, False, Left(), []), ())
    return [path for path in (chooser.walked("") if paths is None else paths) if not chooser.is_made(path)]


def git(folder: Path, *arguments: str) -> str | None:
    """Return git's output, or None if there is no repository, none with files (a bare one), or the answer is no.

    Raises:
        JobError: there is a repository, and git cannot or will not read it: what it ignores is not known.
    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        if not any(os.path.lexists(above / ".git") for above in (folder, *folder.parents)):
            return None
        raise JobError(
            f"{folder} lies in a git repository, but git, which lists the code there, cannot be started on this "
            f"machine ({error.strerror}); install it, or set -e project_files=all"
        ) from None
    if result.returncode == 0:
        return result.stdout
    errors = result.stderr.strip()
    fatal = [line for line in errors.splitlines() if line.startswith(("fatal: ", "error: "))]
    if (result.returncode == 1 and not fatal) or any(one in errors for one in _NO_REPOSITORY):
        return None
    if "dubious ownership" in errors:
        raise JobError(
            f"git does not read {folder}, which belongs to somebody else; make it yours, or allow it with: "
            f"git config --global --add safe.directory {folder}"
        )
    why = fatal[0].partition(": ")[2] if fatal else errors or f"it ended with exit code {result.returncode}"
    raise JobError(
        f"git cannot list the code in {folder}: {why}; correct that (git -C {folder} status), or set "
        "-e project_files=all"
    )


def names_in_patterns(patterns: Iterable[str]) -> set[str]:
    """Return the names of files and folders that patterns of a .gitignore bring, unless those have wildcards."""
    names = (name for pattern in patterns if not pattern.startswith(("#", "!")) for name in pattern.strip().split("/"))
    return {re.sub(r"\\(.)", r"\1", name) for name in names}


def is_gone(path: Path) -> bool:
    """Return whether no such file exists; a file that this user may not read counts as there, and fails when read."""
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False


def is_empty(folder: Path) -> bool:
    """Return whether a folder is empty; one that this user may not read is not, and fails when read."""
    try:
        return not os.listdir(folder)
    except OSError:
        return False


class _Chooser:
    """Fills in ``Files``."""

    def __init__(self, project: Path, found: Files, include: Sequence[str]) -> None:
        self.chosen: set[str] = set()
        self._project = project
        self._found = found
        self._include = include
        self._is_environment = functools.cache(self._looks_like_environment)
        self._is_ours = functools.cache(self._holds_records)

    def add_tracked(self, below: str) -> None:
        """Add what git tracks or would in the repository at ``below``, its submodules too; deleted files are gone."""
        folder = self._project / below
        tracked, new = self.listed(below)
        for path in [*tracked, *new, *self._matching(below, folder)]:
            full = self._project / path
            if os.path.isdir(full) and not os.path.islink(full):
                if not is_empty(full):
                    self.add_tracked(path)
                elif path in tracked:
                    self._found.unfetched.append(path)
            elif not is_gone(full):
                self.chosen.add(path)
        self._found.dirty |= bool(new)
        for _is_new, path in self._listed(below, "--ignored", "--directory"):
            if not self.is_made(path):
                self._found.left.add(self._project, self._unchosen(path))

    def listed(self, below: str) -> tuple[list[str], list[str]]:
        """Return what git tracks in a repository, and what it neither tracks nor ignores."""
        listing = self._listed(below, "--cached")
        tracked = [path for is_new, path in listing if not (is_new or self._is_record(path))]
        return tracked, [path for is_new, path in listing if is_new and not self.is_made(path)]

    def _listed(self, below: str, *arguments: str) -> list[tuple[bool, str]]:
        """Return whether git does not track a file, and its path relative to the project; folders without a slash."""
        listing = git(self._project / below, "ls-files", "-z", "-t", "--others", "--exclude-standard", *arguments) or ""
        # A submodule that was never fetched lists itself as ./ where its folder is asked.
        lines = (line for line in dict.fromkeys(listing.split("\0")) if line[2:].strip("./"))
        return [(line.startswith("?"), os.path.join(below, line[2:].rstrip("/"))) for line in lines]

    def add_all(self, script: str, everything: bool) -> None:
        """Add all files but what tools make, our records and, if not ``everything``, results."""
        results: list[str] = []
        self.chosen.update(self.walked("", None if everything else results))
        left = []
        for folder in results:  # which grows
            if script.startswith(f"{folder}/") or self._is_package(folder):
                self.chosen.update(self.walked(folder, results))
            else:
                left.append(folder)
        self.chosen.update(self._matching("", self._project, in_git=False))
        for folder in left:
            if self._found.left.add(self._project, self._unchosen(folder)):
                self._found.left.why.append(folder)

    def _matching(self, below: str, folder: Path, in_git: bool = True) -> list[str]:
        """Return what is to be brought besides: git matches it, for a project without a repository in an empty one."""
        own = folder / INCLUDE_FILE
        try:
            text = own.read_text(errors="replace") if os.path.isfile(own) else ""
        except OSError as error:
            raise JobError(f"{own} cannot be read: {error.strerror}; fix it, or remove it") from None
        if not (self._include or text):
            return []
        arguments = ["ls-files", "-z", "--others", "--ignored", *(f"--exclude={one}" for one in self._include)]
        arguments += [f"--exclude-from={own}"] if text else []
        with tempfile.TemporaryDirectory() as empty:
            if not in_git:
                git(Path(empty), "init", "--quiet")
                arguments = [f"--git-dir={empty}/.git", f"--work-tree={folder}", *arguments]
            listing = git(folder, *arguments)
        if listing is None:
            given = "include is given" if self._include else f"{own} is there"
            raise JobError(
                f"{given}, but git, which finds the files that such patterns match, cannot be used on this machine; "
                "install it, or set -e project_files=all"
            )
        named = names_in_patterns([*self._include, *text.splitlines()])
        paths = [os.path.join(below, path.rstrip("/")) for path in listing.split("\0") if path.strip("./")]
        brought = [path for path in paths if not self.is_made(path, named)]
        self._found.brought += len(brought)
        return brought

    def walked(self, below: str, results: list[str] | None = None) -> Iterator[str]:
        """Yield every file below a folder that was not made; of folders of results the paths go to ``results``."""
        for folder, folders, files in os.walk(self._project / below):
            inside = os.path.relpath(folder, self._project)
            prefix = "" if inside == "." else f"{inside}/"
            linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            real = [name for name in folders if name not in linked and not self._is_made_folder(f"{prefix}{name}")]
            if results is not None:
                results += [f"{prefix}{name}" for name in real if name in RESULTS]
                real = [name for name in real if name not in RESULTS]
            folders[:] = real
            names = [name for name in [*files, *linked] if name not in TOOLS and not name.endswith(COMPILED)]
            yield from (f"{prefix}{name}" for name in names)

    def _unchosen(self, path: str) -> Iterator[str]:
        """Yield the files that a path stands for (itself, or if it is a folder, all in it) and that were not chosen."""
        full = self._project / path
        is_folder = os.path.isdir(full) and not os.path.islink(full)
        if is_folder and self._is_made_folder(path):
            return
        for file in self.walked(path) if is_folder else [path] if os.path.lexists(full) else []:
            if file not in self.chosen:
                yield file

    def is_made(self, path: str, but: Set[str] = frozenset()) -> bool:
        """Return whether a tool, or run.yml, has made a path, and ``but`` does not list the tool's name."""
        name, kind = os.path.basename(path), os.path.splitext(path)[1]
        if (kind in COMPILED and not any(one.endswith(kind) for one in but)) or (name in TOOLS and name not in but):
            return True
        return any(self._is_made_folder(folder, but) for folder in _above(path))

    def _is_made_folder(self, folder: str, but: Set[str] = frozenset()) -> bool:
        name = os.path.basename(folder)
        is_tools = (name in TOOLS or self._is_environment(folder)) and name not in but
        return is_tools or self._is_ours(folder)

    def _is_record(self, path: str) -> bool:
        """Whether a path lies in what run.yml has recorded."""
        return any(map(self._is_ours, _above(path)))

    def _looks_like_environment(self, folder: str) -> bool:
        # Not pathlib: until Python 3.14 it raises PermissionError.
        full = self._project / folder
        return os.path.isfile(full / "pyvenv.cfg") or os.path.isdir(full / "conda-meta")

    def _holds_records(self, folder: str) -> bool:
        """Whether a folder is a job's record, or the one that holds them all (``runs/``, or what job_runs_dir says)."""
        full = self._project / folder
        try:
            names = os.listdir(full)
            records = (name for name in names if name in SHARED or is_job_id(name))
            held = "__init__.py" not in names and any(_is_record(full / name) for name in records)
            return held or _is_record(full)
        except OSError:
            return False

    def _is_package(self, folder: str) -> bool:
        """Whether a folder is a package, or a file of the code imports a module in it."""
        full = self._project / folder
        if os.path.isfile(full / "__init__.py"):
            return True
        name = os.fsencode(full.name)
        for source in sorted(path for path in self.chosen if path.endswith(".py")):
            path = self._project / source
            try:
                data = path.read_bytes()
                nodes = list(ast.walk(ast.parse(decode_source(data)))) if name in data else []
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue
            for root in dict.fromkeys((self._project, path.parent)):
                for module, wanted in imported_by(nodes, path, root):
                    if any(file.suffix == ".py" and full in file.parents for file in own_files(root, module, wanted)):
                        return True
        return False


def _above(path: str) -> Iterator[str]:
    """Yield the folders that a relative path goes through."""
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _is_record(path: Path) -> bool:
    """Whether this is the folder of a job's record, or of what the records share."""
    if is_job_id(path.name):
        return os.path.exists(path / "job.json")
    return path.name in SHARED and any(map(_SHA256.fullmatch, os.listdir(path)))
