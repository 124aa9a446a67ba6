# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build what an interpreter on a node reads: the agent's modules, the request, and its payload.

``_agent/__init__.py`` describes the format.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins import module_utils
from ansible_collections.thunderhead.cluster.plugins.module_utils import _agent

# Python's -I and -S leave the user's environment and site-packages out, which also halves the time that an interpreter
# takes to start.
LOADER = (
    "import sys; s=sys.stdin.buffer; "
    "sys.version_info<(3,9) and sys.exit('too old: Python %d.%d.%d' % sys.version_info[:3]); "
    "n=int(s.readline() or 0); text=s.read(n); "
    "n and len(text)==n or sys.exit('the request broke off'); "
    "exec(compile(text, 'agent', 'exec'))"
)
_IMPORT = re.compile(
    rf"^ *from ({re.escape(module_utils.__name__)}(?:\.\w+)+) import (?:\(([\w\s,]*)\)|([\w ,]*))", re.MULTILINE
)
_PACKING = threading.Lock()


def _path(name: str) -> Path:
    """Return where a module or a package of module_utils lies, without the ending."""
    return Path(module_utils.__path__[0], *name.removeprefix(f"{module_utils.__name__}.").split("."))


@functools.cache
def _text(name: str) -> str:
    return _path(name).with_suffix(".py").read_text(encoding="utf-8")


def needed(module: str) -> list[str]:
    """Return the names of a module of module_utils and of those there that it may import, directly or not."""
    found = [module]
    for name in found:
        for imported, *names in _IMPORT.findall(_text(name)):
            # Of a package they are modules, else what lies in a module.
            parts = [one.split()[0] for one in "".join(names).split(",") if one.strip()]
            modules = [f"{imported}.{one}" for one in parts] if _path(imported).is_dir() else [imported]
            found += [one for one in modules if one not in found]
    return found


@functools.cache
def _modules_once(operation: str) -> bytes:
    names = {*needed(f"{_agent.__name__}.base.answer"), *needed(f"{_agent.__name__}.operations.{operation}")}
    return zlib.compress(json.dumps({name: _text(name) for name in sorted(names)}).encode())


def modules(operation: str) -> bytes:
    """Return the modules that answer the requests of this name: JSON, names to source texts, compressed by zlib."""
    with _PACKING:  # all nodes are asked at once, and the cache alone would have each thread pack them
        return _modules_once(operation)


@functools.lru_cache(maxsize=4)
def _frame(operation: str, request: str, payload: bytes) -> bytes:
    # Cached: nodes that are asked the same share one copy.
    start, sent, asked = _text(f"{_agent.__name__}.bootstrap").encode(), modules(operation), request.encode()
    return b"%d\n%b%d %d\n%b%b%b" % (len(start), start, len(sent), len(asked), sent, asked, payload)


def frame(request: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return the bytes for the standard input of the agent's interpreter.

    Args:
        request: the name of the operation as ``op``, and what it takes.
        payload: what comes with it.
    """
    return _frame(request["op"], json.dumps(dict(request)), payload)
