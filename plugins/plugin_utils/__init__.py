# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The engine, on the controller: fan-out, gang, log merge, diagnosis, bundle.

Ansible's finder compiles the modules of a collection anew whenever they are imported, which for the engine takes
longer than all else that it does before it reaches the first node. So once this package is imported, its modules and
the agent's are found as Python finds any other: compiled once, then read from ``__pycache__``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

PLUGINS = __name__.rpartition(".")[0]
"""The package of plugin_utils and module_utils."""


class CachingFinder:
    """Finds the modules below ``plugin_utils`` and ``module_utils``; for ``sys.meta_path``."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where the module is, or None if it is none of these; whoever comes next may know it."""
        if not path or not name.startswith((f"{PLUGINS}.plugin_utils.", f"{PLUGINS}.module_utils.")):
            return None
        spec = FileFinder(path[0], (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)
        return spec if spec and spec.loader else None


sys.meta_path.insert(0, CachingFinder)
