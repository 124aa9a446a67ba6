# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The terminal as a job's followers see it: it never makes them wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ansible.utils.color import stringc
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import LineReader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown_lines

BACKLOG_BYTES = 4 * 2**20
"""How much output of all ranks together may wait for the terminal."""
PIECE_BYTES = 16384
"""How much output is printed at a time: a call per line would cost more than all the rest."""
LAST_WORDS_SECONDS = 2
"""How long ``close`` goes on for the engine's own lines after it has given up the ranks'."""

_PIECE_OVERHEAD = 256  # what a piece takes besides its bytes: with many small ones that is most of it
_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright cyan", "bright green", "bright purple")
"""Of the ranks' prefixes. Red is for errors."""


@dataclass
class _Rank:
    """One rank's output on its way to the terminal.

    Attributes:
        rank: its number.
        prefix: what each of its lines begins with.
        reader: the printing thread's own.
        held: bytes that wait.
        leaving_out: whether its output is left out at present.
        in_line: whether what was left out last ends within a line.
        gap: where the number of lines that are left out at present will be shown; None if it has just been.
    """

    rank: int
    prefix: str
    reader: LineReader = field(default_factory=LineReader)
    held: int = 0
    leaving_out: bool = False
    in_line: bool = False
    gap: _Gap | None = None


@dataclass
class _Piece:
    """Output that waits."""

    rank: _Rank
    data: bytes

    @property
    def cost(self) -> int:
        """What it takes of the backlog."""
        return len(self.data) + _PIECE_OVERHEAD


@dataclass
class _Gap:
    """The place where output was left out, and how many lines."""

    rank: _Rank
    lines: int = 0

    def __str__(self) -> str:
        if self.lines == 1:
            return f"… 1 line of rank {self.rank.rank} is not shown here, for it came too fast; it is in its log"
        lines = f"{self.lines:,} lines of rank {self.rank.rank}"
        return f"… {lines} are not shown here, for they came too fast; they are in its log"


class Screen:
    """Shows lines, in a thread of its own: what comes too fast for the terminal is left out, and a line says so.

    Each rank may hold as much of the backlog as it leaves free, so that one which prints without end does not keep the
    others from the terminal.

    Attributes:
        gone: whether the terminal has failed; then nothing is shown any more.
    """

    def __init__(self, say: Callable[[str], None], world_size: int, hosts: Iterable[str] = ()) -> None:
        """Begin to print.

        Args:
            say: prints text, one line or several without the last newline; may block as long as it likes. An OSError
                from it means that the terminal is gone.
            world_size: how many ranks there are.
            hosts: their names; where they are given, the ranks' text lines up.
        """
        self.gone = False
        self._say = say
        self._rank_width = len(str(world_size - 1))
        self._host_width = max(map(len, hosts), default=0)
        self._ranks: dict[int, _Rank] = {}
        self._items: deque[str | _Piece | _Gap] = deque()
        self._held = 0
        self._closing = self._ended = False
        lock = threading.Lock()
        self._news, self._room = threading.Condition(lock), threading.Condition(lock)
        self._thread = threading.Thread(target=self._print, name="screen", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Show a line of the engine's own after all that came before. It is never left out. Returns at once."""
        line = shown_lines(line)
        with self._news:
            if not self._ended:
                self._items.append(line)
                self._news.notify()
                return
        self._put(line)

    def show(self, rank: int, host: str, data: bytes) -> None:
        """Show a rank's output, which may begin and end within a line, or leave it out. Returns at once."""
        if not data:
            return
        with self._news:
            one = self._ranks.get(rank) or self._add(rank, host)
            if one.leaving_out:
                if one.held > BACKLOG_BYTES // 8:  # rather a few large gaps than many small ones
                    self._leave_out(one, data)
                    return
                if one.in_line:
                    start = data.find(b"\n") + 1 or data.rfind(b"\r") + 1 or len(data)
                    self._leave_out(one, data[:start])
                    data = data[start:]
            # Of the room that is left, so much that as much stays free: for the other ranks.
            room = (BACKLOG_BYTES - self._held - one.held) // 2
            fitting = max(room * PIECE_BYTES // (PIECE_BYTES + _PIECE_OVERHEAD) - _PIECE_OVERHEAD, 0)
            end = len(data) if len(data) <= fitting else data.rfind(b"\n", 0, fitting) + 1
            if end:
                one.leaving_out, one.gap = False, None
            for start in range(0, end, PIECE_BYTES):
                self._hold(_Piece(one, data[start : min(start + PIECE_BYTES, end)]))
            if end < len(data):
                self._leave_out(one, data[end:])
            self._news.notify()

    def await_room(self, timeout_seconds: float) -> bool:
        """Wait, for output that can wait (a log that is shown again), until the next 1 MiB would not be left out.

        Returns:
            Whether there is room now.
        """
        with self._news:
            return self._room.wait_for(lambda: self._held <= BACKLOG_BYTES // 8, timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Print what is left; after ``timeout_seconds`` only how much of it is not shown, and the engine's own lines.

        Returns LAST_WORDS_SECONDS later at the latest: a terminal that stands still may do so for ever. These lines
        then appear when it goes on, if this process still lives.
        """
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            with self._news:
                self._give_up()
            self._thread.join(LAST_WORDS_SECONDS)

    # ------------------------------------------------------------------------------------------------- under the lock

    def _add(self, rank: int, host: str) -> _Rank:
        name = stringc(f"[{rank:>{self._rank_width}} {host}]", _COLORS[rank % len(_COLORS)])
        one = self._ranks[rank] = _Rank(rank, name + " " * (max(self._host_width - len(host), 0) + 1))
        return one

    def _hold(self, piece: _Piece) -> None:
        self._items.append(piece)
        piece.rank.held += piece.cost
        self._held += piece.cost

    def _release(self, piece: _Piece) -> None:
        piece.rank.held -= piece.cost
        self._held -= piece.cost
        if self._held <= BACKLOG_BYTES // 8:
            self._room.notify_all()

    def _leave_out(self, one: _Rank, data: bytes) -> None:
        """Count the lines that begin in ``data``, without a look at each of them."""
        begun = data.count(b"\n") - (one.leaving_out and one.in_line)
        one.leaving_out, one.in_line = True, not data.endswith(b"\n")
        begun += one.in_line
        if begun and one.gap is None:
            one.gap = _Gap(one)
            self._items.append(one.gap)
        if one.gap is not None:
            one.gap.lines += begun

    def _give_up(self) -> None:
        """Leave out every piece that waits; each rank gets one line for all of it, after the engine's."""
        kept = [item for item in self._items if isinstance(item, str)]
        lost = [item for item in self._items if not isinstance(item, str)]
        gaps: dict[int, _Gap] = {}
        open_line: dict[int, bool] = {}
        for item in lost:
            gap = gaps.setdefault(item.rank.rank, _Gap(item.rank))
            if isinstance(item, _Piece):
                self._release(item)
                gap.lines += item.data.count(b"\n")
                open_line[item.rank.rank] = not item.data.endswith(b"\n")
            else:
                gap.lines += item.lines
                open_line[item.rank.rank] = False  # counted with what was left out
                item.rank.gap = None
        for rank, gap in gaps.items():
            gap.lines += open_line[rank]
        self._items = deque([*kept, *gaps.values()])

    # --------------------------------------------------------------------------------------------- the printing thread

    def _print(self) -> None:
        while (lines := self._next()) is not None:
            if lines:
                self._put("\n".join(lines))

    def _put(self, text: str) -> None:
        if not self.gone:
            try:
                self._say(text)
            except OSError:
                self.gone = True

    def _next(self) -> Sequence[str] | None:
        """Wait for something to print and return its lines; None once all is printed and nothing more will come."""
        with self._news:
            while not self._items and not self._closing:
                due = min((one.reader.due for one in self._ranks.values() if one.reader.due is not None), default=None)
                left = None if due is None else due - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._news.wait(left)
            if not self._items:
                return self._end_lines() if self._closing else self._due_lines()
            item = self._items.popleft()
            if isinstance(item, _Piece):
                self._release(item)
            elif isinstance(item, _Gap) and item.rank.gap is item:
                item.rank.gap = None  # more of it becomes another
        if isinstance(item, str):
            return [item]
        one = item.rank
        if isinstance(item, _Gap):
            one.reader.drop()  # the line that the gap begins in
            return [str(item)]
        return [one.prefix + line for line in one.reader.feed(item.data)]

    def _due_lines(self) -> Sequence[str]:
        return [one.prefix + line for one in self._ranks.values() for line in one.reader.feed(b"")]

    def _end_lines(self) -> Sequence[str] | None:
        lines = [one.prefix + line for one in self._ranks.values() for line in one.reader.finish()]
        self._ended = not lines
        return lines or None
