# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a requirements file, pyproject.toml or lock file, and all that it includes.

What uv gets is one text of all files, in UTF-8, with the local projects, archives and folders it names as copies or
links in a folder of its own. So the same text can be resolved on another machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import path_of
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.check_lines import collect
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import (
    require_no_secret,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_pyproject import (
    find_beside,
    has_dynamic_dependencies,
    read_table,
    require_self_contained,
    table_within,
    take_settings,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirement_lines import (
    VALUED,
    Line,
    decoded,
    logical_lines,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements

CONVERTED = {
    "pipfile.lock": "pipenv requirements > requirements.txt",
    "pipfile": "pipenv requirements > requirements.txt",
    "poetry.lock": "poetry export -o requirements.txt",
    "pdm.lock": "pdm export -o requirements.txt",
}
"""Lock files of other tools, and how those write what is understood here."""


def read(path: Path, extras: Sequence[str] = (), groups: Sequence[str] = (), has_sources: bool = True) -> Requirements:
    """Read a requirements file, pyproject.toml, uv.lock or pylock.toml, and all that it includes.

    Args:
        path: on this machine, absolute.
        extras: of a pyproject.toml or uv.lock.
        groups: likewise.
        has_sources: whether uv uses tool.uv.sources in a pyproject.toml.

    Raises:
        JobError: it cannot be read, or lines of it cannot be installed: all of these at once.
    """
    name = path.name.lower()
    if path.is_dir():
        raise JobError(f"{path} is a folder; set python_env_requirements to a file in it, such as pyproject.toml")
    if not path.is_file():
        raise JobError(
            f"The requirements file {path} does not exist on the controller; correct python_env_requirements"
        )
    if name in CONVERTED:
        raise JobError(
            f"{path} is another tool's lock file; run: {CONVERTED[name]}, and set python_env_requirements to that"
        )
    if name.endswith((".yml", ".yaml")):
        raise JobError(
            f"{path} is an environment of conda, and nodes are set up with packages from PyPI; write what it has below "
            "pip:, and the Python packages of its dependencies by their names on PyPI (pytorch is torch there), into a "
            "requirements.txt, and set python_env_requirements to that"
        )
    if name in ("setup.py", "setup.cfg"):
        raise JobError(
            f"{path} defines how a project is built; write -e . into a requirements.txt beside it, and set "
            "python_env_requirements to that"
        )
    if (extras or groups) and name not in ("pyproject.toml", "uv.lock"):
        raise JobError(
            f"{path} has no extras or groups; take python_env_extras and python_env_groups out of the inventory, or "
            "set python_env_requirements to a pyproject.toml"
        )
    result = Requirements(path)
    if name in ("pyproject.toml", "uv.lock"):
        require_no_secret(path)
        project = path.with_name("pyproject.toml")
        require_no_secret(project)
        find_beside(result, project)
        table = read_table(project)
        result.requires_python = str(table_within(table, "project").get("requires-python", ""))
        result.is_built = name == "pyproject.toml" and has_dynamic_dependencies(table)
    if name == "pyproject.toml":
        # A group without its file would be of the folder that uv's settings lie in.
        options = [f"--extra={one}" for one in extras] + [f"--group=pyproject.toml:{one}" for one in groups]
        result.arguments = ["pyproject.toml", *options]
        result.remember(path, decoded(path))
        take_settings(result)
    elif name == "uv.lock":
        result.arguments = ["uv.lock", *[f"--extra={one}" for one in extras], *[f"--group={one}" for one in groups]]
        result.remember(path, decoded(path))
        project = path.with_name("pyproject.toml")
        if not project.is_file():
            raise JobError(f"{path} lies without its pyproject.toml, which has to be beside it")
        result.remember(project, decoded(project))
    elif name == "pylock.toml" or (name.startswith("pylock.") and name.endswith(".toml")):
        text = decoded(path)
        result.remember(path, text)
        collect(result, list(logical_lines(path, pinned_by(path, text), False)))
    else:
        collect(result, list(_included(result, path, False, ())))
    for source in result.sources:
        require_no_secret(source / "pyproject.toml")
        if has_sources:
            require_self_contained(source, path)
    return result


def _included(result: Requirements, path: Path, constrains: bool, within: Sequence[Path]) -> Iterator[Line]:
    """Yield the lines of a file and of all that it includes."""
    text = decoded(path)
    result.remember(path, text)
    for line in logical_lines(path, text, constrains):
        option = VALUED.fullmatch(line.text)
        if not option or option["flag"] not in ("-r", "--requirement", "-c", "--constraint"):
            yield line
            continue
        value = option["value"].strip("'\"")
        if "://" in value and not value.startswith("file:"):
            yield line
            continue
        target = Path(os.path.normpath(path.parent / path_of(value)))
        if not target.is_file():
            raise JobError(f"{line} names {value}, and there is no file {target}; correct that line")
        if target not in (*within, path):
            yield from _included(
                result, target, constrains or option["flag"].startswith(("-c", "--c")), (*within, path)
            )


def pinned_by(path: Path, text: str) -> str:
    """Return a pylock.toml as lines of requirements with hashes.

    Raises:
        JobError: it is none.
    """
    try:
        packages = tomllib.loads(text)["packages"]
        return "\n".join(_pinned(one) for one in packages)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{path} is no lock file as PEP 751 has it ({error}); make it again") from None


def _pinned(package: Mapping[str, Any]) -> str:
    marker = f" ; {package['marker']}" if "marker" in package else ""
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    name = package["name"]
    if vcs := package.get("vcs"):
        subdirectory = f"#subdirectory={vcs['subdirectory']}" if "subdirectory" in vcs else ""
        where = vcs.get("url") or vcs["path"]
        return f"{name} @ {vcs['type']}+{where}@{vcs['commit-id']}{subdirectory}{marker}"
    if archive := package.get("archive"):
        place, files = archive.get("url") or f"./{archive['path']}", [archive]
        requirement = f"{name} @ {place}"
    elif directory := package.get("directory"):
        return f"{name} @ ./{directory['path']}{marker}"
    else:
        requirement = f"{name}=={package['version']}"
    hashes = [f" --hash={kind}:{value}" for one in files for kind, value in sorted(one["hashes"].items())]
    return f"{requirement}{marker}{''.join(hashes)}"
