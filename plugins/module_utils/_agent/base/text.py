# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Format amounts, names and untrusted text for a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_LINE = 8192
"""Characters of one line that the terminal gets; the file has them all."""
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would act upon a terminal, or what it could not take: all control characters but the tab and the newline, those
of Unicode that turn the direction of what follows or break the line, and halves of characters."""
# Escape sequences (CSI, OSC, other two-character ones), then every control character but the tab: what a script
# prints, or what stands in a file it prints, must not drive the user's terminal.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")


def format_bytes(count: float) -> str:
    """Return a number of bytes as "312 B", "4.7 MB" or "12.3 GB", a thousand of one unit being the next."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def pluralize(number: int, noun: str) -> str:
    """Return "1 job", "2 jobs", "3 processes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def escape(name: str) -> str:
    """Return untrusted text in one line, with what would act upon a terminal escaped."""
    if name.isprintable():
        return name
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Return "a, b and 3 more", ready to be shown."""
    text = ", ".join(map(escape, names[:most]))
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def printable(line: bytes) -> str:
    """Return one line as a terminal may show it: a progress bar's last state, no escapes, no control characters."""
    text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
    text = ACTING.sub("", _ESCAPES.sub("", text))
    return cut_line(text)


def cut_line(text: str) -> str:
    """Return as much of a line as is shown."""
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]} … ({len(text)} characters)"
