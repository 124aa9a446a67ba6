# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The agent as it travels: what an interpreter on a node is given to run, with every request.

Of the few milliseconds that an agent lives, compiling it would take the most, so its modules are sent compiled, from
this machine's ``__pycache__``, and as text besides: a node with another Python than this machine's compiles what it
needs.
"""

from __future__ import annotations

import functools
import marshal
import re
import threading
import zlib
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins import module_utils
from ansible_collections.thunderhead.cluster.plugins.module_utils import agent
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent import protocol

# Python's -I and -S leave the user's environment and site-packages out, which also halves the time that an interpreter
# takes to start.
LOADER = (
    "import sys; s=sys.stdin.buffer; "
    "sys.version_info<(3,9) and sys.exit('too old: Python %d.%d.%d' % sys.version_info[:3]); "
    "exec(compile(s.read(int(s.readline())), 'agent', 'exec'))"
)
# Imports the agent's modules from what came with the request, each when it is first needed.
INSTALLER = """\
import sys, zlib
from marshal import loads
from _frozen_importlib_external import MAGIC_NUMBER
lengths = {lengths}
code, text = map(sys.stdin.buffer.read, lengths)
(len(code), len(text)) == lengths or sys.exit('the request broke off')
class Sent:
    compiled = MAGIC_NUMBER == {magic}
    modules = loads(zlib.decompress(code)) if compiled else eval(zlib.decompress(text))
    def find_spec(name, path=None, target=None):
        return type(sys.__spec__)(name, Sent) if name in Sent.modules else None
    def create_module(spec):
        return None
    def exec_module(module):
        sent = Sent.modules[module.__name__]
        exec(sent if Sent.compiled else compile(sent, module.__name__, 'exec'), vars(module))
sys.meta_path.insert(0, Sent)
for name in {packages}:
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = []
from {module} import operation
from {protocol} import answer
"""
_IMPORT = re.compile(
    rf"^ *from ({re.escape(module_utils.__name__)}(?:\.\w+)+) import (?:\(([\w\s,]*)\)|([\w ,]*))", re.MULTILINE
)
_PACKING = threading.Lock()
FASTEST = 1
"""Level of compression: it must not take longer than what it saves on the way."""


def _place(name: str) -> Path:
    """Return where a module or a package of module_utils lies, without the ending."""
    return Path(module_utils.__path__[0], *name.removeprefix(f"{module_utils.__name__}.").split("."))


@functools.cache
def _text(name: str) -> str:
    return _place(name).with_suffix(".py").read_text()


def answering(op: str) -> str:
    """Return the name of the module of the agent that answers requests of the name ``op``."""
    names = (f"{agent.__name__}.{path.stem}" for path in Path(agent.__path__[0]).glob("[a-z]*.py"))
    (found,) = (name for name in names if f"@operation\ndef {op}(" in _text(name))
    return found


def needed(module: str) -> list[str]:
    """Return the names of a module of module_utils and of those there that it may import, directly or not."""
    found = [module]
    for name in found:
        for imported, *names in _IMPORT.findall(_text(name)):
            # Of a package they are modules, else what lies in a module.
            words = [one.split()[0] for one in "".join(names).split(",") if one.strip()]
            modules = [f"{imported}.{one}" for one in words] if _place(imported).is_dir() else [imported]
            found += [one for one in modules if one not in found]
    return found


def _compiled(name: str) -> object:
    return SourceFileLoader(name, str(_place(name).with_suffix(".py"))).get_code(name)


def packed(names: Iterable[str]) -> tuple[bytes, bytes]:
    """Return modules compiled and as text, compressed."""
    names = list(names)
    code = marshal.dumps({name: _compiled(name) for name in names})
    text = ascii({name: _text(name) for name in names})
    return zlib.compress(code, FASTEST), zlib.compress(text.encode(), FASTEST)


@functools.cache
def _program_once(op: str) -> tuple[bytes, bytes]:
    module = answering(op)
    names = needed(module)
    code, text = packed(names)
    installer = INSTALLER.format(
        lengths=(len(code), len(text)),
        magic=MAGIC_NUMBER,
        packages=sorted({name[:at] for name in names for at, character in enumerate(name) if character == "."}),
        module=module,
        protocol=protocol.__name__,
    )
    return installer.encode(), code + text


def _program(op: str) -> tuple[bytes, bytes]:
    """Return what is the same for all requests of the name ``op``: the text up to the request, and what follows it."""
    with _PACKING:  # all nodes are asked at once, and the cache alone would have each thread pack it
        return _program_once(op)


@functools.lru_cache(maxsize=4)
def frame(op: str, request: str, payload: bytes = b"") -> bytes:
    """Return the bytes for the standard input of the agent's interpreter.

    Cached: nodes that are asked the same share one copy.

    Args:
        op: name of the operation.
        request: with the operation, as a Python literal.
        payload: what comes with it.
    """
    installer, modules = _program(op)
    text = b"%banswer(%b)\n" % (installer, request.encode())
    return b"%d\n%b%b%b" % (len(text), text, modules, payload)
