# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the code of a job into one file, named by its SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import (
    bringing,
    choose,
    git,
)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
MEBIBYTE = 2**20
MOST_MB = 100
"""How large a project may be where the inventory sets nothing."""


@dataclass(frozen=True)
class Bundle:
    """A snapshot of a project.

    Attributes:
        sha256: of the content before compression, in hex: the same code has the same name everywhere.
        content: see _pack, compressed by zlib.
        size: bytes of the files in it.
        commit: git commit of the project, or None outside git.
        dirty: whether the project differed from that commit; None outside git.
        notes: what a user should know of it, a sentence each.
        include: patterns of files that were brought besides.
        everything: whether what git ignores was brought.
        paths: of the files, relative to the project; none for an earlier job's.
    """

    sha256: str
    content: bytes
    size: int
    commit: str | None
    dirty: bool | None
    notes: Sequence[str] = ()
    include: Sequence[str] = ()
    everything: bool = False
    paths: Collection[str] = field(default=(), compare=False)

    @property
    def described_commit(self) -> str:
        """Return what JOB_GIT_COMMIT has: the commit, with -dirty behind it if the project differed; "" outside git."""
        return f"{self.commit or ''}{'-dirty' if self.dirty else ''}"


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
    if not os.path.isfile(path):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise JobError(f"script {script} {what} in project_dir {project}; check its name, or set -e project_dir=")
    if not path.resolve().is_relative_to(project.resolve()):
        raise JobError(f"{outside}, and it is a link to {path.resolve()}; put the file itself into the project")
    # Through a linked folder: git lists the file where it is.
    return str(path.parent.resolve().relative_to(project.resolve()) / path.name)


def make_bundle(
    project: Path, script: str, max_mb: int, include: Sequence[str] = (), everything: bool = False
) -> Bundle:
    """Snapshot ``project``.

    Args:
        project: its folder.
        script: relative path that must be part of it (see check_script).
        max_mb: the most that its files may have together, in MiB.
        include: patterns of files to be brought besides, as in a .gitignore.
        everything: bring what git ignores, and results too.

    Raises:
        JobError: too large, unreadable, or git does not track the script.
    """
    files = choose(project, script, include, everything)
    if script not in files.paths:
        raise JobError(
            f"script {script} is ignored by git in {project}, and a job's code is what git would track; "
            f"take it out of .gitignore, bring it with {bringing(script)}, or set -e project_dir="
            if files.in_git and git(project, "check-ignore", "--quiet", "--", script) is not None
            else f"script {script} lies in a folder that is no part of a job's code, because a tool has made it, "
            "or run.yml for its records; move it, or set -e project_dir="
        )
    size = _check_size(project, files.paths, max_mb)
    data, notes = _pack(project, files.paths)
    if files.unfetched:
        notes.insert(0, f"submodule {join_names(files.unfetched)} was never fetched; run: git submodule update --init")
    if include and not (everything or files.brought):
        patterns = " ".join(include)
        notes.insert(0, f"include='{patterns}' brings nothing, because no file that was left out matches it")
    return Bundle(
        sha256=hashlib.sha256(data).hexdigest(),
        content=zlib.compress(data, level=1),
        size=size,
        commit=files.commit,
        dirty=files.dirty if files.commit else None,
        notes=tuple([*([files.left.sentence] if files.left.count else []), *notes]),
        include=tuple(include),
        everything=everything,
        paths=frozenset(files.paths),
    )


def names_in(content: bytes) -> set[str]:
    """Return the paths of the files in a bundle.

    Raises:
        ValueError: it is damaged.
    """
    try:
        data = zlib.decompress(content)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    length, _newline, rest = data.partition(b"\n")
    return set(map(os.fsdecode, rest[: int(length)].split(b"\0")[0::3]))


def measured(project: Path, paths: Sequence[str], follow_symlinks: bool = False) -> tuple[int, str]:
    """Return how many bytes files have together, and the three largest, with their sizes."""
    sizes = {}
    for path in paths:
        with contextlib.suppress(OSError):  # it is said where it is read
            sizes[path] = os.stat(project / path, follow_symlinks=follow_symlinks).st_size
    largest = sorted(sizes, key=lambda path: sizes[path], reverse=True)[:3]
    return sum(sizes.values()), ", ".join(f"{path} ({sizes[path] / MEBIBYTE:.1f} MB)" for path in largest)


def _check_size(project: Path, paths: Sequence[str], max_mb: int) -> int:
    total, largest = measured(project, paths)
    if total > max_mb * MEBIBYTE:
        raise JobError(
            f"project_dir {project} has {total / MEBIBYTE:.1f} MB of files, but a job's code may have {max_mb} MB "
            f"(job_bundle_max_mb); the largest are {largest}; add data and results to .gitignore, or raise the limit"
        )
    return total


def _pack(project: Path, paths: Sequence[str]) -> tuple[bytes, list[str]]:
    """Return a line with a header's length, the header, and the files' contents; and what a user should know of it.

    The header is ``path, kind, value`` for each file, separated by null bytes; kinds are file, program (an executable
    one), both with their size in bytes, and link with its target. Nothing else of a file counts, so the same code has
    the same bytes everywhere; and a node unpacks this without a module for archives, which takes longer to import than
    the code to unpack.
    """
    fields: list[bytes] = []
    contents: list[bytes] = []
    outside: list[str] = []
    pointers: list[str] = []
    top = os.path.realpath(project)
    for path in paths:
        full = project / path
        if os.path.islink(full):
            target = os.readlink(full)
            fields += [os.fsencode(path), b"link", os.fsencode(target)]
            if not Path(os.path.realpath(full)).is_relative_to(top) or os.path.isabs(target):
                outside.append(f"{path} to {target}")
        elif os.path.isfile(full) or not os.path.lexists(full):  # which holds for what this user may not look at, too
            try:
                contents.append(full.read_bytes())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise JobError(
                    f"project file {full} cannot be read: {error.strerror}; fix it, or add it to .gitignore"
                ) from None
            if contents[-1].startswith(LFS_POINTER):
                pointers.append(path)
            kind = b"program" if os.access(full, os.X_OK) else b"file"
            fields += [os.fsencode(path), kind, b"%d" % len(contents[-1])]
    notes = []
    if outside:
        notes.append(
            f"links lead out of the project ({join_names(outside, 3)}), and what they lead to is no part of the job's "
            "code; have it at that place on every node, or put it into the project"
        )
    if pointers:
        notes.append(
            f"the content of {join_names(pointers, 3)} was never fetched by Git LFS, so only a pointer to it is part "
            "of the job's code; run: git lfs pull"
        )
    header = b"\0".join(fields)
    return b"".join([b"%d\n" % len(header), header, *contents]), notes
