# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which files a project on this machine has, and whether they are the same as before."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import tomllib
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import MEBIBYTE, measured
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import RESULTS, not_made

VERSION_OF_GIT = re.compile(
    r"(setuptools|flit)[-_]scm|use_scm_version|hatch[-_]vcs|versioningit|versioneer|dunamai|(uv|poetry)-dynamic-versioning"
    r"|setuptools-git-versioning|\bpbr\b|source\s*=\s*[\"']scm[\"']"
)
"""In a project's files, what takes the version from git."""


def is_project(path: Path) -> bool:
    """Return whether a folder is a project, and not one that only holds wheels."""
    return (path / "pyproject.toml").is_file() or (path / "setup.py").is_file()


def project_name(path: Path) -> str:
    """Return the name of a project as its pyproject.toml has it, "" if it does not say."""
    try:
        name = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(name)


def files_of(project: Path, within: Sequence[Path] = ()) -> list[str]:
    """Return the files of a project, relative to it: what git tracks, and of the rest all but what was made there.

    Those of folders that links lead to are among them; ``within`` is what has led to this one.
    """
    tracked = _listed_by_git(project, "--cached", "--recurse-submodules")
    others = None if tracked is None else _listed_by_git(project, "--others", "--exclude-standard") or []
    names = not_made(project, others)
    folders = ("build", "dist", *sorted(RESULTS))
    left = [one for one in folders if not os.path.exists(project / one / "__init__.py")]  # else a package
    is_left = re.compile(rf"({'|'.join(['(.*/)?[^/]*[.]egg-info', *left])})/")
    kept = {*(tracked or ()), *(name for name in names if not is_left.match(name))}
    top = Path(os.path.realpath(project))
    for link in [name for name in kept if os.path.islink(project / name) and os.path.isdir(project / name)]:
        target = Path(os.path.realpath(project / link))
        is_circle = top.is_relative_to(target) or target in within
        is_data = "/" not in link and link not in (tracked or ()) and not target.is_relative_to(top)
        if not is_circle and not (is_data and not os.path.exists(target / "__init__.py")):
            kept.update(f"{link}/{name}" for name in files_of(target, (*within, top)))
    return sorted(name for name in kept if os.path.isfile(project / name))


def _listed_by_git(project: Path, *which: str) -> list[str] | None:
    listed = git_output(project, "ls-files", "-z", *which)
    return None if listed is None else [name for name in listed.split("\0") if name]


def git_output(project: Path, *arguments: str) -> str | None:
    """Return git's output, or None if git fails in this folder."""
    command = ["git", "-C", str(project), *arguments]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return None
    return os.fsdecode(found.stdout) if found.returncode == 0 else None


def tree_digest(path: Path, max_mb: int) -> str:
    """Return what is the same as long as a file or folder is.

    Raises:
        JobError: it is a project with more than max_mb MiB of files.
    """
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    if is_project(path):
        names = files_of(path)
        total, largest = measured(path, names, follow_symlinks=True)
        if total > max_mb * MEBIBYTE:
            raise JobError(
                f"{path} has {total / MEBIBYTE:.1f} MB of files, and a local project that is built may have "
                f"{max_mb} MB (job_bundle_max_mb); the largest are {largest}; add data and results to the .gitignore "
                "of its git repository, or raise the limit"
            )
        for name in names:
            digest.update(f"{name}\0{file_digest(path / name)}\n".encode("utf-8", "surrogateescape"))
    else:
        for entry in sorted(path.iterdir()):
            digest.update(f"{entry.name}\0{entry.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_version_of_git(project: Path) -> bool:
    """Return whether the build of a project asks git's history for its version."""
    texts = [project / name for name in ("pyproject.toml", "setup.py", "setup.cfg")]
    known = [one.read_text(encoding="utf-8", errors="replace") for one in texts if one.is_file()]
    return (project / ".git").exists() and VERSION_OF_GIT.search("\n".join(known)) is not None
