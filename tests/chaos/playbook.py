# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""One ansible-playbook, started in a terminal or with its output in a pipe, and what it said when."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

JOB = re.compile(r"^(\d{8}-\d{6}-[\w.-]+-[0-9a-f]{4}): ")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LIMIT_SECONDS = 120  # longer than anything here may take; a test that gets there has failed


@dataclass(frozen=True)
class Line:
    """What was said.

    Attributes:
        at: when it arrived, on the monotonic clock.
        text: without colours.
    """

    at: float
    text: str


class Playbook:
    """A process and its output.

    Attributes:
        ended_at: on the monotonic clock; 0 while it runs.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, terminal: bool) -> None:
        """Start it; with `terminal`, as the foreground process group of one, wide enough that nothing is wrapped."""
        self.lines: list[Line] = []
        self.ended_at = 0.0
        self._news = threading.Condition()
        self._closing = False
        if terminal:
            self._output, inside = pty.openpty()
            fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 1000, 0, 0))
            modes = termios.tcgetattr(inside)
            modes[3] = (modes[3] | termios.NOFLSH) & ~termios.ECHO  # Ctrl-C neither eats output nor mixes with it
            termios.tcsetattr(inside, termios.TCSANOW, modes)
            given = inside
        else:
            self._output, inside = os.pipe()
            given = subprocess.DEVNULL
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=given,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=_own_terminal if terminal else None,
        )
        os.close(inside)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        waiting = select.poll()
        waiting.register(self._output, select.POLLIN)
        while True:
            if self._closing:  # here, because closing it during a read would not end the terminal
                os.close(self._output)
                return
            if not waiting.poll(50):
                continue
            data = b""
            with contextlib.suppress(OSError):  # a terminal whose last user has gone
                data = os.read(self._output, 65536)
            now = time.monotonic()
            *whole, rest = (rest + data).split(b"\n")
            if not data and rest:
                whole, rest = [rest], b""
            with self._news:
                for text in whole:
                    self.lines.append(Line(now, ESCAPE.sub("", text.decode(errors="replace")).strip("\r")))
                self._news.notify_all()
            if not data:
                os.close(self._output)
                return

    def _await_end(self) -> None:
        self.process.wait()
        ended = time.monotonic()
        self._reader.join(3)
        with self._news:
            self.ended_at = ended
            self._news.notify_all()

    # --------------------------------------------------------------------------------------------------- what it said

    @property
    def text(self) -> str:
        """All that it said so far."""
        return "\n".join(line.text for line in list(self.lines))

    @property
    def words(self) -> str:
        """The same with single spaces and no line breaks, for sentences that Ansible may have wrapped."""
        return " ".join(self.text.split())

    def first(self, pattern: str, since: float = 0) -> Line | None:
        """Return the first line with the pattern that came at `since` or later."""
        return next((line for line in list(self.lines) if line.at >= since and re.search(pattern, line.text)), None)

    def await_line(self, pattern: str, seconds: float = 30, since: float = 0) -> Line:
        """Return the first line with the pattern as soon as there is one."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                found = self.first(pattern, since)
                if found:
                    return found
                left = deadline - time.monotonic()
                assert left > 0 and not self.ended_at, f"no line with {pattern!r} in:\n{self.text}"
                self._news.wait(left)

    def printed(self, rank: int) -> list[str]:
        """Return what a rank printed, as it was shown, without a line that Ansible's message after Ctrl-C cuts off."""
        shown = [re.fullmatch(rf"\[{rank} [^\]]+\] ?(.*)", line.text) for line in list(self.lines)]
        return [match[1] for match in shown if match and "User interrupted execution" not in match[1]]

    @property
    def job(self) -> str:
        """The job's id, as soon as it is said."""
        found = JOB.search(self.await_line(JOB.pattern).text)
        assert found
        return found[1]

    # ----------------------------------------------------------------------------------------------------- its end

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """Return its exit status; negative for a signal."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not self.ended_at:
                left = deadline - time.monotonic()
                assert left > 0, f"did not end within {seconds:.0f} s:\n{self.text}"
                self._news.wait(left)
        return self.process.returncode

    def press_ctrl_c(self) -> float:
        """Press Ctrl-C in its terminal, which signals the foreground process group; return when."""
        now = time.monotonic()
        os.write(self._output, b"\x03")
        return now

    def lose_terminal(self) -> None:
        """Close the window it runs in."""
        self._closing = True
        self._reader.join()

    def kill(self) -> None:
        """kill -9: it, its workers and their connections, all at the same moment."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _own_terminal() -> None:
    """Make standard input this session's terminal, whose loss ends it: whoever runs the tests may ignore SIGHUP."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def descendants(ancestor: int) -> list[int]:
    """Return the ids of all processes below one; an ssh that has gone to the background is none of them."""
    children: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(pid))
    found: list[int] = []
    queue = [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
