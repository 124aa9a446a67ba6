# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the project's files that a module imports; nothing is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

Import = tuple[str, str]
"""A module, and a name in it that is wanted, or ""."""


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
