# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the ranks' logs on the terminal without making anybody wait for it.

The logs are files on this machine, so nothing is kept for a slow terminal: a thread reads them at the terminal's pace,
and skips to the newest lines of one that it is too far behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ansible.utils.color import stringc
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import node_name
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_reader import LineReader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines

FAR_BEHIND_BYTES = 4 * 2**20
"""The most of a log that waits to be shown; of more, only the end is."""
NEWEST_BYTES = 2**16
"""How long that end is."""
PIECE_BYTES = 16384
"""How much of a log is printed at a time: a call per line would cost more than all the rest."""
LAST_LINES_SECONDS = 2
"""How long ``close`` goes on for the engine's own lines after it has given up the ranks'."""

_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright cyan", "bright green", "bright purple")
"""Of the ranks' prefixes. Red is for errors."""


@dataclass
class ShownLog:
    """One rank's log on its way to the terminal.

    Attributes:
        rank: whose log it is; None for a spare's.
        host: where it runs.
        log: the file.
        position: up to which byte it has been read.
        complete_until: nothing before this byte is skipped.
        prefix: what each of its lines begins with.
        reader: cuts what is read into lines.
    """

    rank: int | None
    host: str
    log: RankLog
    position: int
    complete_until: int = 0
    prefix: str = ""
    reader: LineReader = field(default_factory=LineReader)

    def skip(self, most_bytes: int) -> str:
        """Skip to the newest lines if more than ``most_bytes`` wait; return a line about that, or ""."""
        size = self.log.size
        if self.position < self.complete_until or size - self.position <= most_bytes:
            return ""
        newest = max(self.position, size - NEWEST_BYTES)
        newest += self.log.read(newest, NEWEST_BYTES).find(b"\n") + 1
        skipped, self.position = newest - self.position, newest
        self.reader.drop()  # the line that the gap begins in
        return self.gap(skipped)

    def gap(self, count: int) -> str:
        """Return the line for so many bytes that are not shown."""
        return (
            f"… {format_bytes(count)} of {node_name(self.rank, self.host)} are not shown here, because the terminal is "
            f"too slow; they are in {self.log.path}"
        )

    def read(self, length: int) -> list[str]:
        """Read on; return the lines that this completes."""
        size = self.log.size
        data = self.log.read(self.position, length)
        # Of a file that somebody has cut short, what is missing cannot be shown.
        self.position = self.position + len(data) if data else max(self.position, size)
        return [self.prefix + line for line in self.reader.feed(data)]


class Screen:
    """Shows logs and lines of the engine's own, in a thread of its own."""

    def __init__(self, say: Callable[[str], None], world_size: int, logs: Iterable[ShownLog] = ()) -> None:
        """Begin to print.

        Args:
            say: prints text, one line or several without the last newline; may block as long as it likes. An OSError
                from it means that the terminal is gone; then nothing is shown any more.
            world_size: how many ranks there are.
            logs: those that are shown.

        Raises:
            RuntimeError: this machine has no thread left.
        """
        self._say = say
        self._logs = list(logs)
        self._lines: list[str] = []
        self._is_gone = self._closing = self._given_up = self._ended = False
        self._news = threading.Condition()
        number_width = len(str(world_size - 1))
        name_width = max((len(one.host) for one in self._logs), default=0)
        for number, one in enumerate(self._logs):
            label = "-" if one.rank is None else one.rank
            name = stringc(f"[{label:>{number_width}} {one.host}]", _COLORS[number % len(_COLORS)])
            one.prefix = name + " " * (name_width - len(one.host) + 1)
        self._thread = threading.Thread(target=self._print_all, name="screen", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Show a line of the engine's own after all that came before. It is never left out. Returns at once."""
        with self._news:
            if not self._ended:
                self._lines.append(escape_lines(line))
                self._news.notify()
                return
        self._put([escape_lines(line)])

    def check_logs(self) -> None:
        """Have the thread check whether the logs have grown. Returns at once."""
        with self._news:
            self._news.notify()

    def await_shown(self, timeout_seconds: float) -> bool:
        """Wait until all is shown that is not to be skipped; return whether it is."""
        with self._news:
            return self._news.wait_for(
                lambda: self._is_gone or all(one.position >= one.complete_until for one in self._logs), timeout_seconds
            )

    def close(self, timeout_seconds: float) -> None:
        """Print what is left; after ``timeout_seconds`` only how much of it is not shown, and the engine's own lines.

        Returns LAST_LINES_SECONDS later at the latest: a terminal that stands still may do so for ever. These lines
        then appear when it goes on, if this process still lives.
        """
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout_seconds)
        self._given_up = True
        self._thread.join(LAST_LINES_SECONDS)

    # --------------------------------------------------------------------------------------------- the printing thread

    def _print_all(self) -> None:
        try:
            self._print_to_end()
        finally:
            with self._news:
                self._is_gone = self._is_gone or not self._ended
                self._ended = True
                self._news.notify_all()

    def _print_to_end(self) -> None:
        while True:
            with self._news:
                if not self._has_work():
                    self._news.wait(self._seconds_until_due())
                lines, self._lines = self._lines, []
                ends = self._closing
            self._print_logs({one.log.path: one.log.size for one in self._logs})
            self._put(lines)
            with self._news:
                if not ends or self._lines:
                    continue
                self._ended = True  # from now on ``say`` prints itself
            if not self._given_up:
                self._put([one.prefix + line for one in self._logs for line in one.reader.finish()])
            return

    def _has_work(self) -> bool:
        return bool(self._lines) or self._closing or any(one.position < one.log.size for one in self._logs)

    def _seconds_until_due(self) -> float | None:
        """Return when a line that is redrawn again and again is to be shown; None if there is none."""
        due = min((one.reader.due for one in self._logs if one.reader.due is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _print_logs(self, sizes: dict[Path, int]) -> None:
        """Print each log up to its size, a piece of each by turns."""
        left = self._logs
        while left and not self._given_up:
            for one in left:
                skipped = one.skip(FAR_BEHIND_BYTES)
                if skipped:
                    self._put([skipped])
                if self._given_up:  # while the terminal stood still; the logs may be closed
                    break
                self._put(one.read(PIECE_BYTES))
                if self._given_up:
                    break
            with self._news:
                self._news.notify_all()
            left = [one for one in left if one.position < sizes[one.log.path]]
        if self._given_up:
            for one in self._logs:
                if one.position < sizes[one.log.path]:
                    self._put([one.gap(sizes[one.log.path] - one.position)])
                    one.position = sizes[one.log.path]

    def _put(self, lines: list[str]) -> None:
        if lines and not self._is_gone:
            try:
                self._say("\n".join(lines))
            except OSError:
                self._is_gone = True
