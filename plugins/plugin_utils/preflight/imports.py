# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What a script imports as it starts, read and not run: its own imports, and those of the project's modules it uses."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import decode_source
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError

Import = tuple[str, str]
"""A module, and a name in it that is wanted, or ""."""
_AS_SCRIPT = ("__name__ == '__main__'", "'__main__' == __name__")


def of_script(project: Path, script: str) -> list[Import]:
    """Return the imports that have to work on a node for the script to start.

    Those within functions, in a ``try`` that catches ImportError, and under an ``if`` whose outcome is the node's may
    fail: left out. What the standard library has depends on the node's Python, so its modules are among them.

    Args:
        project: folder on the controller.
        script: path relative to it, which is there.

    Raises:
        JobError: a file cannot be parsed.
    """
    root = (project / script).parent
    found: dict[Import, None] = {}
    seen: set[Path] = set()
    waiting = [project / script]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module, name in _imports(path, root, is_main=path == project / script):
            own = own_files(root, module, name)
            if own:
                waiting += own
            elif module:
                found[module, name] = None
    return list(found)


def own_files(root: Path, module: str, name: str) -> list[Path]:
    """Return the files of the project that an import runs; none if the module is not the project's."""
    words = [word for word in [*module.split("."), name] if word]
    files: list[Path] = []
    folder = root
    for word in words:
        if (folder / f"{word}.py").is_file():
            return [*files, folder / f"{word}.py"]
        folder = folder / word
        if not folder.is_dir():
            break
        initial = folder / "__init__.py"
        files.append(initial if initial.is_file() else folder)
    return files


def _imports(path: Path, root: Path, is_main: bool) -> Iterator[Import]:
    if path.is_dir():  # a package without __init__.py
        return
    try:
        # Given bytes, ast would accept a comment that is not in the file's encoding, which Python refuses (PEP 263).
        tree = ast.parse(decode_source(path.read_bytes()), filename=str(path))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise JobError(
            f"{path}, line {line} cannot be parsed: it has a byte that is not {error.encoding}; save it as UTF-8, or "
            "name its encoding in its first line (PEP 263)"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise JobError(f"{path}{where} cannot be parsed: {getattr(error, 'msg', error)}; correct it") from None
    yield from imported_by(running(tree.body, is_main), path, root)


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


def running(body: Sequence[ast.stmt], is_main: bool) -> Iterator[ast.stmt]:
    """Yield the statements that run, uncaught, when a module is imported, or (``is_main``) is the script itself."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            if is_main and ast.unparse(node.test) in _AS_SCRIPT:
                yield from running(node.body, is_main)
        elif isinstance(node, ast.Try):
            caught = [handler.type for handler in node.handlers]
            if None not in caught and not any(map(_names_import_error, caught)):
                yield from running(node.body, is_main)
            yield from running([*node.orelse, *node.finalbody], is_main)
        elif isinstance(node, ast.With):
            if not any(_names_import_error(item.context_expr) for item in node.items):  # contextlib.suppress
                yield from running(node.body, is_main)
        elif isinstance(node, (ast.For, ast.While, ast.ClassDef)):
            yield from running(node.body, is_main)


def _names_import_error(expression: ast.expr | None) -> bool:
    names = {node.id for node in ast.walk(expression or ast.Constant(None)) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
