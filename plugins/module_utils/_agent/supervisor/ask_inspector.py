# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask the process beside the supervisor that looks into the job's processes."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any


class Inspector:
    """Has the process that inspects do one task after the other. Nothing here blocks.

    Attributes:
        connection: to be read when there is something to read.
        is_gone: the process has ended.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Take the connection over."""
        connection.setblocking(False)
        self.connection = connection
        self.is_gone = False
        self._received = b""
        self._unsent = b""
        self._is_busy = False

    @property
    def has_unsent(self) -> bool:
        """Whether a task is still to be sent."""
        return bool(self._unsent)

    def ask(self, task: dict[str, Any]) -> bool:
        """Have something done; return False if it is still at what it was asked before."""
        if self._is_busy:
            return False
        self._is_busy = True
        self._unsent += json.dumps(task).encode() + b"\n"
        self.flush()
        return True

    def flush(self) -> None:
        """Send what the connection takes now of what was asked."""
        with suppress(OSError):
            while self._unsent:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]

    def results(self) -> list[dict[str, Any]]:
        """Return what has been found since the last time; with ``task`` and ``number`` as they were asked."""
        try:
            while data := self.connection.recv(2**16):
                self._received += data
            self.is_gone = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_gone = True
        *lines, self._received = self._received.split(b"\n")
        self._is_busy = self._is_busy and not lines
        return [json.loads(line) for line in lines]
