# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Try to connect to all other nodes, while they do the same."""

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
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import cannot_listen
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    NO_ANSWER,
    NO_ROUTE,
    ONLY_SMALL,
    REFUSED,
    Reply,
    Request,
)

Place = tuple[str, int]
"""Whom to meet, "" for whoever listens there, and at which port."""

RETRY_SECONDS = 0.2
LINGER_SECONDS = 0.5
LONGEST_HELLO = 4096
FULL_BYTES = 9216
"""What a large packet holds at most: as much as jumbo frames; only loopback's are larger."""
FULL = b"." * (FULL_BYTES - 1) + b"\n"
WHOLE = b"whole\n"
"""What a node says when a large packet has arrived."""
MOST_SLOW = 5
"""So many of a node's peers are reported with the time that they take to answer."""


def try_connections(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Find out which other nodes this one can connect to, and which ones can connect to it.

    All nodes have to be asked at about the same time. Each listens, and connects to all others again and again until it
    succeeds or the time is over; both sides say who they are. Whoever connected then sends one packet as large as the
    connection takes, which no router may cut up: where those are lost, connections come about, and hang.

    Request: name (this node's), address and port (its own, to listen at), interface (that holds it), peers {host:
    [address, port]} (with or without this node), seconds, master (MASTER_PORT on the head, [address, port], to be tried
    too, or None) and head (the node that listens there for as long as this takes, or None where rank 0 does). Reply:

        failed   {host: "no answer", "refused", "no route", "only small packets", or what else went wrong}
        master   None if MASTER_PORT answers or was not asked for, else as in failed
        taken    why this node, the head, cannot listen at MASTER_PORT, or None
        trips    to a peer and back, in microseconds: the median, and {host: time} of the slowest
        mtu      the interface's, in bytes; None if that is not known
    """
    return ConnectionTest(request).hold(), b""


class ConnectionTest:
    """One node's part of everybody's connecting to everybody else, in one thread."""

    def __init__(self, request: Request) -> None:
        """Listen, or refuse."""
        own, head = request["name"], request["head"]
        self._port: int = request["port"]
        self._job = request["job"]["id"]
        self._interface = request["interface"]
        self._own_hello = self._hello(own)
        self._targets: dict[Place, str] = {
            (host, port): address for host, (address, port) in request["peers"].items() if host != own
        }
        peers = [host for host, _port in self._targets]
        self._hellos = {self._hello(host): host for host in peers}
        # Who has not yet connected to this node, or whose large packet has not arrived: until then, it stays.
        self._missing = dict.fromkeys((host, self._port) for host in peers)
        self._deadline = time.monotonic() + request["seconds"]
        allow_files(4 * len(self._targets) + 100)
        self._selector = selectors.DefaultSelector()
        try:
            self._listen(request["address"], self._port)
        except OSError as error:
            self._selector.close()
            but = request["master"][1] if request["master"] else None
            raise cannot_listen(request["address"], self._port, error, but) from None
        self._taken: str | None = None
        self._master: Place | None = None
        if request["master"] and head != own:
            address, port = request["master"]
            self._master = (head or "", port)
            self._targets[self._master] = address
        elif request["master"]:
            try:
                self._listen(*request["master"])
                self._missing.update(dict.fromkeys((host, request["master"][1]) for host in peers))
            except OSError as error:
                self._taken = error_text(error)
        self._failed: dict[Place, str] = dict.fromkeys(self._targets, NO_ANSWER)
        self._retries: dict[Place, float] = dict.fromkeys(self._targets, 0.0)
        self._half_met: dict[Place, socket.socket] = {}
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
            for place, at in list(self._retries.items()):
                if at <= now:
                    del self._retries[place]
                    self._connect(place)
            wait = min([until, *self._retries.values()]) - time.monotonic()
            for key, _events in self._selector.select(max(wait, 0)):
                key.data(key.fileobj)
        for place, connection in list(self._half_met.items()):
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
            self._part(connection)
            return self._fail(place, code)
        if not place[0]:
            return self._met(place, connection)
        with suppress(OSError):  # what was said before it was cut tells more
            connection.send(self._own_hello)
            connection.send(FULL[-connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) :])
        heard = bytearray()
        self._selector.modify(connection, selectors.EVENT_READ, lambda one: self._hear_answer(place, one, heard))
        return None

    def _hear_answer(self, place: Place, connection: socket.socket, heard: bytearray) -> None:
        """Read what a peer says back; nothing but its own hello counts."""
        data = received(connection)
        heard += data
        hello = self._hello(place[0])
        if heard == hello + WHOLE:
            self._met(place, connection)
        elif heard.startswith(hello):
            self._failed[place] = ONLY_SMALL
            self._half_met[place] = connection
            if not data:  # its time is over
                self._give_up(place, connection)
        elif not data or len(heard) > LONGEST_HELLO or b"\n" in heard:
            self._part(connection)
            self._failed[place] = "answered by another program" if heard else NO_ANSWER
            self._retries[place] = time.monotonic() + RETRY_SECONDS

    def _accept(self, listener: socket.socket, port: int) -> None:
        with suppress(OSError):
            connection = listener.accept()[0]
            connection.setblocking(False)
            heard = bytearray()
            self._selector.register(connection, selectors.EVENT_READ, lambda one: self._hear(one, port, heard))

    def _hear(self, connection: socket.socket, port: int, heard: bytearray) -> None:
        """Read who has connected, and answer if it is a peer."""
        data = received(connection)
        heard += data
        hello, newline, rest = bytes(heard).partition(b"\n")
        if data and not newline and len(heard) <= LONGEST_HELLO:
            return
        host = self._hellos.get(hello + newline)
        if host is None:
            return self._part(connection)
        with suppress(OSError):
            connection.send(self._own_hello)
        if rest.endswith(b"\n"):
            self._thank((host, port), connection)
        else:
            self._selector.modify(connection, selectors.EVENT_READ, lambda one: self._hear_rest((host, port), one))
        return None

    def _hear_rest(self, place: Place, connection: socket.socket) -> None:
        """Read the large packet of a peer that has said who it is."""
        data = received(connection)
        if data.endswith(b"\n"):
            self._thank(place, connection)
        elif not data:
            self._part(connection)

    def _thank(self, place: Place, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.send(WHOLE)
            self._missing.pop(place, None)
        self._part(connection)

    def _give_up(self, place: Place, connection: socket.socket) -> None:
        """Wait no longer for a peer's word that the large packet has arrived."""
        if has_arrived(connection):  # and was not read: a busy machine, no bad link
            self._met(place, connection)
        else:
            del self._half_met[place]
            self._part(connection)

    def _part(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _met(self, place: Place, connection: socket.socket) -> None:
        if place != self._master:
            self._trips[place[0]] = trip(connection)
        self._part(connection)
        self._half_met.pop(place, None)
        del self._failed[place]

    def _fail(self, place: Place, code: int) -> None:
        """Note why a connection did not come about, and try again later."""
        words = {
            errno.ECONNREFUSED: REFUSED,
            errno.ETIMEDOUT: NO_ANSWER,
            errno.EHOSTUNREACH: NO_ROUTE,
            errno.ENETUNREACH: NO_ROUTE,
        }
        self._failed[place] = words.get(code) or os.strerror(code)
        self._retries[place] = time.monotonic() + RETRY_SECONDS


def allow_files(needed: int) -> None:
    """Raise this process's limit of open files to ``needed``, as far as it may be."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def forbid_fragments(connection: socket.socket) -> None:
    """Have DF set on all packets of a connection, whatever net.ipv4.ip_no_pmtu_disc says; see ip(7) and ipv6(7)."""
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
