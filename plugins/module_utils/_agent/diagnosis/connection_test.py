# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Connect to all other nodes, while they do the same."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import cannot_listen
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.why_not_connected import why_not_connected
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    NO_ANSWER,
    ONLY_SMALL,
    Reply,
)

Place = tuple[str, int]
"""The peer to connect to, "" for any that listens there, and its port."""

RETRY_SECONDS = 0.2
LINGER_SECONDS = 0.5
LONGEST_HELLO = 4096
FULL_BYTES = 9216
"""What a large packet holds at most: as much as jumbo frames; only loopback's are larger."""
FULL = b"." * (FULL_BYTES - 1) + b"\n"
RECEIVED = b"received\n"
"""What a node replies when a large packet has arrived."""
MOST_SLOW = 5
"""So many of a node's peers are reported with the time that they take to answer."""


class ConnectionTest:
    """One node's connections to and from all others, in one thread; the operation ``try_connections`` says how."""

    def __init__(
        self,
        *,
        job: str,
        name: str,
        address: str,
        port: int,
        interface: str,
        peers: Mapping[str, Sequence[Any]],
        seconds: float,
        master: Sequence[Any] | None,
        head: str | None,
    ) -> None:
        """Listen for the other nodes, or refuse; ``job`` is its id, the rest as in the operation's request."""
        self._port = port
        self._job = job
        self._interface = interface
        self._own_hello = self._hello(name)
        self._targets: dict[Place, str] = {
            (host, its_port): its_address for host, (its_address, its_port) in peers.items() if host != name
        }
        others = [host for host, _port in self._targets]
        self._hellos = {self._hello(host): host for host in others}
        # Who has not yet connected to this node, or whose large packet has not arrived: until then, it stays.
        self._missing = dict.fromkeys((host, port) for host in others)
        self._deadline = time.monotonic() + seconds
        allow_files(4 * len(self._targets) + 100)
        self._selector = selectors.DefaultSelector()
        try:
            self._listen(address, port)
        except OSError as error:
            self._selector.close()
            but = master[1] if master else None
            raise cannot_listen(address, port, error, but) from None
        self._taken: str | None = None
        self._master: Place | None = None
        if master and head != name:
            self._master = (head or "", master[1])
            self._targets[self._master] = master[0]
        elif master:
            try:
                self._listen(*master)
                self._missing.update(dict.fromkeys((host, master[1]) for host in others))
            except OSError as error:
                self._taken = error_text(error)
        self._failed: dict[Place, str] = dict.fromkeys(self._targets, NO_ANSWER)
        self._retries: dict[Place, float] = dict.fromkeys(self._targets, 0.0)
        self._unconfirmed: dict[Place, socket.socket] = {}
        self._trips: dict[str, int] = {}

    def _hello(self, host: str) -> bytes:
        return json.dumps(["thunderhead", self._job, host]).encode() + b"\n"

    def _listen(self, address: str, port: int) -> None:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(len(self._targets) + 8)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda one: self._accept(one, port))

    def run(self) -> Reply:
        """Connect until all pairs have succeeded, or the time is over; return the results."""
        done: float | None = None
        while True:
            now = time.monotonic()
            if done is None and not self._failed and not self._missing:
                done = now + LINGER_SECONDS  # the last replies are on their way
            until = self._deadline if done is None else min(done, self._deadline)
            if now >= until:
                break
            for place, at in list(self._retries.items()):
                if at <= now:
                    del self._retries[place]
                    self._connect(place)
            wait = min([until, *self._retries.values()]) - time.monotonic()
            for key, _events in self._selector.select(max(wait, 0)):
                key.data(key.fileobj)
        for place, connection in list(self._unconfirmed.items()):
            self._give_up(place, connection)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # a socket
        self._selector.close()
        master = self._failed.pop(self._master, None) if self._master else None
        slowest = sorted(self._trips.items(), key=lambda item: item[1])
        return {
            "failed": {host: why for (host, _port), why in self._failed.items()},
            "master": master,
            "taken": self._taken,
            "trips": [slowest[len(slowest) // 2][1] if slowest else 0, dict(slowest[-MOST_SLOW:])],
            "mtu": mtu_of(self._interface),
        }

    def _connect(self, place: Place) -> None:
        """Begin to connect to a peer, or to the master."""
        address, port = self._targets[place], place[1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no IPv6 here, or too many files
            return self._fail(place, error.errno or 0)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forbid_fragments(connection)
        code = connection.connect_ex((address, port))
        if code in (0, errno.EINPROGRESS):
            self._selector.register(connection, selectors.EVENT_WRITE, lambda one: self._connected(place, one))
        else:
            connection.close()
            self._fail(place, code)
        return None

    def _connected(self, place: Place, connection: socket.socket) -> None:
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._close(connection)
            return self._fail(place, code)
        if not place[0]:
            return self._succeed(place, connection)
        with suppress(OSError):  # what arrived before it was cut gives the better reason
            connection.send(self._own_hello)
            connection.send(FULL[-connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) :])
        buffer = bytearray()
        self._selector.modify(connection, selectors.EVENT_READ, lambda one: self._read_reply(place, one, buffer))
        return None

    def _read_reply(self, place: Place, connection: socket.socket, buffer: bytearray) -> None:
        """Read a peer's reply; nothing but its own hello counts."""
        data = received(connection)
        buffer += data
        hello = self._hello(place[0])
        if buffer == hello + RECEIVED:
            self._succeed(place, connection)
        elif buffer.startswith(hello):
            self._failed[place] = ONLY_SMALL
            self._unconfirmed[place] = connection
            if not data:  # its time is over
                self._give_up(place, connection)
        elif not data or len(buffer) > LONGEST_HELLO or b"\n" in buffer:
            self._close(connection)
            self._failed[place] = "answered by another program" if buffer else NO_ANSWER
            self._retries[place] = time.monotonic() + RETRY_SECONDS

    def _accept(self, listener: socket.socket, port: int) -> None:
        with suppress(OSError):
            connection = listener.accept()[0]
            connection.setblocking(False)
            buffer = bytearray()
            self._selector.register(connection, selectors.EVENT_READ, lambda one: self._read_hello(one, port, buffer))

    def _read_hello(self, connection: socket.socket, port: int, buffer: bytearray) -> None:
        """Read the hello of a connection, and reply if it is a peer's."""
        data = received(connection)
        buffer += data
        hello, newline, rest = bytes(buffer).partition(b"\n")
        if data and not newline and len(buffer) <= LONGEST_HELLO:
            return
        host = self._hellos.get(hello + newline)
        if host is None:
            return self._close(connection)
        with suppress(OSError):
            connection.send(self._own_hello)
        if rest.endswith(b"\n"):
            self._confirm((host, port), connection)
        else:
            self._selector.modify(
                connection, selectors.EVENT_READ, lambda one: self._read_large_packet((host, port), one)
            )
        return None

    def _read_large_packet(self, place: Place, connection: socket.socket) -> None:
        """Read the large packet of a peer that has sent its hello."""
        data = received(connection)
        if data.endswith(b"\n"):
            self._confirm(place, connection)
        elif not data:
            self._close(connection)

    def _confirm(self, place: Place, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.send(RECEIVED)
            self._missing.pop(place, None)
        self._close(connection)

    def _give_up(self, place: Place, connection: socket.socket) -> None:
        """Wait no longer for a peer's reply that the large packet has arrived."""
        if has_arrived(connection):  # and was not read: a busy machine, no bad link
            self._succeed(place, connection)
        else:
            del self._unconfirmed[place]
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _succeed(self, place: Place, connection: socket.socket) -> None:
        if place != self._master:
            self._trips[place[0]] = trip(connection)
        self._close(connection)
        self._unconfirmed.pop(place, None)
        del self._failed[place]

    def _fail(self, place: Place, code: int) -> None:
        """Note why a connection failed, and try again later."""
        self._failed[place] = why_not_connected(code)
        self._retries[place] = time.monotonic() + RETRY_SECONDS


def allow_files(needed: int) -> None:
    """Raise this process's limit of open files to ``needed``, as far as it may be."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def forbid_fragments(connection: socket.socket) -> None:
    """Have DF set on all packets of a connection, whatever net.ipv4.ip_no_pmtu_disc is; see ip(7) and ipv6(7)."""
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO
    else:
        connection.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO


def received(connection: socket.socket) -> bytes:
    """Return what has arrived; nothing also if the connection was cut."""
    try:
        return connection.recv(2 * FULL_BYTES)
    except OSError:
        return b""


def has_arrived(connection: socket.socket) -> bool:
    """Return whether the other side's kernel has acknowledged all that was sent; see tcp(7), SIOCOUTQ."""
    unacknowledged = array.array("i", [0])
    fcntl.ioctl(connection, 0x5411, unacknowledged)
    return not unacknowledged[0]


def trip(connection: socket.socket) -> int:
    """Return how long a packet took to the other side and back at best, in microseconds; see linux/tcp.h, tcp_info."""
    about = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
    return int(struct.unpack_from("I", about, 148 if len(about) >= 152 else 68)[0])  # tcpi_min_rtt; before 4.6 tcpi_rtt


def mtu_of(interface: str) -> int | None:
    """Return the MTU of a network interface, or None."""
    with suppress(OSError), open(f"/sys/class/net/{os.path.basename(interface)}/mtu") as file:
        return int(file.read())
    return None
