# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The code of a job as one snapshot: what git would track, as one file named by its SHA-256."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError

JUNK = (
    frozenset({".git", ".hg", ".svn", ".venv", "venv", "env", ".tox", "node_modules", ".DS_Store"})
    | {"__pycache__", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
    | {"lightning_logs", "checkpoints", "wandb", "runs"}
)
"""Names left out where there is no git to say what belongs to the code."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Bundle:
    """A snapshot of a project.

    Attributes:
        sha256: of the content before compression, in hex: the same code has the same name everywhere.
        content: see _pack, compressed by zlib.
        size: bytes of the files in it.
        commit: git commit of the project, or None outside git.
        dirty: whether the project differed from that commit; None outside git.
    """

    sha256: str
    content: bytes
    size: int
    commit: str | None
    dirty: bool | None


def check_script(project: Path, script: str) -> str:
    """Return ``script`` as a path relative to ``project``.

    Raises:
        JobError: it is missing, no file, or outside the project by any route.
    """
    if not script:
        raise JobError("no script was given; name one in the project, as in: -e script=train.py")
    if not project.is_dir():
        raise JobError(
            f"project_dir {project} is not a directory; set -e project_dir= to the folder that holds {script}"
        )
    if os.path.isabs(script):
        raise JobError(f"script {script} is an absolute path; name it relative to project_dir {project}")
    outside = f"script {script} is outside project_dir {project}; only the project is copied to the nodes"
    if os.path.normpath(script).split(os.sep)[0] == os.pardir:
        raise JobError(f"{outside}, so name the script relative to it, or set -e project_dir=")
    path = project / os.path.normpath(script)
    if not path.is_file():
        raise JobError(
            f"script {script} does not exist in project_dir {project}; check its name, or set -e project_dir="
        )
    if not path.resolve().is_relative_to(project.resolve()):
        raise JobError(f"{outside}, and it is a link to {path.resolve()}; put the file itself into the project")
    # Through a linked folder: git lists the file where it is.
    return str(path.parent.resolve().relative_to(project.resolve()) / path.name)


def make_bundle(project: Path, script: str, max_mb: int) -> Bundle:
    """Snapshot ``project``.

    Args:
        project: its folder.
        script: relative path that must be part of it (see check_script).
        max_mb: the most that its files may have together, in MiB.

    Raises:
        JobError: too large, unreadable, or git does not track the script.
    """
    commit = _git(project, "rev-parse", "HEAD")
    status = _git(project, "status", "--porcelain", "--", ".") if commit else None
    in_git = _git(project, "rev-parse", "--is-inside-work-tree")
    paths = sorted(_tracked(project) if in_git else _walked(project))
    if script not in paths:
        raise JobError(
            f"script {script} is ignored by git in {project}, and a job's code is what git would track; "
            "take it out of .gitignore, or set -e project_dir="
            if in_git
            else f"script {script} lies in a folder that is left out of a job's code where git does not track "
            f"{project}; move it, or set -e project_dir="
        )
    size = _check_size(project, paths, max_mb)
    data = _pack(project, paths)
    return Bundle(
        sha256=hashlib.sha256(data).hexdigest(),
        content=zlib.compress(data, level=1),
        size=size,
        commit=commit.strip() if commit else None,
        dirty=bool(status) if commit else None,
    )


def _git(project: Path, *arguments: str) -> str | None:
    """Return git's output, or None if there is no git, no repository or no commit.

    Raises:
        JobError: there is a repository, and git will not read it: what it ignores is not known.
    """
    try:
        result = subprocess.run(
            ["git", "-C", str(project), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.CalledProcessError as error:
        if "dubious ownership" in error.stderr:
            raise JobError(
                f"git does not read {project}, which belongs to somebody else; make it yours, or allow it with: "
                f"git config --global --add safe.directory {project}"
            ) from None
        return None
    except OSError:
        return None
    return result.stdout


def _tracked(project: Path) -> list[str]:
    """What git tracks or would, submodules too, relative to the project; deleted files are gone."""
    listing = _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    found = []
    for path in set(listing.split("\0")) - {"", "./"}:  # "./": a submodule that was never fetched
        full = project / path
        if full.is_dir() and not full.is_symlink():
            found += [os.path.join(path, below) for below in _tracked(full)]
        elif os.path.lexists(full):
            found.append(path)
    return found


def _walked(project: Path) -> list[str]:
    """Every file but the usual junk, relative to the project."""
    found = []
    for folder, folders, files in os.walk(project):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in JUNK and name not in linked]
        names = [name for name in [*files, *linked] if name not in JUNK and not name.endswith((".pyc", ".pyo"))]
        found += [os.path.relpath(os.path.join(folder, name), project) for name in names]
    return found


def _check_size(project: Path, paths: Sequence[str], max_mb: int) -> int:
    sizes = {path: os.lstat(project / path).st_size for path in paths if os.path.lexists(project / path)}
    total = sum(sizes.values())
    if total > max_mb * MEBIBYTE:
        largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:3]
        named = ", ".join(f"{path} ({sizes[path] / MEBIBYTE:.1f} MB)" for path in largest)
        raise JobError(
            f"project_dir {project} has {total / MEBIBYTE:.1f} MB of files, but a job's code may have {max_mb} MB "
            f"(job_bundle_max_mb); the largest are {named}; add data and results to .gitignore, or raise the limit"
        )
    return total


def _pack(project: Path, paths: Sequence[str]) -> bytes:
    """Return a line with a header's length, the header, and the files' contents.

    The header is ``path, kind, value`` for each file, separated by null bytes; kinds are file, program (an executable
    one), both with their size in bytes, and link with its target. Nothing else of a file counts, so the same code has
    the same bytes everywhere; and a node unpacks this without a module for archives, which takes longer to import than
    the code to unpack.
    """
    fields: list[bytes] = []
    contents: list[bytes] = []
    for path in paths:
        full = project / path
        if full.is_symlink():
            fields += [os.fsencode(path), b"link", os.fsencode(os.readlink(full))]
        elif full.is_file():
            try:
                contents.append(full.read_bytes())
            except OSError as error:
                raise JobError(
                    f"project file {full} cannot be read: {error.strerror}; fix it, or add it to .gitignore"
                ) from None
            kind = b"program" if os.access(full, os.X_OK) else b"file"
            fields += [os.fsencode(path), kind, b"%d" % len(contents[-1])]
    header = b"\0".join(fields)
    return b"".join([b"%d\n" % len(header), header, *contents])
