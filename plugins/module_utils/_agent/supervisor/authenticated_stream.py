# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Turn the bytes of a connection into messages that only a supervisor of the same job can have sent.

Each side first sends a line with a nonce, a number used once. Both nonces and the job's key make the key of this
connection. From then on each message is a line ``<length> <code> <JSON object>``, whose code is an HMAC-SHA256 of the
direction, the number of the message, and its JSON. So a message that is forged, changed, repeated, left out, sent out
of turn, or taken from another connection is noticed, and ends the connection. Nothing is encrypted.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

Message = dict[str, Any]

HELLO = "thunderhead-gang-1"
NONCE_BYTES = 16
LONGEST_HELLO = 128
"""Bytes of the line with the nonce."""
LONGEST_MESSAGE = 2**20
"""Bytes of a message as JSON."""
_HEADER_BYTES = 128
"""More than length and code ever take."""
_ACCEPTED, _DIALED = b"accepted", b"dialed"


class ForgedMessage(Exception):
    """What has come is not from a supervisor of this job, or not as it was sent."""


class AuthenticatedStream:
    """One side of a connection. It knows nothing of sockets: bytes go in and come out."""

    def __init__(self, key: bytes, dialed: bool, nonce: bytes) -> None:
        """Begin with the line that is to be sent first.

        Args:
            key: the job's.
            dialed: whether this side has made the connection, or accepted it.
            nonce: ``NONCE_BYTES`` random bytes, used for this connection only.
        """
        self.unsent = f"{HELLO} {nonce.hex()}\n".encode()
        self.proven = False
        self._key = key
        self._dialed = dialed
        self._nonce = nonce
        self._connection_key: bytes | None = None
        self._waiting: list[Message] = []  # for the other side's nonce
        self._received = b""
        self._numbers = {True: 0, False: 0}  # of the next message, by whether the side that dialed sends it

    def send(self, message: Message) -> None:
        """Append a message to what is to be sent."""
        if self._connection_key is None:
            self._waiting.append(message)
            return
        text = json.dumps(message).encode()
        self.unsent += b"%d %b %b\n" % (len(text), self._code(self._connection_key, self._dialed, text), text)

    def receive(self, data: bytes) -> list[Message]:
        """Take bytes that have arrived; return the messages that are complete now.

        Raises:
            ForgedMessage: the connection is to be closed.
        """
        self._received += data
        messages: list[Message] = []
        while True:
            if self._connection_key is None:
                line = self._take_line(LONGEST_HELLO)
                if line is None:
                    return messages
                self._agree_on_key(line)
                continue
            message = self._take_message(self._connection_key)
            if message is None:
                return messages
            self.proven = True
            messages.append(message)

    def _agree_on_key(self, hello: bytes) -> None:
        word, _space, digits = hello.decode(errors="replace").partition(" ")
        try:
            theirs = bytes.fromhex(digits)
        except ValueError:
            theirs = b""
        if word != HELLO or len(theirs) != NONCE_BYTES or theirs == self._nonce:
            raise ForgedMessage("no greeting of a supervisor")
        nonces = self._nonce + theirs if self._dialed else theirs + self._nonce
        self._connection_key = hmac.new(self._key, nonces, "sha256").digest()
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.send(message)

    def _take_line(self, longest: int) -> bytes | None:
        line, newline, rest = self._received.partition(b"\n")
        if len(line) > longest:
            raise ForgedMessage("a line that is too long")
        if not newline:
            return None
        self._received = rest
        return line

    def _take_message(self, connection_key: bytes) -> Message | None:
        longest = LONGEST_MESSAGE if self.proven else LONGEST_HELLO * 8
        length, _space, _rest = self._received[:_HEADER_BYTES].partition(b" ")
        if len(self._received) > _HEADER_BYTES and (not length.isdigit() or int(length) > longest):
            raise ForgedMessage("a message that is too long")
        line = self._take_line(longest + _HEADER_BYTES)
        if line is None:
            return None
        length, code, text = [*line.split(b" ", 2), b"", b""][:3]
        if not hmac.compare_digest(code, self._code(connection_key, not self._dialed, text)):
            raise ForgedMessage("a message with a wrong code")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if length != b"%d" % len(text) or not isinstance(message, dict):
            raise ForgedMessage("a message of a wrong form")
        return message

    def _code(self, connection_key: bytes, from_dialer: bool, text: bytes) -> bytes:
        """Return the code of the next message of a side."""
        number = self._numbers[from_dialer]
        head = b"%b %d " % (_DIALED if from_dialer else _ACCEPTED, number)
        code = hmac.new(connection_key, head + text, "sha256").hexdigest().encode()
        self._numbers[from_dialer] += 1
        return code
