# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up this machine's addresses, disk space and GPUs."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, disk_full


def network_addresses() -> list[tuple[str, str, bool]]:
    """Return ``[(interface, address, is_loopback)]``, IPv4 before IPv6; see netdevice(7) and /proc/net/if_inet6."""
    entry_bytes = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq: a name of 16 bytes, then a sockaddr_in
    buffer = array.array("B", bytes(1000 * entry_bytes))
    request = bytearray(struct.pack("iP", len(buffer), buffer.buffer_info()[0]))  # struct ifconf
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe.fileno(), 0x8912, request)  # SIOCGIFCONF
    used = struct.unpack("iP", request)[0]
    entries = [buffer[at : at + entry_bytes].tobytes() for at in range(0, used, entry_bytes)]
    # An alias such as eth0:1 is an address of eth0; gloo and NCCL want the interface.
    names = [entry[:16].partition(b"\0")[0].decode(errors="surrogateescape").partition(":")[0] for entry in entries]
    found = [(name, socket.inet_ntoa(entry[20:24])) for name, entry in zip(names, entries)]
    with suppress(OSError), open("/proc/net/if_inet6") as file:
        for digits, _index, _prefix, scope, _flags, name in map(str.split, file):
            if scope != "20":  # a link-local address needs its interface besides: of no use here
                found.append((name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))))
    return [
        (name, address, address == "::1" or address.startswith("127."))
        for name, address in found
        if name.isprintable() and is_of_one_machine(address)
    ]


def is_of_one_machine(address: str) -> bool:
    """Return whether an address is neither the unspecified one nor a multicast group's, which an interface may have."""
    if ":" in address:
        return address != "::" and not address.startswith("ff")
    return address != "0.0.0.0" and int(address.partition(".")[0]) < 224


def default_route_address() -> str | None:
    """Return the address this node uses to reach others, or None. Connecting a UDP socket sends nothing."""
    for family, target in ((socket.AF_INET, "198.18.0.1"), (socket.AF_INET6, "2001:2::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return None


def locate_address(wanted: str | None) -> tuple[str, str]:
    """Return ``(address, interface)`` of this node on the cluster's network; ``wanted`` may be None.

    Peers may reach an address on lo that is no loopback address, as where hosts speak BGP. But gloo and NCCL listen at
    the first address of the interface that they are told (tried with torch 2.13), which on lo is 127.0.0.1.
    """
    found = network_addresses()
    address = wanted or default_route_address()
    if address is None:
        raise Refusal("has no network address besides loopback; set cluster_address for it in the inventory")
    for interface, candidate, loopback in found:
        if candidate == address and interface == "lo" and not loopback:
            raise Refusal(
                f"holds its address {address} on lo, where gloo and NCCL take 127.0.0.1 instead and find no peer; set "
                "cluster_address in the inventory to an address on another interface, or give this one an interface of "
                f"its own: ip addr del {address} dev lo; ip link add cluster0 type dummy; ip addr add {address} dev "
                "cluster0; ip link set cluster0 up"
            )
        if candidate == address or (loopback and address.startswith("127.") and candidate.startswith("127.")):
            return address, interface
    held = ", ".join(f"{a} ({i})" for i, a, loopback in found if not loopback) or "none"
    raise Refusal(
        f"does not hold the address {address} on any interface (it has: {held}); "
        "set cluster_address for it in the inventory to the address its peers reach"
    )


def check_space(path: str, needed_bytes: int) -> None:
    """Refuse if the file system of ``path`` has less room than ``needed_bytes`` for an unprivileged user."""
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    if free < needed_bytes or (room.f_files and not room.f_favail):
        raise Refusal(disk_full(path, f"{free // 2**20} MB free, and this job needs {needed_bytes // 2**20} MB"))


def count_gpus() -> int:
    """Return how many GPUs NVIDIA's driver has on this machine."""
    with suppress(OSError):
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    return 0
