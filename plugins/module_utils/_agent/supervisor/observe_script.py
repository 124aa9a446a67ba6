# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Observe from outside whether a script's ranks meet, and whether it reads its checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import descendants

FIRST_SECONDS = 0.4
"""Until the first look, from the script's start: to import torch takes longer, and the look 9 ms of CPU, for which the
scripts of nodes that share a machine would wait."""
OFTEN_SECONDS = 0.02
"""How often sockets are read while a script is young: one that only reduces a number is connected for 45 ms."""
YOUNG_SECONDS = 60
SELDOM_SECONDS = 1
COUNT_SECONDS = 0.5
"""How often the processes are listed: of torch, one takes longer than that until it connects."""
SHARE = 0.004
"""The most of a core that looking may take, besides CREDIT_SECONDS of it; then it is done less often."""
CREDIT_SECONDS = 0.25
GAP_SHARE = 0.1
"""Where no look fell into more than this part of a script's time, it may have met the others meanwhile; one that trains
stays connected."""
_LISTENS = "0A"
_CONNECTING = "02"


class FileReadObserver:
    """Whether a file is opened from now on, by whomever."""

    pause = float("inf")
    """Seconds until the next look that must not be late: the kernel keeps what happened meanwhile."""

    def __init__(self, path: bytes) -> None:
        """Start to observe; a file that cannot be watched is never seen to be opened.

        Raises:
            OSError: this machine watches no more files.
        """
        import ctypes

        self.seen = False
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, path, 0x20) < 0:  # IN_OPEN
            number = ctypes.get_errno()
            if self._descriptor >= 0:
                self.close()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Observe no longer."""
        os.close(self._descriptor)

    def update(self, last: bool = False) -> None:
        """Update ``seen``: whether it was opened."""
        with suppress(BlockingIOError):
            self.seen = self.seen or bool(os.read(self._descriptor, 4096))


class RendezvousObserver:
    """Whether a process of the job takes part in the rendezvous at MASTER_PORT, by the kernel's table of TCP sockets.

    Started once per node, the script itself listens there on the head, and connects to it elsewhere. Torchrun's agents
    do so whatever the script does: there, a process below the agent has to connect, on the head too.

    To read the table takes 7 ms where the kernel hashes connections into 262,144 lists. A socket that is not in it yet
    is searched for in its first look and 1, 2, 4, 8, … looks later, one that is connecting to the port in each, one
    that is there for another port no more.

    Attributes:
        seen: whether one does or did; None if looks were too far apart to know.
    """

    def __init__(self, port: int, listens: bool, launcher: int | None) -> None:
        """Start to observe.

        Args:
            port: MASTER_PORT.
            listens: whether the script is to listen there; else, to connect.
            launcher: id of torchrun's process, which does not count; None without torchrun.
        """
        self.seen: bool | None = False
        self._port = f":{port:04X}"
        self._listens = listens
        self._launcher = launcher
        self._began = time.monotonic()
        self._next = self._next_count = self._began + FIRST_SECONDS
        self._spent = 0.0
        self._last_look = self._began
        self._gap = 0.0  # most seconds without a look
        self._pids: list[int] = []
        self._looks = 0
        self._since: dict[str, int] = {}  # from which look on a socket's pauses count, by inode
        self._elsewhere: set[str] = set()  # inodes of sockets for other ports
        self._others: set[str] | None = None  # connections that are not the job's; None: not read yet

    @property
    def pause(self) -> float:
        """Seconds until the next check; infinite once it was seen."""
        return float("inf") if self.seen else max(0.0, self._next - time.monotonic())

    def update(self, last: bool = False) -> None:
        """Update ``seen``: whether one does, or (``last``, when all have ended) whether one did a moment ago."""
        now = time.monotonic()
        if self.seen or (now < self._next and not last):
            return
        before, is_seen = time.process_time(), False
        with suppress(OSError):
            is_seen = self._left() if last else self._takes_part(now)
        self._spent += time.process_time() - before
        self._gap, self._last_look = max(self._gap, now - self._last_look), now
        is_known = self._gap <= max(SELDOM_SECONDS, GAP_SHARE * (now - self._began))
        self.seen = is_seen or (False if is_known else None)
        often = OFTEN_SECONDS if now < self._began + YOUNG_SECONDS else SELDOM_SECONDS
        self._next = max(now + often, self._began + (self._spent - CREDIT_SECONDS) / SHARE)

    def _takes_part(self, now: float) -> bool:
        """Whether a process of the job has such a socket. The table, which takes long, is read for new ones only."""
        if now >= self._next_count:
            self._pids = descendants(os.getpid())
            self._next_count = now + COUNT_SECONDS
        self._looks += 1
        own, others = self._held()
        is_first = self._others is None
        self._others = self._others or set()
        if not (self._due(own | others) or is_first):
            return False
        sockets, elsewhere = self._read_table()
        there = set(sockets)
        if any(inode not in own | others | {"0"} and end not in self._others for end, _state, inode in sockets):
            self._pids = descendants(os.getpid())  # it may be that of a process which began since
            own, others = self._held()
            if self._launcher is None:  # torchrun's agents have short ones, too
                there &= set(self._read_table()[0])  # or one that was closed before it was looked whose it is
        self._elsewhere |= elsewhere & (own | others)
        for end, state, inode in sockets:
            if inode in own and (state == _LISTENS if self._listens else state != _CONNECTING):
                return True
            if inode in own:
                self._since[inode] = self._looks  # it is about to connect
            elif is_first or (inode != "0" and (end, state, inode) in there):
                self._others.add(end)
        return False

    def _held(self) -> tuple[set[str], set[str]]:
        """Return the inodes of the TCP sockets that the job's processes have, and that the launcher has."""
        own: set[str] = set()
        launchers: set[str] = set()
        for pid in self._pids:
            with suppress(OSError):  # it has ended, or is not this user's
                (launchers if pid == self._launcher else own).update(_sockets_of(pid))
        return own, launchers

    def _due(self, inodes: set[str]) -> set[str]:
        """Return which of the sockets that are held now are to be searched for in this look; others are forgotten."""
        self._elsewhere &= inodes
        self._since = {inode: self._since.get(inode, self._looks) for inode in inodes - self._elsewhere}
        ages = ((inode, self._looks - since) for inode, since in self._since.items())
        return {inode for inode, age in ages if age & (age - 1) == 0}  # ever more seldom: 0, 1, 2, 4, 8, …

    def _left(self) -> bool:
        """Return whether there is a closed connection that no process had; the kernel keeps each for a minute."""
        return self._others is not None and any(
            end not in self._others and inode == "0" for end, _state, inode in self._read_table()[0]
        )

    def _read_table(self) -> tuple[list[tuple[str, str, str]], set[str]]:
        """Return each socket at the port, and the inodes of those elsewhere.

        Of one at the port: a name for its connection, its state and its inode ("0": it is closed).
        """
        own = 1 if self._listens else 2
        sockets = []
        elsewhere = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with suppress(OSError), open(table) as file:
                for line in file:
                    fields = line.split()
                    if fields[own].endswith(self._port):
                        sockets.append((fields[1] + fields[2], fields[3], fields[9]))
                    else:
                        elsewhere.add(fields[9])
        return sockets, elsewhere


def _sockets_of(pid: int) -> Iterator[str]:
    """Yield the inodes of a process's TCP sockets."""
    folder = f"/proc/{pid}/fd/"
    for descriptor in os.listdir(folder):
        with suppress(OSError):
            link = os.readlink(folder + descriptor)
            if link.startswith("socket:[") and _is_tcp(folder + descriptor):
                yield link[8:-1]


def _is_tcp(path: str) -> bool:
    try:
        return b"TCP" in os.getxattr(path, "system.sockprotoname")  # MPTCP's are in the table, too
    except (AttributeError, OSError):  # musl before Python 3.11.4; a kernel that does not say; closed since
        return True
