# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a requirements file as pip does: its encoding, and its lines without comments."""

from __future__ import annotations

import codecs
import locale
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF16, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
)
"""In the order in which pip looks for them."""
CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")
COMMENT = re.compile(r"(^|\s+)#.*$")
VALUED = re.compile(
    r"(?P<flag>-r|--requirement|-c|--constraint|-e|--editable|-f|--find-links|-i|--index-url|--extra-index-url)"
    r"(?:\s*=\s*|\s+|(?<=^-[rcefi])(?=\S))(?P<value>.+)"
)
"""An option whose value is a path or a URL."""
WORD = r"(?:'[^']*'|\"[^\"]*\"|\S)++"
"""Without a space outside of quotes."""


@dataclass(frozen=True)
class Line:
    """A logical line: what pip sees, without comments, several joined by backslashes as one; each option is one.

    Attributes:
        file: where it stands.
        number: of its first line there.
        text: never empty.
        constrains: whether it only says which version, if any (``-c``).
    """

    file: Path
    number: int
    text: str
    constrains: bool = False

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.file} line {self.number}"


def decoded(path: Path) -> str:
    """Return a file's text: in the encoding that its byte order mark or a coding line names, as pip does, else UTF-8.

    Raises:
        JobError: it cannot be read so.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}; correct python_env_requirements") from None
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return _decode(path, data[len(mark) :], encoding)
    for line in data.split(b"\n")[:2]:
        if line.startswith(b"#") and (found := CODING.search(line)):
            return _decode(path, data, found[1].decode("ascii"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        usual = locale.getpreferredencoding(False)
        if usual.lower().replace("-", "") not in ("utf8", "ascii", "ansi_x3.41968", "usascii"):
            return _decode(path, data, usual)
        raise JobError(
            f"{path} line {number} is not in UTF-8; save it as UTF-8, or name its encoding in the first line, as in: "
            "# -*- coding: latin-1 -*-"
        ) from None


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise JobError(f"{path} cannot be read as {encoding}: {error}; save it as UTF-8") from None


def logical_lines(path: Path, text: str, constrains: bool) -> Iterator[Line]:
    """Yield what pip sees of a file."""
    joined, first = "", 0
    numbered = list(enumerate(text.splitlines(), start=1))
    for number, line in numbered:
        first = first or number
        is_comment = COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment and number < len(numbered):
            joined += line[:-1]
            continue
        joined_line = COMMENT.sub("", joined + (f" {line}" if is_comment else line)).strip()
        for one in _options(joined_line) if joined_line.startswith("-") else [joined_line] if joined_line else []:
            yield Line(path, first, one, constrains)
        joined, first = "", 0


def _options(line: str) -> list[str]:
    """Return the options of a line, each with what stands behind it."""
    found: list[str] = []
    for word in re.findall(WORD, line):
        if word.startswith("-"):
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found
