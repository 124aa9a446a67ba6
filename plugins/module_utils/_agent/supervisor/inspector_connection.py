# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask the process beside the supervisor that looks into the job's processes."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member


class InspectorConnection:
    """The supervisor's end of the connection to its inspector, which does one task at a time. Nothing here blocks.

    Attributes:
        socket: to be read when there is something to read.
        is_gone: the inspector has ended.
    """

    def __init__(self, to_inspector: socket.socket) -> None:
        """Take the connection over."""
        to_inspector.setblocking(False)
        self.socket = to_inspector
        self.is_gone = False
        self._received = b""
        self._unsent = b""
        self._task: dict[str, Any] | None = None  # that it is at
        self._failed: list[dict[str, Any]] = []

    @property
    def has_unsent(self) -> bool:
        """Whether a task is still to be sent."""
        return bool(self._unsent)

    def ask(self, task: dict[str, Any], members: Sequence[Member], roster: Sequence[int]) -> None:
        """Have something done; ``results`` has what comes of it.

        Args:
            task: what, as in ``inspector_tasks``.
            members: the job's nodes, as the start message names them.
            roster: the place of each that takes part now, in the order of NODE_RANK.
        """
        if self._task or self.is_gone:
            self._failed.append(failed(task, "has ended") if self.is_gone else failed(task, "is at another task", True))
            return
        self._task = task
        self._unsent += json.dumps({**task, "members": members, "roster": roster}).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what the connection takes now of what was asked."""
        with suppress(OSError):
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def results(self) -> list[dict[str, Any]]:
        """Return what has been found since the last time; with ``task`` and ``number`` as they were asked."""
        if not self.is_gone:
            self._receive()
        *lines, self._received = self._received.split(b"\n")
        if lines:
            self._task = None
        if self._task and self.is_gone:
            self._failed.append(failed(self._task, "has ended"))
            self._task = None
        failures, self._failed = self._failed, []
        return [*map(json.loads, lines), *failures]

    def _receive(self) -> None:
        try:
            while data := self.socket.recv(2**16):
                self._received += data
        except BlockingIOError:
            return
        except OSError:
            pass
        self.is_gone = True
        self.socket.close()


def failed(task: dict[str, Any], why: str, is_busy: bool = False) -> dict[str, Any]:
    """Return the result of a task that is not done; ``is_busy``: because another one is."""
    result = {"error": f"cannot look: its inspector {why}", **({"is_busy": True} if is_busy else {})}
    return {"task": task["task"], "number": task["number"], "result": result}
