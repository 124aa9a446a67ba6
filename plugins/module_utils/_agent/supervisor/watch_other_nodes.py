# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Watch the other nodes of the job, so that they end it together, whether a controller follows it or not.

Each one keeps a connection to the head's, on a port of the cluster's network that only peers may reach, and both sides
prove that they know the job's key, which came with the word to start over SSH. Over it go signs of life, and the reason
when a rank ends badly, its node falls silent, or the job is stopped: all others then end theirs. A node that never
reached the head is not judged: a script without torch needs no network between its nodes.

Words on a connection are lines, fields separated by tabs:

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

RETURN_SECONDS = 5
"""A supervisor whose connection was closed, not cut, has this long to come back: it has died, or a router forgot it."""
LAST_WORD_SECONDS = 3
"""How long a supervisor that ends waits for its last word to go out."""
READ_SECONDS = 0.5
RETRY_SECONDS = 0.5
CONNECT_SECONDS = 2
"""How long a connection may take to be made and proven."""
STRANGER_SECONDS = 10
"""How long a connection may go without its proof."""
LONGEST_WORD = 4096


class WatchConnection:
    """A connection, in words; nothing here blocks."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connection, which may not be complete yet."""
        connection.setblocking(False)
        self.connection = connection
        self.open = True
        self.refused = False
        self.since = time.monotonic()
        self.rank: int | None = None
        self.nonce = ""
        self._received = b""
        self._unsent = b""

    def send(self, *fields: str) -> None:
        """Send a word, as soon as there is room for it."""
        self._unsent += " ".join("\t".join(fields).split("\n")).encode(errors="replace") + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Send what waits; return whether nothing does any more."""
        try:
            while self._unsent and self.open:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.close()
        return not self._unsent

    def words(self) -> list[list[str]]:
        """Return what has arrived; a connection that the other side closed is closed here too."""
        try:
            while len(self._received) < 16 * LONGEST_WORD:
                data = self.connection.recv(65536)
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
        if len(self._received) > LONGEST_WORD:
            self.close()
        return [line.decode(errors="replace").split("\t") for line in lines]

    def close(self) -> None:
        """Close it, for good."""
        self.open = False
        self.connection.close()


class Member:
    """A rank as the head knows it."""

    def __init__(self, name: str, line: WatchConnection) -> None:
        """Begin with a sign of life."""
        self.name = name
        self.line = line
        self.heard = time.monotonic()
        self.done = False


def make_proof(key: bytes, side: str, nonces: list[str], said: str) -> str:
    """Return what only those who know the key can say about two nonces and ``said``."""
    return hmac.new(key, "\t".join([side, *nonces, said]).encode(), "sha256").hexdigest()


def is_proof(given: str, expected: str) -> bool:
    """Return whether the two are the same, without telling by the time it takes how far they are."""
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
        """Watch with signs of life well within ``timeout_seconds``, after which a silent node is lost."""
        self.verdict: str | None = None
        self._key = key
        self._timeout = timeout_seconds
        self._beat = min(timeout_seconds / 5, 5.0)
        self._next_beat = 0.0

    def wait(self, seconds: float) -> None:
        """Let time pass, look after the connections, and come to a verdict where there is reason."""
        waiting = select.poll()
        for descriptor in self._descriptors():
            waiting.register(descriptor, select.POLLIN)
        waiting.poll(seconds * 1000)
        now = time.monotonic()
        self._look(now)
        if now >= self._next_beat:
            self._next_beat = now + self._beat
            self._send("alive")

    def end(self, why: str) -> None:
        """Have the job end everywhere, for this reason."""
        if self.verdict is None:
            self.verdict = why
            self._send("end", why)

    def leave(self, told_to_stop: Callable[[], bool]) -> None:
        """Part from the others, once the last word has reached them."""
        raise NotImplementedError

    def _descriptors(self) -> list[int]:
        raise NotImplementedError

    def _look(self, now: float) -> None:
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
        self._lines: list[WatchConnection] = []
        self._members: dict[int, Member] = {}

    def leave(self, told_to_stop: Callable[[], bool]) -> None:
        """Stay until all ranks that ever came have ended: who else would tell them when one fails?"""
        deadline = time.monotonic() + LAST_WORD_SECONDS  # those who are about to come have to hear how it ended, too
        while len(self._members) < self._world_size - 1 and time.monotonic() < deadline:
            self.wait(0.05)
        while self.verdict is None and any(not member.done for member in self._members.values()):
            self.wait(0.05)
            if told_to_stop():
                self.end("")
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while [line for line in self._lines if line.open and not line.flush()] and time.monotonic() < deadline:
            self.wait(0.05)
        deadline = time.monotonic() + READ_SECONDS  # a connection closed over unread words takes the last one with it
        while any(line.open for line in self._lines) and time.monotonic() < deadline:
            self.wait(0.05)

    def _descriptors(self) -> list[int]:
        own = [self._listener.fileno()] if self._has_room() else []
        return own + [line.connection.fileno() for line in self._lines if line.open]

    def _has_room(self) -> bool:
        return len(self._lines) < 2 * self._world_size + 16  # strangers must not use up this process's files

    def _look(self, now: float) -> None:
        while self._has_room():
            try:
                self._lines.append(WatchConnection(self._listener.accept()[0]))
            except OSError:
                break
            self._lines[-1].nonce = new_nonce()
            self._lines[-1].send("hello", self._lines[-1].nonce)
        for line in self._lines:
            line.flush()
            for word in line.words():
                self._hear(line, word, now)
            if line.rank is None and now - line.since > STRANGER_SECONDS:
                line.close()
        self._lines = [line for line in self._lines if line.open]
        for member in self._members.values():
            if member.done:
                continue
            silent = now - member.heard
            if silent > self._timeout:
                self.end(f"the node of {member.name} gave no sign of life for {silent:.0f} s")
            elif not member.line.open and silent > RETURN_SECONDS:
                self.end(f"{member.name} lost its supervisor process")

    def _hear(self, line: WatchConnection, word: list[str], now: float) -> None:
        if line.rank is None:
            if len(word) != 5 or word[0] != "join":
                return line.close()
            name, nonce = word[2], word[3]
            if not is_proof(word[4], make_proof(self._key, "peer", [line.nonce, nonce], f"{word[1]} {name}")):
                return line.close()
            line.rank = rank = int(word[1])
            if rank in self._members:
                self._members[rank].line.close()
            self._members[rank] = Member(name, line)
            line.send("welcome", make_proof(self._key, "head", [line.nonce, nonce], ""))
            if self.verdict is not None:
                line.send("end", self.verdict)
            return None
        member = self._members[line.rank]
        member.heard = now
        if word[0] == "done":
            member.done = True
        elif word[0] == "end":
            member.done = True
            self.end(word[1] if len(word) > 1 else "")
        return None

    def _send(self, *fields: str) -> None:
        for member in self._members.values():
            if member.line.open:
                member.line.send(*fields)


class Peer(Watch):
    """Any other rank's side."""

    def __init__(
        self, address: str, port: int, key: bytes, timeout_seconds: float, rank: int, name: str, head_name: str
    ) -> None:
        """Look for the head's supervisor at ``(address, port)``."""
        super().__init__(key, timeout_seconds)
        self._target = (address, port)
        self._rank = rank
        self._name = name
        self._head_name = head_name
        self._line: WatchConnection | None = None
        self._nonces: list[str] = []
        self._welcome = False  # on this connection
        self._heard: float | None = None  # ever
        self._retry = 0.0
        self._refused_since: float | None = None

    def leave(self, told_to_stop: Callable[[], bool]) -> None:
        """Say that this rank is done, if that was not said already."""
        deadline = time.monotonic() + (LAST_WORD_SECONDS if self._heard is None else self._timeout)
        while not self._welcome and time.monotonic() < deadline and not told_to_stop():
            self.wait(0.05)
        if not self._line or not self._welcome:
            return
        if self.verdict is None:
            self._line.send("done")
        else:
            self._line.send("end", self.verdict)
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while self._line.open and not self._line.flush() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._line.close()

    def _descriptors(self) -> list[int]:
        return [self._line.connection.fileno()] if self._line and self._line.open else []

    def _look(self, now: float) -> None:
        if self._line:
            self._line.flush()
            for word in self._line.words():
                self._hear(self._line, word, now)
            # TCP waits ever longer before it tries a cut cable again; a new connection is through once it is mended.
            quiet = now - max(self._line.since, self._heard if self._welcome and self._heard else 0)
            if quiet > (max(self._timeout / 3, 2 * self._beat) if self._welcome else CONNECT_SECONDS):
                self._line.close()
            if not self._line.open:
                if not self._line.refused:  # cut off, perhaps; a refusal says that the head's machine lives
                    self._refused_since = None
                elif self._refused_since is None:
                    self._refused_since = now
                self._line, self._welcome = None, False
        if not self._line and now >= self._retry:
            self._retry = now + RETRY_SECONDS
            self._connect()
        if self._heard is None:
            return
        silent = now - self._heard
        if silent > self._timeout:
            self.end(f"the node of {self._head_name}, the head, gave no sign of life for {silent:.0f} s")
        elif self._refused_since is not None and now - self._refused_since > RETURN_SECONDS:
            self.end(f"{self._head_name}, the head, lost its supervisor process")

    def _connect(self) -> None:
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        if connection.connect_ex(self._target) in (0, errno.EINPROGRESS):
            self._line = WatchConnection(connection)
        else:
            connection.close()

    def _hear(self, line: WatchConnection, word: list[str], now: float) -> None:
        if word[0] == "hello" and len(word) == 2:
            self._nonces = [word[1], new_nonce()]
            said = make_proof(self._key, "peer", self._nonces, f"{self._rank} {self._name}")
            line.send("join", str(self._rank), self._name, self._nonces[1], said)
        elif word[0] == "welcome" and len(word) == 2:
            if not is_proof(word[1], make_proof(self._key, "head", self._nonces, "")):
                return line.close()
            self._welcome, self._heard, self._refused_since = True, now, None
            if self.verdict is not None:
                line.send("end", self.verdict)
        elif self._welcome:
            self._heard = now
            if word[0] == "end":
                self.end(word[1] if len(word) > 1 else "")
        return None

    def _send(self, *fields: str) -> None:
        if self._line and self._welcome:
            self._line.send(*fields)
