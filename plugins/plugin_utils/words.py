# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Amounts and foreign names as a user reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would act upon a terminal, or what it could not take: all control characters but the tab and the newline, those
of Unicode that turn the direction of what follows or break the line, and halves of characters."""


def amount(count: float) -> str:
    """Return a number of bytes as "312 B", "4.7 MB" or "12.3 GB", a thousand of one unit being the next."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def counted(number: int, noun: str) -> str:
    """Return "1 job", "2 jobs", "3 processes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def shown(name: str) -> str:
    """Return words that somebody else chose, in one line, with what would act upon a terminal escaped."""
    if name.isprintable():
        return name
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def shown_lines(text: str) -> str:
    """Return a text of several lines, which stay lines, with what would act upon a terminal escaped."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return "a, b and 3 more", ready to be shown."""
    text = ", ".join(map(shown, names[:most]))
    return f"{text} and {len(names) - most} more" if len(names) > most else text
