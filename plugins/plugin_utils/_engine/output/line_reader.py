# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Split a rank's output into lines that are safe for a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    ACTING,
    LONGEST_LINE,
    cut_line,
    printable,
)

BAR_SECONDS = 10
"""How long a line that is redrawn again and again (a progress bar) waits until it is shown as it stands."""

_LONGEST_BYTES = 4 * LONGEST_LINE  # a character has four bytes at most

_CONTROL_BYTES = bytes({*range(32), 127} - set(b"\t\n"))
_CURSOR_UP = re.compile(rb"\x1b\[\d*[AF]")


class LineReader:
    """Cuts a stream of bytes into printable lines, in linear time; of a line without end it keeps a bounded part.

    A line redrawn with carriage returns is shown when a newline ends it, in its last state, and until then at most
    every BAR_SECONDS, in its newest. Lines that are redrawn together (several progress bars: the cursor is moved up
    again) count as one such line.

    Attributes:
        due: when, on the clock, ``feed(b"")`` may have a line to show though no more output comes; None if never.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rest = bytearray()
        self.drop()

    def drop(self) -> None:
        """Forget the line that has not ended yet."""
        self._rest.clear()  # what followed the last newline or redraw
        self._cut = False  # that became too long: left out up to the next newline or redraw
        self._bar = ""  # the line's newest complete state, if it is being redrawn
        self._up = False  # it has moved the cursor up
        self._above = ""  # newest state of the lines before that were redrawn together with it
        self._several = False  # there are such lines
        self._shown = ""  # the state that was shown last
        self.due: float | None = None  # set while anything is being redrawn

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the lines completed by ``data``, and a redrawn line's newest state when it is due."""
        idle = not data
        if self._cut:
            data = data[_first_break(data) :]
            self._cut = not data
        end = data.rfind(b"\n")
        if end >= 0:
            block = bytes(self._rest) + data[:end]
            self._rest.clear()
            data = data[end + 1 :]
            yield from self._end_all(block)
        known = len(self._rest)
        self._rest += data
        self._fold(known)
        if len(self._rest) > _LONGEST_BYTES:
            self._cut = True
            self._bar = f"{printable(bytes(self._rest[:_LONGEST_BYTES]))[:LONGEST_LINE]} … (the line goes on)"
            self._rest.clear()
            if self.due is None:
                self._await_more()
                self._shown = self._bar
                yield self._bar
        if self.due is not None and self._clock() >= self.due:
            self._await_more()
            if idle:  # then what was written last may pass for complete
                self._bar = _newest([self._rest]) or self._bar
            if self._bar:
                self._above = ""  # too old now
            state = self._bar or self._above
            if state != self._shown:
                self._shown = state
                yield state

    def finish(self) -> Iterator[str]:
        """Yield what is left without a newline at its end."""
        if self._rest or self.due is not None:
            yield from self._end(bytes(self._rest))
            if self._above not in ("", self._shown):
                yield self._above
        self.drop()

    def _end_all(self, block: bytes) -> Iterator[str]:
        """Yield the lines of a block at whose end there was a newline."""
        if self.due is None and _is_clean(block):  # many times as fast, and the usual case
            for line in block.decode("utf-8", errors="replace").split("\n"):
                yield cut_line(line)
        else:
            for raw in block.split(b"\n"):
                yield from self._end(raw)

    def _end(self, line: bytes) -> Iterator[str]:
        """Yield one line that a newline has ended, unless it belongs to lines that are redrawn together."""
        text = _newest(line.split(b"\r")) or self._bar
        if self._up or _CURSOR_UP.search(line):
            self._above = text or self._above
            self._bar, self._up, self._several = "", False, True
            if self.due is None:
                self._await_more()
        elif text or not self._several:  # an ordinary line, and the end of all redrawing
            if self._above not in ("", self._shown):
                yield self._above
            if not text or text != self._shown:
                yield text
            self.drop()

    def _fold(self, known: int) -> None:
        """Keep of the rest what follows its last redraw, and the newest state before it.

        The first ``known`` bytes were looked at before. The last byte is no redraw yet: a newline may follow.
        """
        cut = self._rest.rfind(b"\r", max(known - 1, 0), max(len(self._rest) - 1, 0))
        if cut < 0:
            return
        states = bytes(self._rest[:cut])
        del self._rest[: cut + 1]
        self._up = self._up or bool(_CURSOR_UP.search(states))
        self._bar = _newest(states.split(b"\r")) or self._bar
        if self.due is None:
            self._await_more()

    def _await_more(self) -> None:
        self.due = self._clock() + BAR_SECONDS


def _is_clean(block: bytes) -> bool:
    """Return whether a block has no character that ``printable`` would have to check."""
    if block.isascii():
        return len(block.translate(None, _CONTROL_BYTES)) == len(block)
    return not ACTING.search(block.decode("utf-8", errors="replace"))


def _first_break(data: bytes) -> int:
    """Return where the first newline or carriage return is, or where the data end."""
    newline = data.find(b"\n")
    end = len(data) if newline < 0 else newline
    carriage_return = data.find(b"\r", 0, end)
    return end if carriage_return < 0 else carriage_return


def _newest(states: Iterable[bytes | bytearray]) -> str:
    """Return the last of a line's states that shows anything, printable, or ""."""
    for state in reversed([*states]):
        if state:
            text = printable(bytes(state))
            if text.strip():
                return text
    return ""
