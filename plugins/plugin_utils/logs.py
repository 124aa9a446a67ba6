# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A rank's output: every byte into its file, chosen ranks line by line onto the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_LINE = 8192
"""Characters of one line that the terminal gets; the file has them all."""
TAIL_BYTES = 16384
"""How much of the end of a log is kept in memory to explain a failure."""

# Escape sequences (CSI, OSC, other two-character ones), then every control character but the tab: what a script
# prints, or what stands in a file it prints, must not drive the user's terminal.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class LineReader:
    """Cuts a stream of bytes into printable lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines completed by ``data``."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield printable(line)
        if len(self._rest) > 4 * LONGEST_LINE:  # no newline in sight: do not gather it all
            yield printable(self._rest)
            self._rest = b""

    def finish(self) -> Iterator[str]:
        """Yield what is left without a newline at its end."""
        if self._rest:
            yield printable(self._rest)
            self._rest = b""


def printable(line: bytes) -> str:
    """Return one line as a terminal may show it: a progress bar's last state, no escapes, no control characters."""
    text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
    text = _CONTROL.sub("", _ESCAPES.sub("", text))
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]} … ({len(text)} characters)"


class RankLog:
    """One rank's complete log on the controller, and its tail in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - it lives as long as the rank is followed
        self._tail = b""

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._file.write(data)
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    def tail(self) -> list[str]:
        """Return the last lines, printable."""
        return [printable(line) for line in self._tail.split(b"\n")]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
