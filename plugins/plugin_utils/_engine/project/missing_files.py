# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name the file that a rank missed although it lies in the project."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import names_in
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.entry_point import search_path
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import (
    bringing,
    git,
    with_python_path,
)

_MISSING = re.compile(
    r"no such file|no module named|cannot import name|(can|could) ?not (find|open)|unable to open|n't exist|not exist"
    r"|not found|not a (local |valid )?(file|folder|directory)",
    re.IGNORECASE,
)
_MODULE = re.compile(r"No module named '([\w.]+)'")
_LACKS = re.compile(r"ModuleNotFoundError: No module named '[^'.]+'$")
_NAME = re.compile(r"cannot import name '(\w+)' from (?:partially initialized module )?'([\w.]+)'")
_PATH = re.compile(r"'([^']+)'|\"([^\"]+)\"|([^\s:'\"]+)(?=: cannot open)")
WORK = "work"
"""The folder of a job on a node in which its script runs."""
_IN_JOB = re.compile(rf".*/jobs/[^/]+/{WORK}/")


def of_job(reason: str, about: Mapping[str, Any], bundles: Path) -> str:
    """Return which file or module of the project a rank missed, in brackets; "" if that is not known.

    Args:
        reason: what the rank said last.
        about: what job.json says of the job.
        bundles: folder that keeps jobs' code.
    """
    try:
        project, bundle = Path(about["project_dir"]), about["bundle"]["sha256"]
        travelled = names_in((bundles / bundle).read_bytes())
        clause = explained(reason, project, travelled, str(about.get("script", "")))
    except (OSError, KeyError, TypeError, ValueError):  # the reason is whatever a rank has printed
        return ""
    if not clause and _LACKS.search(reason):
        clause = (
            "no node has a package with that module; add it to what python_env_requirements names, and run: "
            "ansible-playbook setup.yml"
        )
    return f" ({clause})" if clause else ""


def explained(reason: str, project: Path, travelled: Collection[str], script: str) -> str:
    """Return a clause on what of the project did not travel, or lies where it is not looked for, and the remedy; or "".

    Args:
        reason: what the rank said last.
        project: folder on the controller.
        travelled: paths that the job's code had, relative to it.
        script: path of the script, relative to it.
    """
    if not _MISSING.search(reason):
        return ""
    folders = {str(folder) for path in travelled for folder in Path(path).parents}
    for path in _named(reason, search_path(project, script, "", {}), project):
        name = os.path.relpath(path, project)
        if name in travelled or name in folders or name.startswith("..") or not os.path.lexists(path):
            continue
        pattern = f"{name}/" if os.path.isdir(path) else name
        try:
            literally = ("--literal-pathspecs", "ls-files", "--others", "--ignored", "--exclude-standard", "--", name)
            ignored = git(project, *literally)
        except JobError:
            ignored = None
        why = "git ignores it, so it was" if ignored else "it was"
        return f"{name} lies in the project, but {why} no part of the job's code; bring it with {bringing(pattern)}"
    return _elsewhere(reason, travelled)


def _elsewhere(reason: str, travelled: Collection[str]) -> str:
    """Return a clause with the place in the code of a module that Python did not find; "" if it is not there."""
    for found in _MODULE.finditer(reason):
        place = found[1].replace(".", "/")
        for path in sorted(travelled):
            folder, slash, _rest = f"/{path}".rpartition(f"/{place}.py")
            if not slash:
                folder, slash, _rest = f"/{path}".partition(f"/{place}/")
            above = folder.strip("/") or "."
            # What is in a package is not meant by its own name alone.
            if slash and path.endswith(".py") and f"{above}/__init__.py" not in travelled:
                add = with_python_path(above)
                return f"{path} lies in the project, where Python does not look for it; add {add}"
    return ""


def _named(reason: str, roots: Collection[Path], project: Path) -> Iterator[Path]:
    """Yield the files and folders of the project that the text may mean."""
    modules = [found[1] for found in _MODULE.finditer(reason)]
    modules += [f"{found[2]}.{found[1]}" for found in _NAME.finditer(reason)]
    paths = [_IN_JOB.sub("", found[1] or found[2] or found[3]) for found in _PATH.finditer(reason)]
    for root in roots:
        for module in modules:
            place = root.joinpath(*module.split("."))
            if os.path.isdir(place.parent):  # pathlib raises where this user may not look, or where a name is too long
                yield from (place.with_name(f"{place.name}.py"), *sorted(place.parent.glob(f"{place.name}.*so")))
                yield place
        for path in paths:
            full = Path(os.path.normpath(root / path))
            if not os.path.isabs(path):
                yield full
