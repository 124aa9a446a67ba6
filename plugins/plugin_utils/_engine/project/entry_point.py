# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the script or module that a job starts with, and where Python looks for what it imports."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from importlib.util import decode_source
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import check_script
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.on_node.try_imports import needed
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import with_python_path

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def find_entry(project: Path, script: str, module: str, env: Mapping[str, str]) -> str:
    """Return the file of the project that a job starts, relative to the project.

    Args:
        project: folder on the controller.
        script: path of a script in it, or "".
        module: name of a module to be started instead, or "".
        env: variables of the job.

    Raises:
        JobError: there is none, or it cannot be started so.
    """
    if script and module:
        raise JobError(f"both script ({script}) and module ({module}) are given, and a job starts one; leave one out")
    require_no_home(project)
    if module:
        return check_module(project, module, env)
    path = check_script(project, script)
    require_no_relative_imports(project, path)
    return path


def require_no_home(project: Path) -> None:
    """Raise JobError for a folder that holds a home: its keys and passwords would travel to every node."""
    home = Path(os.path.expanduser("~")).resolve()
    if home.is_relative_to(project.resolve()):
        raise JobError(
            f"project_dir {project} holds your home {home}, and with it keys and passwords that no node is to have; "
            "put the project into a folder of its own, and set -e project_dir= to that"
        )


def search_path(project: Path, script: str, module: str, env: Mapping[str, str]) -> list[Path]:
    """Return the folders of the project where Python looks for modules, and the project: a script may add that itself.

    Args:
        project: folder on the controller.
        script: path relative to it; "" if a module is started.
        module: its name; "" if a script is started.
        env: variables of the job, of which PYTHONPATH counts.
    """
    first = project if module else (project / script).parent
    named = [project / os.path.normpath(one) for one in env.get("PYTHONPATH", "").split(":") if one]
    return list(dict.fromkeys([first, *(one for one in named if one.is_relative_to(project)), project]))


def check_module(project: Path, module: str, env: Mapping[str, str]) -> str:
    """Return the file of the project that ``python -m module`` runs, relative to the project.

    Raises:
        JobError: the name is none, or the project has no such module.
    """
    if not _MODULE.fullmatch(module):
        path = module.removesuffix(".py").strip("./").replace("/", ".")
        written = f"; write -e module={path}" if _MODULE.fullmatch(path) else ""
        raise JobError(f"module is {module}, but a module's name has parts with dots between them{written}")
    if not project.is_dir():
        raise JobError(
            f"project_dir {project} is not a directory; set -e project_dir= to the folder that holds {module}"
        )
    path = os.path.join(*module.split("."))
    for folder in search_path(project, "", module, env):
        for file in (folder / path / "__main__.py", folder / f"{path}.py"):
            if os.path.isfile(file):
                return str(file.relative_to(project))
    for folder in sorted(project.glob("*/")):
        if any(os.path.isfile(folder / one) for one in (f"{path}.py", f"{path}/__main__.py")):
            raise JobError(
                f"module {module} lies in {folder.name}/ of project_dir {project}, where Python does not look; add "
                f"{with_python_path(folder.name)}"
            )
    if os.path.isfile(project / path / "__init__.py"):
        raise JobError(f"module {module} is a package without a __main__.py; name the module of it that is to run")
    raise JobError(
        f"module {module} is neither {path}.py nor {path}/__main__.py in project_dir {project}; check its name, or set "
        "-e project_dir= to the folder that holds its first part"
    )


def require_no_relative_imports(project: Path, script: str) -> None:
    """Raise JobError for a script that imports relative to its package, which Python knows only if started by -m."""
    try:
        tree = ast.parse(decode_source((project / script).read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # Python will say it
    for node in needed(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise JobError(
                f"script {script} has a relative import in line {node.lineno}, which works only in a module of a "
                f"package; start it as one: {_as_module(project, script)} instead of script="
            )


def _as_module(project: Path, script: str) -> str:
    """Return the options that start a script as a module of its package."""
    path = project / script
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder != project:
        folder = folder.parent
    if path.parent == project:  # the project itself is the package
        module = f"{project.name}.{path.stem}"
        return f"-e project_dir={project.parent} -e module={module}"
    if folder == path.parent:  # without __init__.py, all the way down
        folder = project
    module = ".".join(path.relative_to(folder).with_suffix("").parts)
    if folder == project:
        return f"-e module={module}"
    return f"-e module={module} {with_python_path(str(folder.relative_to(project)))}"
