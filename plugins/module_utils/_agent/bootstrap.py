# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Import the agent's modules from standard input, and answer the request that follows them there.

The first text that an interpreter on a node executes; ``__init__.py`` describes what it reads.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import zlib
from importlib.machinery import ModuleSpec
from typing import Any

AGENT = "ansible_collections.thunderhead.cluster.plugins.module_utils._agent"


class SentModules:
    """Find and load modules whose source texts are at hand; an entry of ``sys.meta_path``."""

    def __init__(self, texts: dict[str, str]) -> None:
        """Keep the source text of each module, by its full name."""
        self._texts = texts

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how to load a module, or a package that any of the modules lies in; None for any other."""
        is_package = any(other.startswith(f"{name}.") for other in self._texts)
        return ModuleSpec(name, self, is_package=is_package) if is_package or name in self._texts else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Have Python make the module as usual."""

    def exec_module(self, module: Any) -> None:
        """Execute a module's text; a package has none."""
        exec(compile(self._texts.get(module.__name__, ""), module.__name__, "exec"), vars(module))


def main() -> None:
    """Read modules and request, and answer it."""
    gc.disable()  # it would be 2 of the 42 ms that preparing takes; a process that outlives the answer enables it
    lengths = [int(length) for length in sys.stdin.buffer.readline().split()]
    parts = [sys.stdin.buffer.read(length) for length in lengths]
    if len(parts) != 2 or [len(part) for part in parts] != lengths:
        sys.exit("the request broke off")  # pylint: disable=ansible-bad-function
    modules, asked = parts
    sys.meta_path.insert(0, SentModules(json.loads(zlib.decompress(modules))))
    request = json.loads(asked)
    operation = importlib.import_module(f"{AGENT}.operations.{request['op']}")
    answer = importlib.import_module(f"{AGENT}.base.answer").answer
    answer(request, getattr(operation, request["op"]))
    os._exit(0)  # nothing is left to be written; to take the interpreter down would be 5 of 39 ms


if __name__ == "__main__":
    main()
