# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy what another machine needs of local projects, archives and folders of wheels."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import (
    files_of,
    git_output,
    has_version_of_git,
    is_project,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements


def place_of(number: int, path: Path) -> str:
    """Return where a source lies in the folder of sources; a path without characters that a URL would escape."""
    return f"{number}/{re.sub(r'[^A-Za-z0-9_.+-]', '_', path.name)}"


def lay_out(requirements: Requirements, folder: Path, has_history: bool = True) -> None:
    """Have copies of projects, and links to archives and folders of wheels, lie where the text says.

    Args:
        requirements: with sources.
        folder: empty.
        has_history: whether git's history of a project is there too, whose tags may say the version.

    Raises:
        JobError: a project cannot be built without its history.
    """
    for number, path in enumerate(requirements.sources):
        place = folder / place_of(number, path)
        place.parent.mkdir()
        if path.is_dir() and is_project(path) and not has_history:
            _copy_project(path, place)
        elif path.is_dir() and is_project(path):
            _copy_files(path, place)
            _give_history(path, place)
        else:
            place.symlink_to(path)


def _give_history(project: Path, place: Path) -> None:
    """Have git's history of a project count in a copy of it."""
    repository = project / ".git"
    if repository.is_dir():
        (place / ".git").symlink_to(repository)
    elif repository.is_file() and (paths := git_output(project, "rev-parse", "--absolute-git-dir", "--git-common-dir")):
        # A submodule or worktree: its own settings say where its files lie, and not for one more worktree.
        own, common = paths.splitlines()
        (place / ".git").mkdir()
        for name in ("HEAD", "index"):
            if (path := Path(own, name)).exists():
                shutil.copy(path, place / ".git")
        (place / ".git" / "commondir").write_text(f"{(project / common).resolve()}\n")


def lay_out_project(requirements: Requirements, folder: Path) -> None:
    """Have a copy of what another machine needs of a pyproject.toml or uv.lock in a folder.

    Raises:
        JobError: it needs what is not sent.
    """
    project = requirements.path.parent
    if requirements.beside:
        raise JobError(
            f"{requirements.path} takes {join_names([str(one) for one in requirements.beside])} from the controller, "
            "which is sent to no node; set python_env_resolve_on: localhost, or set python_env_requirements to a "
            "requirements.txt with lines such as: -e ./lib"
        )
    if requirements.is_built:
        _copy_project(project, folder)
    else:
        for name in ("pyproject.toml", "uv.lock", "uv.toml"):
            if (project / name).is_file():
                shutil.copy(project / name, folder)


def _copy_project(project: Path, place: Path) -> None:
    """Copy a project without git's history."""
    if has_version_of_git(project):
        raise JobError(
            f"{project} takes its version from git's history, which is sent to no node; set "
            "python_env_resolve_on: localhost, or write the version into the project's pyproject.toml"
        )
    _copy_files(project, place)


def _copy_files(project: Path, place: Path) -> None:
    for name in files_of(project):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, place / name)
