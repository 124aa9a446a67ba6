# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Watch the other nodes of the job, so that they end it together, whether a controller follows it or not.

Each one keeps a connection to the head's, on a port of the cluster's network that only peers may reach, and both sides
prove that they know the job's key, which came with the start request over SSH. Over it go heartbeats, and the reason
when a rank ends badly, its node sends no heartbeat, or the job is stopped: all others then end theirs. A node that
never reached the head is not counted as lost: a script without torch needs no network between its nodes.

A message on a connection is a line, its fields separated by tabs:

    head   hello <nonce>                             peer   join <rank> <name> <nonce> <proof>
    head   welcome <proof>
    both   alive                                     peer   done
    both   end <why; empty for a stop on request>
"""

from __future__ import annotations

import errno
import hmac
import os
import select
import socket
import time
from collections.abc import Callable

RECONNECT_SECONDS = 5
"""A supervisor whose connection was closed, not cut, has this long to connect again: either it has ended, or something
on the way dropped the connection."""
LAST_MESSAGE_SECONDS = 3
"""How long a supervisor that ends waits for its last message to be sent."""
READ_SECONDS = 0.5
RETRY_SECONDS = 0.5
CONNECT_SECONDS = 2
"""How long a connection may take to be made and proven."""
PROOF_SECONDS = 10
"""How long a connection may go without its proof."""
LONGEST_MESSAGE = 4096


class WatchConnection:
    """Send and receive messages over one connection; nothing here blocks."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connection, which may not be complete yet."""
        connection.setblocking(False)
        self.socket = connection
        self.open = True
        self.refused = False
        self.since = time.monotonic()
        self.rank: int | None = None
        self.nonce = ""
        self._received = b""
        self._unsent = b""

    def send(self, *fields: str) -> None:
        """Send a message as soon as there is room for it."""
        self._unsent += " ".join("\t".join(fields).split("\n")).encode(errors="replace") + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Send what is unsent; return whether all of it is sent."""
        try:
            while self._unsent and self.open:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.close()
        return not self._unsent

    def receive(self) -> list[list[str]]:
        """Return the messages that have arrived; a connection that the other side closed is closed here too."""
        try:
            while len(self._received) < 16 * LONGEST_MESSAGE:
                data = self.socket.recv(65536)
                self._received += data
                if not data:
                    self.close()
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.close()
            self.refused = error.errno == errno.ECONNREFUSED
        *lines, self._received = self._received.split(b"\n")
        if len(self._received) > LONGEST_MESSAGE:
            self.close()
        return [line.decode(errors="replace").split("\t") for line in lines]

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        self.socket.close()


class Member:
    """A rank as the head knows it."""

    def __init__(self, name: str, connection: WatchConnection) -> None:
        """Count the connection as the first heartbeat."""
        self.name = name
        self.connection = connection
        self.last_message = time.monotonic()
        self.done = False


def make_proof(key: bytes, side: str, nonces: list[str], claim: str) -> str:
    """Return the HMAC of a side, both nonces and its ``claim`` by the job's key."""
    return hmac.new(key, "\t".join([side, *nonces, claim]).encode(), "sha256").hexdigest()


def is_proof(given: str, expected: str) -> bool:
    """Return whether two proofs are the same, in a time that does not depend on how much of them is."""
    return hmac.compare_digest(given.encode(), expected.encode())


def new_nonce() -> str:
    """Return a number used once."""
    return os.urandom(16).hex()


class Watch:
    """What the head and the other ranks have in common.

    Attributes:
        verdict: why this node's part of the job has to end; None as long as it need not; "" for a stop on request.
    """

    def __init__(self, key: bytes, timeout_seconds: float) -> None:
        """Watch with several heartbeats within ``timeout_seconds``, after which a silent node is lost."""
        self.verdict: str | None = None
        self._key = key
        self._timeout = timeout_seconds
        self._heartbeat_seconds = min(timeout_seconds / 5, 5.0)
        self._next_heartbeat = 0.0

    def wait(self, seconds: float) -> None:
        """Wait for messages, handle them, and set the verdict where there is a reason to end."""
        waiting = select.poll()
        for descriptor in self._descriptors():
            waiting.register(descriptor, select.POLLIN)
        waiting.poll(seconds * 1000)
        now = time.monotonic()
        self._update(now)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_seconds
            self._send("alive")

    def end(self, why: str) -> None:
        """End the job on all nodes, for this reason."""
        if self.verdict is None:
            self.verdict = why
            self._send("end", why)

    def leave(self, stop_requested: Callable[[], bool]) -> None:
        """Close the watch, once the last message has reached the others."""
        raise NotImplementedError

    def _descriptors(self) -> list[int]:
        raise NotImplementedError

    def _update(self, now: float) -> None:
        raise NotImplementedError

    def _send(self, *fields: str) -> None:
        raise NotImplementedError


class Head(Watch):
    """Rank 0's side: takes the messages of all others, and passes verdicts on."""

    def __init__(self, listener: socket.socket, key: bytes, timeout_seconds: float, world_size: int) -> None:
        """Wait for the others at ``listener``, which is taken over."""
        super().__init__(key, timeout_seconds)
        self._listener = socket.socket(fileno=listener.detach())
        self._listener.setblocking(False)
        self._world_size = world_size
        self._connections: list[WatchConnection] = []
        self._members: dict[int, Member] = {}

    def leave(self, stop_requested: Callable[[], bool]) -> None:
        """Stay until all ranks that ever connected have ended: only the head can tell them when one fails."""
        deadline = time.monotonic() + LAST_MESSAGE_SECONDS  # those about to connect need the verdict too
        while len(self._members) < self._world_size - 1 and time.monotonic() < deadline:
            self.wait(0.05)
        while self.verdict is None and any(not member.done for member in self._members.values()):
            self.wait(0.05)
            if stop_requested():
                self.end("")
        deadline = time.monotonic() + LAST_MESSAGE_SECONDS
        while [one for one in self._connections if one.open and not one.flush()] and time.monotonic() < deadline:
            self.wait(0.05)
        deadline = time.monotonic() + READ_SECONDS  # a connection closed over unread messages loses the last one
        while any(connection.open for connection in self._connections) and time.monotonic() < deadline:
            self.wait(0.05)

    def _descriptors(self) -> list[int]:
        own = [self._listener.fileno()] if self._has_room() else []
        return own + [connection.socket.fileno() for connection in self._connections if connection.open]

    def _has_room(self) -> bool:
        return len(self._connections) < 2 * self._world_size + 16  # strangers must not use up this process's files

    def _update(self, now: float) -> None:
        while self._has_room():
            try:
                self._connections.append(WatchConnection(self._listener.accept()[0]))
            except OSError:
                break
            self._connections[-1].nonce = new_nonce()
            self._connections[-1].send("hello", self._connections[-1].nonce)
        for connection in self._connections:
            connection.flush()
            for message in connection.receive():
                self._handle(connection, message, now)
            if connection.rank is None and now - connection.since > PROOF_SECONDS:
                connection.close()
        self._connections = [connection for connection in self._connections if connection.open]
        for member in self._members.values():
            if member.done:
                continue
            silent = now - member.last_message
            if silent > self._timeout:
                self.end(f"the node of {member.name} sent no heartbeat for {silent:.0f} s")
            elif not member.connection.open and silent > RECONNECT_SECONDS:
                self.end(f"{member.name} lost its supervisor process")

    def _handle(self, connection: WatchConnection, message: list[str], now: float) -> None:
        if connection.rank is None:
            if len(message) != 5 or message[0] != "join":
                return connection.close()
            name, nonce = message[2], message[3]
            expected = make_proof(self._key, "peer", [connection.nonce, nonce], f"{message[1]} {name}")
            if not is_proof(message[4], expected):
                return connection.close()
            connection.rank = rank = int(message[1])
            if rank in self._members:
                self._members[rank].connection.close()
            self._members[rank] = Member(name, connection)
            connection.send("welcome", make_proof(self._key, "head", [connection.nonce, nonce], ""))
            if self.verdict is not None:
                connection.send("end", self.verdict)
            return None
        member = self._members[connection.rank]
        member.last_message = now
        if message[0] == "done":
            member.done = True
        elif message[0] == "end":
            member.done = True
            self.end(message[1] if len(message) > 1 else "")
        return None

    def _send(self, *fields: str) -> None:
        for member in self._members.values():
            if member.connection.open:
                member.connection.send(*fields)


class Peer(Watch):
    """Any other rank's side."""

    def __init__(
        self, address: str, port: int, key: bytes, timeout_seconds: float, rank: int, name: str, head_name: str
    ) -> None:
        """Keep where the head's supervisor listens; nothing is connected yet."""
        super().__init__(key, timeout_seconds)
        self._target = (address, port)
        self._rank = rank
        self._name = name
        self._head_name = head_name
        self._connection: WatchConnection | None = None
        self._nonces: list[str] = []
        self._welcome = False  # on this connection
        self._last_message: float | None = None  # ever
        self._retry = 0.0
        self._refused_since: float | None = None

    def leave(self, stop_requested: Callable[[], bool]) -> None:
        """Send that this rank is done, or why it ended."""
        deadline = time.monotonic() + (LAST_MESSAGE_SECONDS if self._last_message is None else self._timeout)
        while not self._welcome and time.monotonic() < deadline and not stop_requested():
            self.wait(0.05)
        if not self._connection or not self._welcome:
            return
        if self.verdict is None:
            self._connection.send("done")
        else:
            self._connection.send("end", self.verdict)
        deadline = time.monotonic() + LAST_MESSAGE_SECONDS
        while self._connection.open and not self._connection.flush() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._connection.close()

    def _descriptors(self) -> list[int]:
        return [self._connection.socket.fileno()] if self._connection and self._connection.open else []

    def _update(self, now: float) -> None:
        if self._connection:
            self._connection.flush()
            for message in self._connection.receive():
                self._handle(self._connection, message, now)
            # TCP waits ever longer before it tries a cut cable again; a new connection is through once it is mended.
            quiet = now - max(self._connection.since, self._last_message if self._welcome and self._last_message else 0)
            if quiet > (max(self._timeout / 3, 2 * self._heartbeat_seconds) if self._welcome else CONNECT_SECONDS):
                self._connection.close()
            if not self._connection.open:
                if not self._connection.refused:  # cut off, perhaps; a refusal says that the head's machine lives
                    self._refused_since = None
                elif self._refused_since is None:
                    self._refused_since = now
                self._connection, self._welcome = None, False
        if not self._connection and now >= self._retry:
            self._retry = now + RETRY_SECONDS
            self._connect()
        if self._last_message is None:
            return
        silent = now - self._last_message
        if silent > self._timeout:
            self.end(f"the node of {self._head_name}, the head, sent no heartbeat for {silent:.0f} s")
        elif self._refused_since is not None and now - self._refused_since > RECONNECT_SECONDS:
            self.end(f"{self._head_name}, the head, lost its supervisor process")

    def _connect(self) -> None:
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        if connection.connect_ex(self._target) in (0, errno.EINPROGRESS):
            self._connection = WatchConnection(connection)
        else:
            connection.close()

    def _handle(self, connection: WatchConnection, message: list[str], now: float) -> None:
        if message[0] == "hello" and len(message) == 2:
            self._nonces = [message[1], new_nonce()]
            proof = make_proof(self._key, "peer", self._nonces, f"{self._rank} {self._name}")
            connection.send("join", str(self._rank), self._name, self._nonces[1], proof)
        elif message[0] == "welcome" and len(message) == 2:
            if not is_proof(message[1], make_proof(self._key, "head", self._nonces, "")):
                return connection.close()
            self._welcome, self._last_message, self._refused_since = True, now, None
            if self.verdict is not None:
                connection.send("end", self.verdict)
        elif self._welcome:
            self._last_message = now
            if message[0] == "end":
                self.end(message[1] if len(message) > 1 else "")
        return None

    def _send(self, *fields: str) -> None:
        if self._connection and self._welcome:
            self._connection.send(*fields)
