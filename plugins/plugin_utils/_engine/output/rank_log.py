# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Store a rank's log on the controller."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable

TAIL_BYTES = 65536
"""How much of the end of a log is read to explain a failure."""
_BLOCK_BYTES = 65536


class RankLog:
    """One rank's log on the controller: the node's, byte by byte at the same offsets.

    Writing is idempotent: two followers of a job may write one file at once, and one that comes after goes on where
    one that was killed has ended. A thread may still write while another closes.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OSError: it cannot be opened, or is a symbolic link.
        """
        self.path = path
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._file).st_size
        self._last = b""
        self._lock = threading.Lock()  # else a late write might hit the next file with this one's number

    @property
    def size(self) -> int:
        """How many bytes are known: the offset to go on from."""
        return self._size

    def write(self, data: bytes, offset: int) -> None:
        """Put ``data`` at ``offset``, the place it has in the node's log.

        Raises:
            ValueError: bytes before the offset are missing, or the log is closed.
            OSError: the disk is full, or the like; ``size`` then says how much there is.
        """
        if offset > self._size:
            raise ValueError(f"{self.path} has {self._size} bytes, so nothing can be put at offset {offset}")
        with self._lock, memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += os.pwrite(self._descriptor(), rest[done:], offset + done)
                self._size = max(self._size, offset + done)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on, or what there is of them."""
        parts = []
        while length > 0 and (part := os.pread(self._descriptor(), length, offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def tail(self) -> list[str]:
        """Return the last lines, printable; also after ``close``."""
        data = self._last if self._file is None else self._read_tail()
        lines = data.split(b"\n")
        if len(data) < self._size and len(lines) > 1:
            del lines[0]  # its beginning is not there
        return [printable(line) for line in lines]

    def last_line_start(self) -> int:
        """Return the offset after the last newline, 0 if there is none: from there on a line has not ended."""
        end = self._size
        while end > 0:
            start = max(end - _BLOCK_BYTES, 0)
            newline = self.read(start, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            if self._file is not None:
                self._last = self._read_tail()
                os.close(self._file)
                self._file = None

    def _read_tail(self) -> bytes:
        return self.read(max(self._size - TAIL_BYTES, 0), TAIL_BYTES)

    def _descriptor(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        return self._file
