# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Import torch, and what a script imports, as a job would: not here, but on a node, in the environment's Python.

The text of this file is sent. It prints JSON objects, one a line, written at once, for what is being imported may end
this Python; the agent's ``trial`` reads them:

    python, torch, cuda, nccl   versions
    devices, usable             how many GPUs torch sees, and whether it can use them
    importing                   what is being imported: torch, or what the line of a file asks for; None at the end
    failed                      of such a place, why that failed

Which files are imported is Python's to decide. Only the script itself is read: its imports are run in their order, and
before them what it does to its path, but nothing else, for it would begin to train.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import platform
import re
import sys
import traceback
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_PATH = re.compile(r"\bsys\.path\b|\baddsitedir\b|\bsetup_root\b|\bpythonpath\b|\bchdir\b")
"""What changes where modules are found, in a statement."""
_ENVIRONMENT = re.compile(r"(os\.)?environ\b|os\.putenv\b|(dotenv\.)?load_dotenv\b")
"""What changes the variables that modules may read, at a statement's beginning."""
_AS_SCRIPT = ("__name__ == '__main__'", "'__main__' == __name__")


class Trial:
    """One Python that tries what a job would import."""

    def __init__(self, longest: int) -> None:
        """Keep standard output for what is told: what modules print goes to standard error."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._longest = longest
        self._work = os.path.join(os.getcwd(), "")
        self._torch_failed = ""

    def tell(self, **more: Any) -> None:
        """Tell the agent."""
        print(json.dumps(more), file=self._out, flush=True)

    def _words(self, error: BaseException) -> str:
        words = str(error).replace(self._work, "").strip().splitlines()
        return (type(error).__name__ + (f": {words[-1]}" if words else ""))[: self._longest]

    def torch(self) -> None:
        """Import torch and tell what it is."""
        self.tell(importing="torch")
        try:
            torch: Any = importlib.import_module("torch")
        except BaseException as error:
            self._torch_failed = self._words(error)
            self.tell(failed={"torch": self._torch_failed})
            return
        self.tell(torch=torch.__version__, cuda=torch.version.cuda)
        self.tell(devices=torch.cuda.device_count(), usable=torch.cuda.is_available())
        if torch.version.cuda and torch.distributed.is_nccl_available():
            self.tell(nccl=".".join(map(str, torch.cuda.nccl.version())))

    def script(self, name: str, module: str) -> None:
        """Run the imports of a script, a path relative to the folder of the code, or of the module that it is."""
        path = self._work + name
        first = self._work if module else os.path.join(os.path.dirname(path), "")
        if not getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, first[:-1])
        main = types.ModuleType("__main__")
        main.__file__ = path
        self.tell(importing=name)
        try:
            if module:  # which imports the packages above it
                package = module if os.path.basename(name) == "__main__.py" else module.rpartition(".")[0]
                main.__package__ = package
                if package:
                    importlib.import_module(package)
            with open(path, "rb") as file:
                # Given bytes, ast would accept a comment that is not in the file's encoding, which Python refuses.
                tree = ast.parse(importlib.util.decode_source(file.read()), path)
        except BaseException as error:
            self._fail(error, name)
            return
        sys.modules["__main__"], sys.argv = main, [path]
        for statement in needed(tree):
            is_import = isinstance(statement, (ast.Import, ast.ImportFrom))
            if is_import:
                self.tell(importing=f"{name}, line {statement.lineno}")
            try:
                exec(compile(ast.Module([statement], []), path, "exec"), vars(main))
            except BaseException as error:
                if is_import and self._words(error) != self._torch_failed:
                    self._fail(error, f"{name}, line {statement.lineno}")

    def _fail(self, error: BaseException, place: str) -> None:
        """Tell why an import failed, and which line of the code has asked for it last."""
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.startswith(self._work):
                place = f"{frame.filename[len(self._work) :]}, line {frame.lineno}"
        if isinstance(error, SyntaxError) and (error.filename or "").startswith(self._work):
            place = f"{error.filename[len(self._work) :]}, line {error.lineno}"  # type: ignore[index]
        self.tell(failed={place: self._words(error)})


def needed(tree: ast.Module) -> list[ast.stmt]:
    """Return the imports that have to work for a script to start, and what it does to its path, with what that needs.

    Imports within functions, in a ``try`` that catches ImportError, and under an ``if`` whose outcome is the node's may
    fail, or may never come.
    """
    statements = list(_running(tree.body))
    chosen: list[ast.stmt] = []
    names: set[str] = set()
    for statement in reversed(statements):
        is_import = isinstance(statement, (ast.Import, ast.ImportFrom))
        if is_import or _sets_path(statement) or names & _bound(statement):
            chosen.insert(0, statement)
            if not is_import:
                names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return chosen


def _sets_path(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)):
        return False
    text = ast.unparse(statement)
    if isinstance(statement, (ast.If, ast.For, ast.While, ast.With)):
        return not text.startswith("if __name__") and bool(_PATH.search(text))
    return bool(_PATH.search(text) or _ENVIRONMENT.match(text))


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a simple statement, or the definition of a function, gives a value."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
        return {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    return set()


def _running(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run, uncaught, when a script is started."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            if ast.unparse(node.test) in _AS_SCRIPT:
                yield from _running(node.body)
        elif isinstance(node, ast.Try):
            caught = [handler.type for handler in node.handlers]
            if None not in caught and not any(map(_names_import_error, caught)):
                yield from _running(node.body)
            yield from _running([*node.orelse, *node.finalbody])
        elif isinstance(node, ast.With):
            if not any(_names_import_error(item.context_expr) for item in node.items):  # contextlib.suppress
                yield from _running(node.body)
        elif isinstance(node, (ast.For, ast.While, ast.ClassDef)):
            yield from _running(node.body)


def _names_import_error(expression: ast.expr | None) -> bool:
    names = {node.id for node in ast.walk(expression or ast.Constant(None)) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def main(script: str, module: str, longest: str) -> None:
    """Try it all.

    Args:
        script: path relative to the working directory, or "" for torch alone.
        module: name of the module that it is started as, or "".
        longest: how many characters of an error are told.
    """
    sys.argv = [script]
    trial = Trial(int(longest))
    trial.tell(python=platform.python_version())
    trial.torch()
    if script:
        trial.script(script, module)
    trial.tell(importing=None)
