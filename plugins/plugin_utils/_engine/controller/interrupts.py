# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handle what ends ansible-playbook while a job runs: Ctrl-C once or twice, a kill, a lost terminal.

An action runs in a worker process, in a session of its own. At Ctrl-C ansible-playbook hands SIGINT on to the worker,
prints what is still in its queue, tells the worker to terminate, and waits for it, with SIGINT back at its default: a
second Ctrl-C ends ansible-playbook at once, and all the worker sees of it is that its parent is gone (ansible-core
2.19, ``TaskQueueManager._signal_handler`` and multiprocessing's exit). The same is all it sees of a KILL or HUP to
ansible-playbook's process group, which is how ansible-runner and AWX cancel: the worker is in another one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal

SECOND_SECONDS = 3
"""How long a first Ctrl-C waits for a second one."""
TERMINAL_SECONDS = 5
"""How long a terminal that takes nothing is waited for."""
LEAVE_SECONDS = 30
"""How long ansible-playbook may take to end at the worker's Ctrl-C."""
POLL_SECONDS = 0.05


class Interrupted(BaseException):
    """The user gave up before the job was started."""


class Interrupts:
    """From its making on, signals to this worker no longer end it; it asks what came instead."""

    def __init__(self) -> None:
        self._main = os.getppid()
        self._signal: int | None = None
        self._raises = False
        # Once ansible-playbook is on its way out it shows nothing more of a worker's: its terminal is written to.
        self._terminal: int | None = None
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
            self._terminal = os.open(f"/proc/{self._main}/fd/2", flags)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        first, self._signal = self._signal is None, self._signal or number
        if self._raises and first:
            raise Interrupted

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Have a signal break off what runs inside, by Interrupted."""
        self._raises = True
        try:
            if self._signal is not None:
                raise Interrupted
            yield
        finally:
            self._raises = False

    @property
    def came(self) -> Literal["", "signal", "gone"]:
        """What has happened to ansible-playbook: nothing, a signal, or its end."""
        if self._signal is not None:
            return "signal"
        return "gone" if self._is_alone() else ""

    def again(self) -> bool:
        """Wait for a second Ctrl-C after a first; return whether it came."""
        if self._signal != signal.SIGINT:
            return False
        deadline = time.monotonic() + SECOND_SECONDS
        while time.monotonic() < deadline:
            if self._is_alone():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def printer(self, display: Callable[[str], None]) -> Callable[[str], None]:
        """Return what shows text at once: by ``display`` as long as ansible-playbook listens to it."""
        return lambda text: self.say(text) if self.came else display(text)

    def say(self, text: str) -> None:
        """Write to ansible-playbook's standard error, if it still leads anywhere."""
        left = f"{text}\n".encode()
        deadline = time.monotonic() + TERMINAL_SECONDS
        with contextlib.suppress(OSError):
            while left and self._terminal is not None and time.monotonic() < deadline:
                try:
                    left = left[os.write(self._terminal, left) :]
                except BlockingIOError:
                    time.sleep(POLL_SECONDS)

    def interrupt_playbook(self) -> None:
        """End ansible-playbook as Ctrl-C does, with exit status 99: the job neither failed nor succeeded.

        Returns if it does not end.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which it sends next, and then it waits for this process
        os.kill(self._main, signal.SIGINT)
        deadline = time.monotonic() + LEAVE_SECONDS
        while not self._is_alone() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _is_alone(self) -> bool:
        return os.getppid() != self._main
