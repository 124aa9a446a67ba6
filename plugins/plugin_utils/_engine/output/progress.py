# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show on a terminal how far the nodes are with a task, in a line that is drawn again and again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_stream import LineStream

BAR_COLUMNS = 20
ERASE = "\r\x1b[2K"


class Progress:
    """One line at the bottom, which goes when anything else is printed, and comes again when a node ends."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._drawn = False
        LineStream.make_way = self.clear

    def draw(self, name: str, done: int, begun: int, running: Sequence[str]) -> None:
        """Draw the line.

        Args:
            name: of the task.
            done: how many nodes have ended.
            begun: how many have begun, these included.
            running: names of those that have not ended, or of some of them.
        """
        columns = shutil.get_terminal_size().columns - 1
        count, drawn = "", ""
        if begun > 1:
            waiting = f", waiting for {', '.join(running)}" if 0 < begun - done <= len(running) and done else ""
            count = f"  {done}/{begun}{waiting}"[:columns]
            if len(count) + BAR_COLUMNS + len(name) + 2 <= columns:
                drawn = f"  {_bar(done, begun)}"
        room = columns - len(count) - (BAR_COLUMNS + 2 if drawn else 0)
        self._display.display(f"{ERASE}{name[: max(room, 0)]}{drawn}{count}\r", screen_only=True, newline=False)
        self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            self._drawn = False
            self._display.display(ERASE, screen_only=True, newline=False)


def _bar(done: int, total: int) -> str:
    """Return a bar of BAR_COLUMNS, or nothing where rich is not installed."""
    try:
        from rich.console import Console  # takes 0.1 s, and only this needs it
        from rich.progress_bar import ProgressBar
    except ImportError:
        return " " * BAR_COLUMNS
    console = Console(file=sys.stdout, force_terminal=True, width=BAR_COLUMNS)
    with console.capture() as captured:
        console.print(ProgressBar(total=total, completed=done, width=BAR_COLUMNS), end="")
    return captured.get()
