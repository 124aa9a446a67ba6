# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limit how many connections are made at once.

An sshd lets in only so many connections that have not logged in yet (MaxStartups), and behind a bastion all of them are
the bastion's. So only a few are made at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

LONGEST_SECONDS = 60
"""A connection that takes longer counts no more as one in the making: it would hold up the others."""

_of_this_thread = threading.local()


class Deadline:
    """Until when the call of one thread is waited for."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Start the time again."""
        self.at = time.monotonic() + self._seconds

    def begin(self) -> None:
        """Start the time for what this thread does from now on."""
        self.renew()
        _of_this_thread.deadline = self


def renew_deadline() -> None:
    """Start the time of this thread's call again: it has made progress, or only waits for others."""
    deadline: Deadline | None = getattr(_of_this_thread, "deadline", None)
    if deadline:
        deadline.renew()


class ConnectionSlots:
    """The connections that are in the making at this moment, to all hosts of a play."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._making: dict[object, float] = {}  # since when, on the monotonic clock
        self._most: float = float("inf")

    @contextlib.contextmanager
    def take(self, most: int) -> Iterator[None]:
        """Wait until fewer than ``most`` are in the making, and be one of them."""
        own = object()
        with self._changed:
            while self._count() >= min(most, self._most):
                self._changed.wait(1)
                renew_deadline()
            self._making[own] = time.monotonic()
        renew_deadline()
        try:
            yield
        finally:
            with self._changed:
                del self._making[own]
                self._changed.notify_all()

    def shrink(self) -> None:
        """From now on let fewer be made at once: there were too many for an sshd."""
        with self._changed:
            self._most = max(1, min(self._most, self._count()) // 2)

    def _count(self) -> int:
        return sum(since > time.monotonic() - LONGEST_SECONDS for since in self._making.values())


class HostSlots:
    """Limit new connections to one host, until the first request to it has succeeded."""

    def __init__(self, slots: ConnectionSlots, most: int) -> None:
        """Be closed.

        Args:
            slots: those of all hosts.
            most: how many connections may be in the making while one is made to this host.
        """
        self.is_open = False
        self._connection_slots = slots
        self._most = most

    def slot(self) -> contextlib.AbstractContextManager[None]:
        """Return what waits for this host's turn."""
        return contextlib.nullcontext() if self.is_open else self._connection_slots.take(self._most)

    def refused(self) -> None:
        """Say that an sshd on the way closed a connection before it began."""
        self._connection_slots.shrink()
