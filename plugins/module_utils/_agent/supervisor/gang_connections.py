# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Keep the connections of a supervisor to those of the job's other nodes: which to make, to trust, and to close.

Knows no sockets: a connection is a number, given by whoever opens it.
"""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import NO_ANSWER
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import (
    AuthenticatedStream,
    ForgedMessage,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember

RETRY_SECONDS = 0.5
"""How long after a try to connect the next one is made."""
CONNECT_SECONDS = 2.0
"""How long a connection that this side makes may take, at most, until the other side has proven itself."""
PROOF_SECONDS = 10.0
"""How long one that another makes may take."""


class Connection:
    """A connection that is open, or being opened.

    Attributes:
        rank: with which; None as long as one that was accepted has not said so.
        dialed: this side has made it.
        joined: the other side has proven that it belongs to the job, and said which rank it is.
    """

    def __init__(self, stream: AuthenticatedStream, rank: int | None, now: float) -> None:
        """Take a connection to ``rank``, or one from anybody if that is None."""
        self.stream = stream
        self.rank = rank
        self.dialed = rank is not None
        self.since = now
        self.joined = False


class GangConnections:
    """The connections of one ``GangMember``. Times are seconds on a monotonic clock.

    Attributes:
        member: what decides.
        closing: numbers of connections that are to be closed; whoever drives this empties it.
    """

    def __init__(
        self,
        member: GangMember,
        rank: int,
        size: int,
        timeout_seconds: float,
        key: bytes,
        nonce: Callable[[], bytes],
    ) -> None:
        """Begin without a connection.

        Args:
            member: decides, and has no other driver.
            rank: its rank.
            size: how many ranks there are.
            timeout_seconds: a supervisor that is silent for longer is lost.
            key: the job's.
            nonce: returns as many new random bytes as a stream takes.
        """
        self.member = member
        self.closing: list[int] = []
        self._rank = rank
        self._size = size
        # Of a network that comes back there must be time to try again before the others count this node as lost.
        self._connect_seconds = min(CONNECT_SECONDS, timeout_seconds / 10)
        self._key = key
        self._nonce = nonce
        self._connections: dict[int, Connection] = {}
        self._tried: dict[int, float] = {}  # when a rank was dialed last

    def has_room(self) -> bool:
        """Return whether one more connection may be accepted: strangers must not use up this process's files."""
        return len(self._connections) < 2 * self._size + 16

    def to_dial(self, now: float) -> list[int]:
        """Return the ranks to connect to now."""
        dialing = {one.rank for one in self._connections.values() if one.dialed and not one.joined}
        due = [
            rank
            for rank in self.member.wanted()
            if rank not in dialing and now - self._tried.get(rank, -RETRY_SECONDS) >= RETRY_SECONDS
        ]
        self._tried.update(dict.fromkeys(due, now))
        return due

    def opened(self, number: int, now: float, rank: int | None = None) -> None:
        """Take a new connection: to ``rank``, or accepted from anybody."""
        stream = AuthenticatedStream(self._key, rank is not None, self._nonce())
        self._connections[number] = Connection(stream, rank, now)
        if rank is not None:
            stream.send({"join": self._rank})

    def not_reached(self, rank: int, why: str, now: float) -> None:
        """Take note that no connection could be made; see ``GangMember.not_reached``."""
        self.member.not_reached(rank, why, now)

    def received(self, number: int, data: bytes, now: float) -> None:
        """Take bytes that have arrived over a connection."""
        connection = self._connections.get(number)
        if connection is None:
            return
        try:
            messages = connection.stream.receive(data)
        except ForgedMessage:
            self._close(number, now)
            return
        for message in messages:
            if connection.joined and connection.rank is not None:
                self.member.received(connection.rank, message, now)
            elif not self._join(number, connection, message.get("join"), now):
                self._close(number, now)
                return

    def _join(self, number: int, connection: Connection, rank: object, now: float) -> bool:
        """Take the first message, by which the other side says which rank it is; return whether it may be."""
        if not isinstance(rank, int) or not 0 <= rank < self._size or rank == self._rank:
            return False
        if connection.rank not in (None, rank):
            return False
        for other, earlier in list(self._connections.items()):
            if earlier.joined and earlier.rank == rank:
                self._forget(other)
        connection.rank, connection.joined = rank, True
        if not connection.dialed:
            connection.stream.send({"join": self._rank})
        self.member.connected(rank, now)
        return True

    def closed(self, number: int, now: float) -> None:
        """Take note that a connection is closed, by the other side or on the way."""
        connection = self._connections.pop(number, None)
        if connection and connection.joined and connection.rank is not None:
            self.member.disconnected(connection.rank, now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.member.tick(now)
        for number, one in list(self._connections.items()):
            if not one.joined and now - one.since > (self._connect_seconds if one.dialed else PROOF_SECONDS):
                if one.dialed and one.rank is not None:
                    self.member.not_reached(one.rank, NO_ANSWER, now)
                self._close(number, now)

    def take_unsent(self) -> dict[int, bytes]:
        """Return what is to be sent, by connection."""
        streams = {one.rank: one.stream for one in self._connections.values() if one.joined}
        outbox, self.member.outbox = self.member.outbox, []
        for rank, message in outbox:
            if rank in streams:
                streams[rank].send(message)
        unsent = {}
        for number, one in self._connections.items():
            if one.stream.unsent:
                unsent[number], one.stream.unsent = one.stream.unsent, b""
        return unsent

    def _close(self, number: int, now: float) -> None:
        self.closed(number, now)
        self.closing.append(number)

    def _forget(self, number: int) -> None:
        """Close a connection in whose place there is a newer one."""
        del self._connections[number]
        self.closing.append(number)
