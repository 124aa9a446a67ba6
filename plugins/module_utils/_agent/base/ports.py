# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find free TCP ports, and return why a port cannot be used."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text


def ephemeral_ports() -> tuple[int, int]:
    """Return ``(first, last)`` of net.ipv4.ip_local_port_range."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first, last = file.read().split()
    return int(first), int(last)


def reserved_ports() -> set[int]:
    """Return the ports of net.ipv4.ip_local_reserved_ports, which outgoing connections never take."""
    with open("/proc/sys/net/ipv4/ip_local_reserved_ports") as file:
        spans = [span.partition("-") for span in file.read().strip().split(",") if span]
    return {port for low, _dash, high in spans for port in range(int(low), int(high or low) + 1)}


def port_holder(port: int) -> str | None:
    """Return the name of the process that listens on TCP ``port``, as well as this user may see it, or None."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), open(table) as file:
            rows = [line.split() for line in file.readlines()[1:]]
            inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if link.startswith("socket:[") and link[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm", errors="replace") as file:
                        return f"{file.read().strip()} (process {pid})"
    return "a process of another user"


def check_port_range(port: int) -> None:
    """Refuse a MASTER_PORT that this node, the head, gives to outgoing connections."""
    first, last = ephemeral_ports()
    if first <= port <= last and port not in reserved_ports():
        raise Refusal(
            f"uses ports {first} to {last} for outgoing connections (net.ipv4.ip_local_port_range), and MASTER_PORT is "
            f"{port}, so another program can take it; set cluster_master_port in the inventory to a port below {first}"
        )


def check_port_free(port: int, uid: int) -> None:
    """Refuse a MASTER_PORT on which a job of the user ``uid`` cannot listen now on this node, the head."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        first = int(file.read())
    if port < first and uid != 0:
        raise Refusal(
            f"cannot be the head: an unprivileged job may not listen on port {port}; set cluster_master_port in the "
            f"inventory to a port of {first} or more"
        )

    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((wildcard, port))
            finally:
                probe.close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                holder = port_holder(port) or "a socket that does not listen"
                raise Refusal(
                    f"cannot be the head: MASTER_PORT {port} is taken by {holder}; end that process, or set "
                    "cluster_master_port in the inventory to a free port"
                ) from None
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise


def free_port(but: int | None = None) -> int:
    """Return an ephemeral port, other than ``but``, that nothing on this node has; 0 if there is none.

    It is the system's choice: none of the reserved ones, and one that outgoing connections take last.
    """
    for family, wildcard in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        with suppress(OSError), socket.socket(family) as first, socket.socket(family) as second:
            for probe in (first, second):  # while the first has the one, the second gets another
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind((wildcard, 0))
                if probe.getsockname()[1] != but:
                    return int(probe.getsockname()[1])
    return 0


def cannot_listen(address: str, port: int, error: OSError, but: int | None = None) -> Refusal:
    """Return why no process can listen there; the fact ``taken`` is a free port other than ``but``, or 0."""
    return Refusal(
        f"cannot listen at {address}, port {port}: {error_text(error)}",
        taken=free_port(but) if error.errno == errno.EADDRINUSE else 0,
    )
