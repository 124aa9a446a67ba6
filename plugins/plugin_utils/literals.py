# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A node's reply, from text to values: read here, for ast.literal_eval can be made to crash the interpreter.

What is read is what ``ascii()`` writes of None, booleans, numbers, strings, bytes, lists, tuples and dictionaries with
strings as keys. It takes time and memory in proportion to the text, however the text was made.
"""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import DEEPEST, LONGEST_REPLY

_ESCAPES = r"\\(?:[\\'\"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<text>b?(?:'[^'\\]*(?:{_ESCAPES}[^'\\]*)*'|"[^"\\]*(?:{_ESCAPES}[^"\\]*)*"))
    | (?P<float>-?[0-9]{{1,20}}(?:\.[0-9]{{1,20}}(?:e[-+][0-9]{{1,3}})?|e[-+][0-9]{{1,3}}))
    | (?P<int>-?[0-9]{{1,30}})
    | (?P<word>None|True|False)
    | (?P<mark>[][(){{}},:])
    )""",
    re.VERBOSE,
)
_WORDS = {"None": None, "True": True, "False": False}
_ENDS = {"[": "]", "(": ")", "{": "}"}


def parse(text: str) -> Any:
    """Return the value of a literal.

    Raises:
        ValueError: it is none, or too long, or nested too deep.
    """
    if len(text) > LONGEST_REPLY:
        raise ValueError(f"a literal of {len(text)} characters")
    reader = _Reader(text)
    value = reader.value(0)
    if text[reader.position :].strip():
        raise ValueError(f"more than a literal, from character {reader.position} on")
    return value


class _Reader:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    def _next(self) -> re.Match[str]:
        found = _TOKEN.match(self._text, self.position)
        if not found:
            raise ValueError(f"no literal at character {self.position}")
        self.position = found.end()
        return found

    def _skip(self, mark: str) -> bool:
        """Go past a mark if it comes next."""
        found = _TOKEN.match(self._text, self.position)
        if not found or found["mark"] != mark:
            return False
        self.position = found.end()
        return True

    def value(self, depth: int) -> Any:
        """Return the next value."""
        found = self._next()
        token = found[found.lastgroup or 0].strip()
        if found.lastgroup == "text":
            return _unquoted(token)
        if found.lastgroup == "word":
            return _WORDS[token]
        if found.lastgroup != "mark":
            return float(token) if found.lastgroup == "float" else int(token)
        if token not in _ENDS or depth == DEEPEST:
            raise ValueError(f"no value at character {found.start()}, or too many in one another")
        items = self._items(_ENDS[token], depth + 1, with_keys=token == "{")
        return tuple(items) if token == "(" else dict(items) if token == "{" else items

    def _items(self, end: str, depth: int, with_keys: bool) -> list[Any]:
        items: list[Any] = []
        while not self._skip(end):
            if items:
                self._expect(",")
                if self._skip(end):  # a tuple's comma
                    break
            item = self.value(depth)
            if with_keys:
                if not isinstance(item, str):
                    raise ValueError(f"a key that is no string, before character {self.position}")
                self._expect(":")
                item = item, self.value(depth)
            items.append(item)
        return items

    def _expect(self, mark: str) -> None:
        if not self._skip(mark):
            raise ValueError(f"no {mark} at character {self.position}")


def _unquoted(token: str) -> str | bytes:
    """Return what a string or bytes literal stands for."""
    body = token[2:-1] if token[0] == "b" else token[1:-1]
    text = body.encode("ascii").decode("unicode_escape") if "\\" in body else body
    return text.encode("latin-1") if token[0] == "b" else text
