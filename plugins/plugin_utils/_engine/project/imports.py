# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the project's files that a module imports; nothing is run."""

from __future__ import annotations

import ast
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.util import decode_source
from pathlib import Path

Import = tuple[str, str]
"""A module, and a name in it that is wanted, or ""."""
MOST_BYTES = 300_000
"""Of code that is read: some 100 ms. What is imported by then decides."""


def own_modules(
    project: Path, script: str, search_path: Sequence[Path] = (), files: Collection[str] | None = None
) -> Iterator[tuple[Path, bytes, ast.Module]]:
    """Yield a script and the project's modules that it imports, directly or not: path, content and syntax tree.

    Args:
        project: folder on the controller.
        script: path relative to it.
        search_path: folders of the project where it finds its modules; by default its own.
        files: paths of the files that belong to the job's code; None for all.
    """
    roots = search_path or [(project / script).parent]
    waiting = deque([project / script])
    seen = set(waiting)
    left = MOST_BYTES
    while waiting and left > 0:
        path = waiting.popleft()
        if files is not None and path.suffix and str(path.relative_to(project)) not in files:
            continue
        try:
            data = path.read_bytes() if path.is_file() else b""
            left -= len(data)
            tree = ast.parse(decode_source(data))
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue  # Python will say it
        yield path, data, tree
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        for root in roots:
            if path.parent.is_relative_to(root):
                for module, name in imported_by(nodes, path, root):
                    new = [file for top in roots for file in own_files(top, module, name) if file not in seen]
                    seen.update(new)
                    waiting += new


def own_files(root: Path, module: str, name: str) -> list[Path]:
    """Return the files of the project that an import runs; none if the module is not the project's."""
    names = [part for part in [*module.split("."), name] if part]
    files: list[Path] = []
    folder = root
    for part in names:
        if os.path.isfile(folder / f"{part}.py"):
            return [*files, folder / f"{part}.py"]
        folder = folder / part
        if not os.path.isdir(folder):
            break
        initial = folder / "__init__.py"
        files.append(initial if os.path.isfile(initial) else folder)
    return files


def imported_by(nodes: Iterable[ast.AST], path: Path, root: Path) -> Iterator[Import]:
    """Yield what statements in the file ``path`` import; those that import nothing are passed over."""
    package = path.parent.relative_to(root).parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, "" if alias.name == "*" else alias.name) for alias in node.names)
