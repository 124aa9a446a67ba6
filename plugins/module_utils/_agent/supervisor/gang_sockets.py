# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Connect this supervisor to those of the job's other nodes: sockets and time for ``GangConnections``."""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.why_not_connected import why_not_connected
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import NO_ANSWER
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import (
    NONCE_BYTES,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_connections import (
    GangConnections,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_connection import (
    InspectorConnection,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member, Plan

ACCEPT_AGAIN_SECONDS = 0.5
"""How long no connection is accepted after this process had no room for one."""
FLUSH_SECONDS = 3
"""How long a supervisor that is done waits for its last messages to be sent."""
CLOSE_SECONDS = 0.5
"""How long it then waits for the others to close their ends."""
LONGEST_UNSENT = 2**22
"""Bytes that wait for one connection; one that takes nothing is closed."""


def set_up_socket(made: socket.socket, timeout_seconds: float) -> socket.socket:
    """Return a socket that does not block, and that the kernel closes if nobody confirms what it sends.

    Else TCP waits ever longer before it sends again, and a connection would stay silent for as long as it was cut.
    """
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(timeout_seconds * 1000 / 3), 500))
    return made


class Gang:
    """This supervisor's part in the gang, with its sockets. Only ``wait``, ``stay`` and ``leave`` block.

    Attributes:
        signals: descriptor at which something arrives with every signal that this process gets.
    """

    def __init__(
        self, plan: Plan, listener: socket.socket | None, inspector: InspectorConnection, signals: int
    ) -> None:
        """Begin without a connection, and wait for the start message.

        Args:
            plan: the job's.
            listener: where the other supervisors find this one, which is taken over; None on the only node.
            inspector: that looks into the job's processes.
            signals: descriptor at which something arrives with every signal, which ends a wait; it does not block.
        """
        self.signals = signals
        rank, size, timeout = plan.rank, plan.node_count, plan.node_timeout_seconds
        self._inspector = inspector
        self._member = GangMember(
            rank,
            size,
            timeout,
            time.monotonic(),
            stall_seconds=plan.stall_timeout_seconds,
            rendezvous_seconds=plan.rendezvous_timeout_seconds,
            retries=plan.retries,
            return_seconds=plan.return_seconds,
            grace_seconds=plan.grace_seconds,
            spares=plan.spares,
        )
        nonce = functools.partial(os.urandom, NONCE_BYTES)
        key = bytes.fromhex(plan.gang_key)
        self._connections = GangConnections(self._member, rank, size, timeout, key, nonce)
        self._listener = socket.socket(fileno=listener.detach()) if listener else None
        if self._listener:
            self._listener.setblocking(False)
        self._timeout = timeout
        self._accept_after = 0.0
        self._numbers = itertools.count()
        self._sockets: dict[int, socket.socket] = {}
        self._dialing: dict[int, int] = {}  # ranks, by the number of a connection that is not made yet
        self._unsent: dict[int, bytes] = {}

    @property
    def members(self) -> list[Member] | None:
        """The job's nodes, in rank order; None until the start message has come."""
        return self._member.members

    @property
    def roster(self) -> list[int]:
        """Who takes part in this attempt; see ``GangMember``."""
        return self._member.roster

    @property
    def name(self) -> str:
        """What messages call this node, in this attempt."""
        return self._member.name

    @property
    def is_spare(self) -> bool:
        """Whether this node has no part in this attempt."""
        return self._member.is_spare

    @property
    def verdict(self) -> str | None:
        """Why this attempt has to end; None as long as it need not, "" for a stop on request."""
        return self._member.verdict

    @property
    def attempt(self) -> int:
        """Which of the job's attempts this is, from 1 on; it changes only in ``stay``."""
        return self._member.attempt

    @property
    def has_ended(self) -> bool:
        """Whether this node's rank has ended in this attempt, or was not started in it."""
        return self._member.has_ended

    @property
    def checkpoint(self) -> str:
        """What a later attempt goes on from; see ``GangMember``."""
        return self._member.checkpoint

    def summary(self) -> dict[str, Any] | None:
        """Return what the head knows of the gang; see ``GangMember.summary``."""
        return self._member.summary()

    def printed(self, written: int) -> None:
        """Take note of how many bytes this node's rank has printed."""
        self._member.printed(written)

    def observed(self, news: dict[str, bool | None]) -> None:
        """Take note of what this node's script was seen to do, or not to do."""
        self._member.observed(news)

    def start(self, members: list[Member]) -> None:
        """Take the start message; the head begins to connect to all others, to pass it on."""
        self._member.start(members, time.monotonic())
        self.wait(0)

    def unreached(self, last: bool) -> list[int] | None:
        """Return the ranks that the head has not reached; None as long as it still tries to, unless this is the end."""
        return self._member.unreached(math.inf if last else time.monotonic())

    def end(self, why: str) -> None:
        """End the job on all nodes for this reason, unless there is one already."""
        self._member.end(why)

    def call_off(self, why: str) -> None:
        """Let no other attempt follow, for this reason, a clause."""
        self._member.call_off(why)

    def withdraw(self) -> None:
        """Leave without a word; see ``GangMember.withdraw``."""
        self._member.withdraw()

    def script_ended(self, state: str, why: str, has_fault: bool) -> None:
        """Tell the gang that this node's rank has ended; see ``GangMember.script_ended``."""
        self._member.script_ended(state, why, time.monotonic(), has_fault)

    def wait(self, seconds: float) -> None:
        """Wait for messages for so long at most, and do what is due."""
        self._pump(time.monotonic())
        poll = select.poll()
        if self._listener and self._connections.has_room() and time.monotonic() >= self._accept_after:
            poll.register(self._listener, select.POLLIN)
        for number, one in self._sockets.items():
            wants_to_send = number in self._dialing or number in self._unsent
            poll.register(one, select.POLLIN | (select.POLLOUT if wants_to_send else 0))
        if not self._inspector.is_gone:
            sends = self._inspector.has_unsent
            poll.register(self._inspector.socket, select.POLLIN | (select.POLLOUT if sends else 0))
        poll.register(self.signals, select.POLLIN)
        poll.poll(seconds * 1000)
        with suppress(BlockingIOError):
            os.read(self.signals, 4096)
        now = time.monotonic()
        self._accept(now)
        for number in list(self._sockets):
            if number not in self._dialing or self._is_made(number, now):
                self._receive(number, now)
        self._connections.tick(now)
        self._inspect()
        self._pump(now)

    def stay(self, reason: Callable[[], str | None]) -> bool:
        """Stay in the gang until another attempt begins, or until it needs this supervisor no more.

        Args:
            reason: returns why the job has to end now, or None; it is asked again and again, until it says so.

        Returns:
            Whether another attempt begins, here or, where this node is a spare, on the others.
        """
        why, before = None, self.attempt
        self.wait(0)
        while self.attempt == before or (self.has_ended and not self.is_spare):
            if self._member.over:
                return False
            self.wait(0.05)
            if why is None:
                why = reason()
                if why is not None:
                    self._member.end(why)
        return True

    def leave(self) -> None:
        """Have the last messages sent, and close all connections."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._unsent and time.monotonic() < deadline:
            self.wait(0.05)
        for one in self._sockets.values():
            try:
                one.shutdown(socket.SHUT_WR)
            except OSError:
                continue
        # A connection that is closed over unread messages loses the last ones that it has sent.
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._sockets and time.monotonic() < deadline:
            self.wait(0.05)

    def _inspect(self) -> None:
        """Take what the inspector has found, and ask it for more."""
        for result in self._inspector.results():
            self._member.task_done(result)
        self._inspector.flush()
        tasks, self._member.tasks = self._member.tasks, []
        for task in tasks:
            self._inspector.ask(task, self.members or [], self.roster)

    def _accept(self, now: float) -> None:
        while self._listener and self._connections.has_room():
            try:
                accepted = self._listener.accept()[0]
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._accept_after = now + ACCEPT_AGAIN_SECONDS
                return
            number = next(self._numbers)
            self._sockets[number] = set_up_socket(accepted, self._timeout)
            self._connections.opened(number, now)

    def _dial(self, rank: int, now: float) -> None:
        _host, address, port = (self._member.members or [])[rank]
        try:
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # too many files; it is tried again
            self._connections.not_reached(rank, NO_ANSWER, now)
            return
        number = next(self._numbers)
        self._sockets[number], self._dialing[number] = set_up_socket(made, self._timeout), rank
        self._connections.opened(number, now, rank)
        error = made.connect_ex((address, port))
        if error not in (0, errno.EINPROGRESS):
            self._fail_to_dial(number, error, now)

    def _is_made(self, number: int, now: float) -> bool:
        """Return whether a connection that is being made is complete now."""
        error = self._sockets[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail_to_dial(number, error, now)
            return False
        try:
            self._sockets[number].getpeername()
        except OSError:
            return False
        del self._dialing[number]
        return True

    def _fail_to_dial(self, number: int, error: int, now: float) -> None:
        self._connections.not_reached(self._dialing[number], why_not_connected(error), now)
        self._close(number, now)

    def _receive(self, number: int, now: float) -> None:
        try:
            while number in self._sockets:
                data = self._sockets[number].recv(65536)
                if not data:
                    self._close(number, now)
                    return
                self._connections.received(number, data, now)
                self._close_forgotten()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close(number, now)

    def _pump(self, now: float) -> None:
        """Send what is to be sent, and open and close what is to be opened and closed."""
        for rank in self._connections.to_dial(now):
            self._dial(rank, now)
        for number, data in self._connections.take_unsent().items():
            self._unsent[number] = self._unsent.get(number, b"") + data
        for number in list(self._unsent):
            if number not in self._dialing:
                self._flush(number, now)
        self._close_forgotten()

    def _flush(self, number: int, now: float) -> None:
        data = self._unsent.pop(number)
        try:
            while data and number in self._sockets:
                data = data[self._sockets[number].send(data) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._close(number, now)
            return
        if len(data) > LONGEST_UNSENT:
            self._close(number, now)
        elif data and number in self._sockets:
            self._unsent[number] = data

    def _close_forgotten(self) -> None:
        closing, self._connections.closing = self._connections.closing, []
        for number in closing:
            self._close_socket(number)

    def _close(self, number: int, now: float) -> None:
        self._close_socket(number)
        self._connections.closed(number, now)

    def _close_socket(self, number: int) -> None:
        self._dialing.pop(number, None)
        self._unsent.pop(number, None)
        if number in self._sockets:
            self._sockets.pop(number).close()
