# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read of a pyproject.toml what uv does not say: settings, workspaces, and what it takes from this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomllib
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import path_of
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import (
    require_no_secret,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import is_project
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirement_lines import decoded
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.uv_settings import require_usable

with contextlib.suppress(ImportError):  # ansible-core needs it too; its sanity tests do without
    from packaging.utils import canonicalize_name

OF_A_PROJECT = (
    "build-backend",
    "conflicts",
    "default-groups",
    "dependency-groups",
    "dev-dependencies",
    "environments",
    "managed",
    "package",
    "required-environments",
    "sources",
    "workspace",
)
"""What tool.uv may have, and a uv.toml may not."""
PLACES = ("cache-dir", "extra-index-url", "find-links", "index-url", "url")
"""Settings of uv that are URLs or paths."""


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file; nothing if it cannot be read: uv reports what is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def table_within(table: Any, *names: str) -> dict[str, Any]:
    """Return a table of tables, empty where there is none."""
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def has_dynamic_dependencies(table: Mapping[str, Any]) -> bool:
    """Return whether only the build of a project says what the project depends on."""
    found = table_within(table, "project").get("dynamic")
    return isinstance(found, list) and ("dependencies" in found or "optional-dependencies" in found)


def find_beside(result: Requirements, project: Path) -> None:
    """Find what a pyproject.toml has uv take from this machine, and what that takes in turn.

    Raises:
        JobError: it is not there, or holds a password.
    """
    table = read_table(project)
    found = []
    for given in table_within(table, "tool", "uv", "sources").values():
        for one in given if isinstance(given, list) else [given]:
            if isinstance(one, dict) and isinstance(one.get("path"), str):
                found.append(project.parent / one["path"])
            elif isinstance(one, dict) and one.get("workspace") is True:
                found += _members(project)
    text = json.dumps([table.get("project"), table.get("dependency-groups")], default=str)
    found += [project.parent / path_of(one) for one in re.findall(r"@ *(file:[^\s\";]+)", text)]
    for path in (Path(os.path.normpath(one)) for one in found):
        if not path.exists():
            raise JobError(f"{project} names {path}, and there is nothing; correct it")
        if path not in (*result.beside, result.path.parent):
            result.beside.append(path)
            require_no_secret(path / "pyproject.toml")
            find_beside(result, path / "pyproject.toml")


def require_self_contained(source: Path, path: Path) -> None:
    """Raise JobError if a project, of which a copy is built, takes others from outside of it."""
    taken = Requirements(source / "pyproject.toml")
    find_beside(taken, taken.path)
    outside = [str(one) for one in taken.beside if not one.is_relative_to(source)]
    if outside:
        raise JobError(
            f"{taken.path} takes {join_names(outside)} from outside of its project (tool.uv.sources), and is built "
            f"from a copy; name each in a line of its own, as in -e {os.path.relpath(outside[0], path.parent)}, and "
            f"set python_env_uv_settings: {{no-sources: true}}"
        )


def _members(project: Path) -> list[Path]:
    """Return the projects of the workspace that one belongs to."""
    for folder in project.parents:
        workspace = table_within(read_table(folder / "pyproject.toml"), "tool", "uv", "workspace")
        if workspace:
            members = workspace.get("members")
            patterns = [one for one in members if isinstance(one, str)] if isinstance(members, list) else []
            return [folder, *sorted(one for pattern in patterns for one in folder.glob(pattern) if is_project(one))]
    return []


def take_settings(result: Requirements) -> None:
    """Take the settings that uv finds for a pyproject.toml: the first uv.toml, or tool.uv, from its workspace upwards.

    Raises:
        JobError: they hold a password, or what uv does not take.
    """
    start = [*_workspace_of(result.path), result.path][0].parent
    for folder in (start, *start.parents):
        path, settings = folder / "uv.toml", read_table(folder / "uv.toml")
        if not path.is_file():
            path = folder / "pyproject.toml"
            settings = table_within(read_table(path), "tool", "uv")
        if settings:
            require_no_secret(path)
            require_usable(settings, f"{path}, settings of uv")
            result.remember(path, decoded(path))
            result.uv_settings = {
                name: _placed(name, value, folder) for name, value in settings.items() if name not in OF_A_PROJECT
            }
            return


def _placed(name: str, value: Any, folder: Path) -> Any:
    """Return the value of a setting of uv with absolute paths, and with what JSON has."""
    if isinstance(value, list):
        return [_placed(name, one, folder) for one in value]
    if isinstance(value, dict):
        return {key: _placed(key, one, folder) for key, one in value.items()}
    if name in PLACES and isinstance(value, str) and "://" not in value:
        return os.path.normpath(folder / value)
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def explicit_indexes(requirements: Requirements, locks: str) -> list[str]:
    """Return the indexes that projects take only packages from that they name, and locks have: uv lists none."""
    own = [requirements.path.parent] if requirements.path.name == "pyproject.toml" else []
    found: list[str] = []
    for folder in (*own, *requirements.sources, *requirements.beside):
        path = folder / "pyproject.toml"
        tables = [table_within(read_table(one), "tool", "uv") for one in (path, *_workspace_of(path))]
        sources = [one for table in tables for one in table_within(table, "sources").items()]
        used = [given for name, given in sources if re.search(rf"(?m)^{re.escape(canonicalize_name(name))}==", locks)]
        named = [one.get("index") for given in used for one in _listed(given) if isinstance(one, dict)]
        indexes = [one for table in tables for one in _listed(table.get("index")) if isinstance(one, dict)]
        found += [str(one.get("url")) for one in indexes if one.get("explicit") and one.get("name") in named]
    return [url for url in dict.fromkeys(found) if re.match("https?://", url)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _workspace_of(project: Path) -> list[Path]:
    """Return the pyproject.toml of the workspace that one belongs to, if there is another."""
    members = _members(project)
    return [members[0] / "pyproject.toml"] if project.parent in members[1:] else []
