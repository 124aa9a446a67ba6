# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Whether the nodes can reach each other: all connect to all others at once."""

from __future__ import annotations

import contextlib
import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, operation, said

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    import socket
    from typing import Any

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request

RETRY_SECONDS = 0.2
LINGER_SECONDS = 0.5
LONGEST_HELLO = 4096


@operation
def reach(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Find out which other nodes this one can connect to, and which ones can connect to it.

    All nodes have to be asked at about the same time. Each listens, and connects to all others again and again until it
    succeeds or the time is over; both sides say who they are.

    Request: name (this node's), address (its own, to listen at), port, peers {host: address} (with or without this
    node), seconds, master ([address, port] of a listener that is there already, or None). Reply: failed {host: "no
    answer", "refused", "no route", or what else went wrong}, missing (peers that did not connect to this node), master
    (None if it answers or was not asked for, else as in failed).
    """
    return Meeting(request).hold(), b""


class Meeting:
    """One node's part of everybody's connecting to everybody else, in one thread."""

    def __init__(self, request: Request) -> None:
        """Listen, or refuse; the fact ``taken`` says that another port would do."""
        import errno
        import resource
        import selectors
        import socket

        self._peers = {host: address for host, address in request["peers"].items() if host != request["name"]}
        self._port: int = request["port"]
        self._master: list[Any] | None = request["master"]
        self._job = request["job"]["id"]
        self._own_hello = self._hello(request["name"])
        self._hellos = {self._hello(host): host for host in self._peers}
        self._deadline = time.monotonic() + request["seconds"]
        needed = 3 * len(self._peers) + 100
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < needed:
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        self._family = socket.AF_INET6 if ":" in request["address"] else socket.AF_INET
        self._listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((request["address"], self._port))
            self._listener.listen(len(self._peers) + 8)
        except OSError as error:
            self._listener.close()
            raise Refusal(
                f"cannot listen at {request['address']}, port {self._port}: {said(error)}",
                taken=error.errno == errno.EADDRINUSE,
            ) from None
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._failed: dict[str | None, str] = dict.fromkeys(self._peers, "no answer")
        if self._master:
            self._failed[None] = "no answer"
        self._retries: dict[str | None, float] = dict.fromkeys(self._failed, 0.0)
        self._missing = dict.fromkeys(self._peers)

    def _hello(self, host: str) -> bytes:
        return ascii(("thunderhead", self._job, host)).encode() + b"\n"

    def hold(self) -> Reply:
        """Return when everybody has met, or the time is over."""
        done: float | None = None
        while True:
            now = time.monotonic()
            if done is None and not self._failed and not self._missing:
                done = now + LINGER_SECONDS  # what was said last is on its way
            until = self._deadline if done is None else min(done, self._deadline)
            if now >= until:
                break
            for host, at in list(self._retries.items()):
                if at <= now:
                    del self._retries[host]
                    self._connect(host)
            wait = min([until, *self._retries.values()]) - time.monotonic()
            for key, _events in self._selector.select(max(wait, 0)):
                key.data(key.fileobj)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # a socket
        self._selector.close()
        master = self._failed.pop(None, None)
        return {"failed": self._failed, "missing": list(self._missing), "master": master}

    def _connect(self, host: str | None) -> None:
        """Begin to connect to a peer, or to the master (None)."""
        import errno
        import selectors
        import socket

        target = (self._peers[host], self._port) if host is not None else tuple(self._master or ())
        connection = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        code = connection.connect_ex(target)
        if code in (0, errno.EINPROGRESS):
            self._selector.register(connection, selectors.EVENT_WRITE, lambda one: self._connected(host, one))
        else:
            connection.close()
            self._fail(host, code)

    def _connected(self, host: str | None, connection: socket.socket) -> None:
        import selectors
        import socket

        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or host is None:
            self._part(connection)
            return self._fail(host, code) if code else self._reached(host)
        try:
            connection.send(self._own_hello)
        except OSError as error:
            self._part(connection)
            return self._fail(host, error.errno or 0)
        heard = bytearray()
        self._selector.modify(connection, selectors.EVENT_READ, lambda one: self._hear_answer(host, one, heard))
        return None

    def _hear_answer(self, host: str, connection: socket.socket, heard: bytearray) -> None:
        """Read what a peer says back; nothing but its own hello counts."""
        try:
            data = connection.recv(LONGEST_HELLO)
        except OSError:
            data = b""
        heard += data
        if heard == self._hello(host):
            self._part(connection)
            self._reached(host)
        elif not data or len(heard) > LONGEST_HELLO or b"\n" in heard:
            self._part(connection)
            self._failed[host] = "answered by another program" if heard else "no answer"
            self._retries[host] = time.monotonic() + RETRY_SECONDS

    def _accept(self, listener: socket.socket) -> None:
        import selectors

        with contextlib.suppress(OSError):
            connection = listener.accept()[0]
            connection.setblocking(False)
            heard = bytearray()
            self._selector.register(connection, selectors.EVENT_READ, lambda one: self._hear(one, heard))

    def _hear(self, connection: socket.socket, heard: bytearray) -> None:
        """Read who has connected, and answer if it is a peer."""
        try:
            data = connection.recv(LONGEST_HELLO)
        except OSError:
            data = b""
        heard += data
        if data and b"\n" not in heard and len(heard) <= LONGEST_HELLO:
            return
        host = self._hellos.get(bytes(heard))
        if host is not None:
            with contextlib.suppress(OSError):
                connection.send(self._own_hello)
                self._missing.pop(host, None)
        self._part(connection)

    def _part(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _reached(self, host: str | None) -> None:
        self._failed.pop(host, None)

    def _fail(self, host: str | None, code: int) -> None:
        """Note why a connection did not come about, and try again later."""
        import errno

        words = {
            errno.ECONNREFUSED: "refused",
            errno.ETIMEDOUT: "no answer",
            errno.EHOSTUNREACH: "no route",
            errno.ENETUNREACH: "no route",
        }
        self._failed[host] = words.get(code) or os.strerror(code)
        self._retries[host] = time.monotonic() + RETRY_SECONDS
