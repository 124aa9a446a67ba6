# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""How much a reply may hold: the agent sends no more, and the controller believes no more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from typing import Any

LONGEST_TEXT = 4096
"""Characters of a string."""
LONGEST_DOCUMENT = 2**20
"""Characters of a ``Document``."""
LARGEST = 2**63 - 1
"""Of any number: as large as a file can be."""
MOST_ITEMS = 100_000
"""Of any list."""
DEEPEST = 16
"""How deep lists and dictionaries may lie in one another."""
LONGEST_REPLY = 2**22
"""Characters of a reply as a literal. What is longer than a few kilobytes comes as its payload."""


class Document(str):
    """What a file or a program's output holds, or a word of a command: it may be longer than other text."""

    __slots__ = ()


def encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: the halves of characters in it are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can hold a text."""
    return encodable(text) == text


def bounded(number: float) -> Any:
    """Return a number as a reply can hold it: some network file systems claim to have 16 EiB free."""
    return max(-LARGEST, min(LARGEST, number))  # which is LARGEST for what is no number


def fitted(value: Any, depth: int = 0) -> Any:
    """Return a value of a reply within the bounds: what is too long is cut, what lies too deep is None."""
    if isinstance(value, Document):
        return encodable(value[:LONGEST_DOCUMENT])
    if isinstance(value, str):
        return cut(encodable(value), LONGEST_TEXT)
    if isinstance(value, (bool, bytes)) or value is None:
        return value
    if isinstance(value, (int, float)):
        return bounded(value)
    if depth == DEEPEST:
        return None
    if isinstance(value, dict):
        return {fitted(name): fitted(value[name], depth + 1) for name in list(value)[:MOST_ITEMS]}
    items = [fitted(item, depth + 1) for item in value[:MOST_ITEMS]]
    return tuple(items) if isinstance(value, tuple) else items


def cut(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters; an ellipsis stands for what is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
