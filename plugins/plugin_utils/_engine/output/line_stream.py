# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write standard output line by line, and survive a reader that goes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import ClassVar


class LineStream(io.TextIOWrapper):
    """A stream to a file, a pipe or a terminal, which leads nowhere once that has failed.

    An error in writing would end the thread of ansible-playbook that takes its workers' results, and it would then wait
    for these for ever: ``ansible-playbook … | head -1`` with PYTHONUNBUFFERED=1 does (ansible-core 2.19).

    Attributes:
        make_way: takes away what stands where the next text will, whoever writes it.
    """

    make_way: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def write(self, text: str) -> int:
        """Write a text; what ends with a newline leaves this process at once."""
        LineStream.make_way()
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is left."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and sys.stderr is not self:  # whoever closes a pipe has seen enough
            with contextlib.suppress(OSError):
                sys.stderr.write(f"[WARNING]: standard output cannot be written any more: {error}\n")


def write_lines_at_once() -> None:
    """Make standard output and standard error such streams, where they are ordinary ones."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream.__class__ is io.TextIOWrapper:  # and not a subclass, as pytest has it
            stream.flush()
            line_by_line = LineStream(
                stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True
            )
            setattr(sys, name, line_by_line)
