# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the locks that a node resolved: parts of them become names of files and arguments of uv."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import GIT_URL, WHEELS
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure

FILE = r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,200}\.(whl|tar\.gz)"
PACKAGE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}"
INDEX = r"(https?|file)://[^@\s\x00-\x1f]{1,2000}"
LINKS = r"https?://[^@,\s\x00-\x1f]{1,2000}"
COMMIT = r"[0-9a-f]{40,64}"
BACKEND = r"[a-z0-9.]{1,10}"
LINE = re.compile(
    rf"{PACKAGE}(\[[^]\n]*\])?(==[^\s\\]+| @ https?://[^\s\\]+| @ file://{re.escape(WHEELS)}/{FILE})"
    r"( ;[^\n\\]*)?(?: \\)?"
    r"|--(no|only)-binary[ =][^\s\\]+|[ ]{4}--hash=[a-z0-9]+:[0-9a-f]+(?: \\)?|"
)
"""What a line of a lock may be, and nothing else of what a requirements file may have."""
MOST_CHARACTERS = 5_000_000
MOST_NAMES = 10_000
MOST_SHOWN = 10_000


def checked(answer: Mapping[str, Any], targets: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what ``resolution.resolve`` does, and the files of the wheels, of a node's answer.

    Args:
        answer: of modules/python_env_resolve.
        targets: that it was asked for.

    Raises:
        Failure: no resolution has such a form.
    """
    resolution = _mapping(answer.get("resolution"), "resolution")
    contents = _mapping(answer.get("contents"), "contents")
    found = {
        "locks": _texts(resolution, "locks", lambda text: all(map(LINE.fullmatch, text.split("\n")))),
        "backends": _texts(resolution, "backends", lambda text: re.fullmatch(BACKEND, text)),
        "indexes": _list(resolution, "indexes", lambda text: not text or re.fullmatch(INDEX, text)),
        "find_links": _list(resolution, "find_links", lambda text: re.fullmatch(LINKS, text)),
        "needs_torch": _list(resolution, "needs_torch", lambda text: re.fullmatch(PACKAGE, text)),
        "wheels": _list(resolution, "wheels", lambda text: re.fullmatch(FILE, text)),
        "commits": _texts(resolution, "commits", lambda text: re.fullmatch(COMMIT, text)),
        "warnings": _list(resolution, "warnings", lambda text: len(text) < 10_000),
    }
    for url in found["commits"]:
        if not GIT_URL.fullmatch(str(url)):
            raise _not_so("commits", url)
    for name in ("locks", "backends"):
        if set(found[name]) != set(targets):
            raise _not_so(name, sorted(set(found[name]) ^ set(targets), key=str)[0])
    if sorted(found["wheels"]) != sorted(contents, key=str):
        raise _not_so("contents", next((name for name in contents if name not in found["wheels"]), "less than wheels"))
    try:
        files = {name: base64.b64decode(content, validate=True) for name, content in contents.items()}
    except (TypeError, ValueError, binascii.Error):
        raise _not_so("contents", "not in base64") from None
    return found, files


def unmet(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the requirements that a node reports as impossible, and why, as far as its reply has that form."""
    given = answer.get("unmet")
    pairs = given if isinstance(given, list) else []
    return [(str(one[0]), str(one[1])) for one in pairs[:MOST_NAMES] if isinstance(one, list) and len(one) == 2]


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping) or len(value) > MOST_NAMES:
        raise _not_so(name, value)
    return dict(value)


def _texts(resolution: Mapping[str, Any], name: str, is_right: Callable[[str], Any]) -> dict[str, str]:
    found = _mapping(resolution.get(name), name)
    for text in found.values():
        _require(name, text, is_right)
    return found


def _list(resolution: Mapping[str, Any], name: str, is_right: Callable[[str], Any]) -> list[str]:
    found = resolution.get(name)
    if not isinstance(found, list) or len(found) > MOST_NAMES:
        raise _not_so(name, found)
    for text in found:
        _require(name, text, is_right)
    return [str(text) for text in found]


def _require(name: str, text: Any, is_right: Callable[[str], Any]) -> None:
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise _not_so(name, text)
    if not is_right(text):
        wrong = next((line for line in text.split("\n") if not LINE.fullmatch(line)), text) if name == "locks" else text
        raise _not_so(name, wrong)


def _not_so(name: str, value: Any) -> Failure:
    return Failure(
        f"what the node answers is no resolution: in its {name} stands {escape(str(value)[:200])}; find out what "
        "answers there, or set python_env_resolve_on to another node or to localhost"
    )
