# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import torch and what a script imports; executed on a node, with the environment's Python.

The text of this file is sent. It prints JSON objects, one a line, each written at once, because what is being imported
may end this Python; the agent's ``try_environment`` reads them:

    python, torch, cuda, nccl   versions
    devices, usable             how many GPUs torch sees, and whether it can use them
    importing                   what is being imported: torch, or what the line of a file asks for; None at the end
    failed                      of such a place, why that failed

Which files are imported is Python's to decide. Only the script itself is read: its imports are run in their order, and
between them simple statements that change its path or its environment, but nothing else: it would begin to train.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import platform
import sys
import traceback
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_SETTERS = frozenset(
    {
        *("sys.path.append", "sys.path.insert", "sys.path.extend", "site.addsitedir"),
        *("os.environ.setdefault", "os.environ.update", "os.putenv", "dotenv.load_dotenv"),
        *("rootutils.setup_root", "rootutils.set_root", "pyrootutils.setup_root", "pyrootutils.set_root"),
    }
)
"""Functions that change where modules are found, or the variables that modules may read."""
_SET = frozenset({"sys.path", "os.environ"})
"""What changes the same by being assigned to."""
_READERS = frozenset(
    {
        *("os.fspath", "os.getcwd", "os.getenv", "os.environ.get", "dotenv.find_dotenv", "str", "list", "tuple"),
        *("pathlib.Path", "pathlib.PurePath", "pathlib.Path.cwd", "pathlib.Path.home"),
    }
)
"""Functions that change nothing, besides those of os.path."""
_METHODS = frozenset(
    {
        *("absolute", "as_posix", "exists", "expanduser", "is_dir", "joinpath", "relative_to", "resolve", "with_name"),
        *("format", "join", "lstrip", "partition", "rpartition", "rsplit", "rstrip", "split", "strip"),
    }
)
"""Methods of paths and strings that change nothing; one of paths, ``replace``, renames a file."""
_EXPRESSIONS = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.Starred, ast.keyword, ast.Call),
    *(ast.List, ast.Tuple, ast.Dict, ast.JoinedStr, ast.FormattedValue, ast.IfExp, ast.Compare, ast.BoolOp),
    *(ast.BinOp, ast.UnaryOp, ast.Add, ast.Div, ast.Mod, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)
"""What an expression that changes nothing, and takes no time, consists of."""
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_AS_SCRIPT = ("__name__ == '__main__'", "'__main__' == __name__")


class Trial:
    """One Python that tries what a job would import."""

    def __init__(self, longest: int) -> None:
        """Keep standard output for messages: what modules print goes to standard error."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._longest = longest
        self._work = os.path.join(os.getcwd(), "")
        self._torch_failed = ""

    def report(self, **more: Any) -> None:
        """Send a message to the agent."""
        print(json.dumps(more), file=self._out, flush=True)

    def _error_text(self, error: BaseException) -> str:
        lines = str(error).replace(self._work, "").strip().splitlines()
        return (type(error).__name__ + (f": {lines[-1]}" if lines else ""))[: self._longest]

    def torch(self) -> None:
        """Import torch and report its version and GPUs."""
        self.report(importing="torch")
        try:
            torch: Any = importlib.import_module("torch")
        except BaseException as error:
            self._torch_failed = self._error_text(error)
            self.report(failed={"torch": self._torch_failed})
            return
        self.report(torch=torch.__version__, cuda=torch.version.cuda)
        self.report(devices=torch.cuda.device_count(), usable=torch.cuda.is_available())
        if torch.version.cuda and torch.distributed.is_nccl_available():
            self.report(nccl=".".join(map(str, torch.cuda.nccl.version())))

    def script(self, name: str, module: str) -> None:
        """Run the imports of a script, a path relative to the folder of the code, or of the module that it is."""
        path = self._work + name
        first = self._work if module else os.path.join(os.path.dirname(path), "")
        if not getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, first[:-1])
        main = types.ModuleType("__main__")
        main.__file__ = path
        self.report(importing=name)
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
                self.report(importing=f"{name}, line {statement.lineno}")
            try:
                exec(compile(ast.Module([statement], []), path, "exec"), vars(main))
            except BaseException as error:
                if is_import and self._error_text(error) != self._torch_failed:
                    self._fail(error, f"{name}, line {statement.lineno}")

    def _fail(self, error: BaseException, place: str) -> None:
        """Report why an import failed, and the last line of the code that asked for it."""
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename.startswith(self._work):
                place = f"{frame.filename[len(self._work) :]}, line {frame.lineno}"
        if isinstance(error, SyntaxError) and (error.filename or "").startswith(self._work):
            place = f"{error.filename[len(self._work) :]}, line {error.lineno}"  # type: ignore[index]
        self.report(failed={place: self._error_text(error)})


def needed(tree: ast.Module) -> list[ast.stmt]:
    """Return the imports that have to work for a script to start, and what it does to its path, with what that needs.

    Imports within functions, in a ``try`` that catches ImportError, and under an ``if`` whose outcome is the node's may
    fail, or may never come. Of the rest only simple statements are taken, outside of functions, loops, ``with`` and
    ``try``: those that change the path or the environment by a function that is known, and assignments that they need.
    """
    taken: list[ast.stmt] = []
    scope = _Scope()
    assignments = []
    for statement in _running(tree.body):
        if isinstance(statement, (ast.Import, ast.ImportFrom)) or scope.sets_path(statement):
            taken.append(statement)
        elif scope.is_assignment(statement):
            taken.append(statement)
            assignments.append(statement)
        scope.enter(statement)
    chosen: list[ast.stmt] = []
    names: set[str] = set()
    for statement in reversed(taken):
        if statement not in assignments or names & _bound(statement):
            chosen.insert(0, statement)
            names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return chosen


class _Scope:
    """What the names of a script stand for, as far as it has been read."""

    def __init__(self) -> None:
        self._names = {"__file__": "", "__name__": "", "str": "str", "list": "list", "tuple": "tuple"}
        """Where a name comes from, as ``os.path.join``; "" for a value that is made of paths and strings."""

    def enter(self, statement: ast.stmt) -> None:
        """Take in what a statement gives a name to."""
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                self._names[name] = alias.name if alias.asname else name
        elif isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (statement.module or "")
            self._names.update({alias.asname or alias.name: f"{module}.{alias.name}" for alias in statement.names})
        elif self.is_assignment(statement) or self.sets_path(statement):
            value = self._origin(statement.value)  # type: ignore[attr-defined]
            self._names.update(dict.fromkeys(_bound(statement), value))
        elif not isinstance(statement, ast.If):  # whose statements come singly
            for name in _bound(statement):
                self._names.pop(name, None)

    def sets_path(self, statement: ast.stmt) -> bool:
        """Whether this is a simple statement that changes the path or the environment, and nothing else."""
        if not isinstance(statement, (ast.Expr, *_ASSIGNMENTS)):
            return False
        value = statement.value
        if isinstance(value, ast.Call) and self._origin(value.func) in _SETTERS:
            targets = [] if isinstance(statement, ast.Expr) else _targets(statement)
            return all(map(_is_name, targets)) and all(map(self._is_harmless, [*value.args, *value.keywords]))
        if isinstance(statement, ast.Expr) or value is None or not self._is_harmless(value):
            return False
        places = [target.value if isinstance(target, ast.Subscript) else target for target in _targets(statement)]
        return all(self._origin(place) in _SET for place in places) and all(map(self._is_harmless, _targets(statement)))

    def is_assignment(self, statement: ast.stmt) -> bool:
        """Whether this gives names a value that is made of paths and strings."""
        if not isinstance(statement, _ASSIGNMENTS) or statement.value is None:
            return False
        read = [statement.value]
        read += [statement.annotation] if isinstance(statement, ast.AnnAssign) else []
        read += [statement.target] if isinstance(statement, ast.AugAssign) else []
        return all(map(_is_name, _targets(statement))) and all(map(self._is_harmless, read))

    def _is_harmless(self, expression: ast.AST) -> bool:
        """Whether to evaluate it changes nothing."""
        for node in ast.walk(expression):
            if not isinstance(node, _EXPRESSIONS) or (isinstance(node, ast.Name) and node.id not in self._names):
                return False
            if isinstance(node, ast.Call):
                origin = self._origin(node.func)
                is_method = isinstance(node.func, ast.Attribute) and not origin and node.func.attr in _METHODS
                if not (is_method or origin in _READERS or origin.startswith("os.path.")):
                    return False
        return True

    def _origin(self, expression: ast.expr | None) -> str:
        """Return where a name, or an attribute of one, comes from; "" if it is no import."""
        if isinstance(expression, ast.Attribute):
            above = self._origin(expression.value)
            return f"{above}.{expression.attr}" if above else ""
        return self._names.get(expression.id, "") if isinstance(expression, ast.Name) else ""


def _targets(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.expr]:
    return statement.targets if isinstance(statement, ast.Assign) else [statement.target]


def _is_name(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) or (isinstance(target, ast.Tuple) and all(map(_is_name, target.elts)))


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement gives a value."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {node.id for node in stored if isinstance(node.ctx, ast.Store)}


def _running(body: Sequence[ast.stmt], imports: bool = True, others: bool = True) -> Iterator[ast.stmt]:
    """Yield the statements that run, uncaught, when a script is started.

    Args:
        body: of the script, or of a statement in it.
        imports: whether its imports run.
        others: whether its other statements, those under an ``if`` too, are of interest.
    """
    for node in body:
        is_import = isinstance(node, (ast.Import, ast.ImportFrom))
        if imports if is_import else others:
            yield node
        if isinstance(node, ast.If):
            if ast.unparse(node.test) in _AS_SCRIPT:
                yield from _running(node.body, imports, others)
            else:
                yield from _running([*node.body, *node.orelse], False, others)
        elif isinstance(node, ast.Try):
            caught = [handler.type for handler in node.handlers]
            if None not in caught and not any(map(_names_import_error, caught)):
                yield from _running(node.body, imports, False)
            yield from _running([*node.orelse, *node.finalbody], imports, False)
        elif isinstance(node, ast.With):
            if not any(_names_import_error(item.context_expr) for item in node.items):  # contextlib.suppress
                yield from _running(node.body, imports, False)
        elif isinstance(node, (ast.For, ast.While, ast.ClassDef)):
            yield from _running(node.body, imports, False)


def _names_import_error(expression: ast.expr | None) -> bool:
    names = {node.id for node in ast.walk(expression or ast.Constant(None)) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def main(script: str, module: str, longest: str) -> None:
    """Try it all.

    Args:
        script: path relative to the working directory, or "" for torch alone.
        module: name of the module that it is started as, or "".
        longest: how many characters of an error are reported.
    """
    sys.argv = [script]
    trial = Trial(int(longest))
    trial.report(python=platform.python_version())
    trial.torch()
    if script:
        trial.script(script, module)
    trial.report(importing=None)
