# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What this machine is: its addresses, ports, room and accounts."""

from __future__ import annotations

import errno
import fcntl
import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, disk_full, suppress


def network_addresses() -> list[tuple[str, str, bool]]:
    """Return ``[(interface, address, is_loopback)]``, IPv4 before IPv6; see netdevice(7) and /proc/net/if_inet6."""
    import _socket  # what the module socket wraps; with its wrapping it takes as long to import as all else here
    import ctypes  # which the supervisor needs anyway; the module array would bring collections besides
    import struct

    entry_bytes = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq: a name of 16 bytes, then a sockaddr_in
    buffer = ctypes.create_string_buffer(1000 * entry_bytes)
    request = bytearray(struct.pack("iP", len(buffer), ctypes.addressof(buffer)))  # struct ifconf
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(probe.fileno(), 0x8912, request)  # SIOCGIFCONF
    probe.close()
    used = struct.unpack("iP", request)[0]
    entries = [buffer.raw[at : at + entry_bytes] for at in range(0, used, entry_bytes)]
    # An alias such as eth0:1 is an address of eth0; gloo and NCCL want the interface.
    names = [entry[:16].partition(b"\0")[0].decode(errors="surrogateescape").partition(":")[0] for entry in entries]
    found = [(name, _socket.inet_ntoa(entry[20:24])) for name, entry in zip(names, entries)]
    with suppress(OSError), open("/proc/net/if_inet6") as file:
        for digits, _index, _prefix, scope, _flags, name in map(str.split, file):
            if scope != "20":  # a link-local address needs its interface besides: of no use here
                found.append((name, _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits))))
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
    import socket

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
            f"hands out port {port} to outgoing connections (net.ipv4.ip_local_port_range is {first} to {last}), so it "
            f"would be taken one day; set cluster_master_port in the inventory to a port below {first}"
        )


def check_port_free(port: int, uid: int) -> None:
    """Refuse a MASTER_PORT on which a job of the user ``uid`` cannot listen now on this node, the head."""
    import _socket

    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        first = int(file.read())
    if port < first and uid != 0:
        raise Refusal(
            f"cannot be the head: an unprivileged job may not listen on port {port}; set cluster_master_port in the "
            f"inventory to a port of {first} or more"
        )

    for family, wildcard in ((_socket.AF_INET, "0.0.0.0"), (_socket.AF_INET6, "::")):
        try:
            probe = _socket.socket(family, _socket.SOCK_STREAM)
            try:
                probe.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                if family == _socket.AF_INET6:
                    probe.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
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


def has_systemd() -> bool:
    """Return whether systemd is this node's init."""
    return os.path.isdir("/run/systemd/system")


def refuse_root(name: str, uid: int | None) -> None:
    """Refuse jobs as root; only where there is no systemd, as in a bare container, root may run jobs as itself."""
    as_itself = not name and os.geteuid() == 0
    if (as_itself and has_systemd()) or (name and uid == 0):
        raise Refusal(
            f"would run jobs as {name or 'root'}, but they run unprivileged; set job_user in the inventory to another "
            "account, or ansible_become to false to run them as the account Ansible connects as"
        )


class User:
    """The account a job runs as. ``name`` empty means whoever this agent runs as."""

    def __init__(self, name: str) -> None:
        """Refuse an account that does not exist, is root, or is out of reach."""
        import pwd

        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        except KeyError:
            if name:
                raise Refusal(f"has no user {name}; run: ansible-playbook setup.yml") from None
            raise Refusal(
                f"is used as user id {os.geteuid()}, which no account there has; make one, or set ansible_user to one"
            ) from None
        if entry.pw_uid != os.geteuid() != 0:
            raise Refusal(
                f"cannot run jobs as {name}: the connection's user is {account_name(os.geteuid())} and may not become "
                "another; allow sudo (ansible_become), or set job_user to that name"
            )
        refuse_root(name, entry.pw_uid)
        self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir

    @classmethod
    def numbered(cls, uid: int, gid: int) -> User:
        """Return whoever owns a file: perhaps an account that was deleted."""
        user = cls.__new__(cls)
        user.name, user.uid, user.gid, user.home = account_name(uid), uid, gid, "/"
        return user

    def become(self) -> None:
        """Turn this process into the user, for good."""
        if os.geteuid() == 0 and self.uid != 0:
            os.initgroups(self.name, self.gid)
            os.setgid(self.gid)
            os.setuid(self.uid)

    def acting(self) -> Acting:
        """Touch files as the user only, so that no link a job has planted makes root write elsewhere."""
        return Acting(self)


def uid_of(name: str) -> int | None:
    """Return the number of the account that jobs run as, or None if it is not there or cannot be used."""
    try:
        return User(name).uid
    except Refusal:
        return None


def account_name(uid: int) -> str:
    """Return the name of an account; its number if it was deleted."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def owner_of(path: str) -> User | None:
    """Return the owner of a job's folder, as whom its processes run; None if that is who this agent runs as."""
    status = os.lstat(path)
    return User.numbered(status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid else None


class Acting:
    """While in this context, root has the rights of a user."""

    def __init__(self, user: User) -> None:
        self._user = user if os.geteuid() == 0 and user.uid != 0 else None

    def __enter__(self) -> None:
        """Take on the user's rights."""
        if self._user:
            os.setegid(self._user.gid)
            os.seteuid(self._user.uid)

    def __exit__(self, *_about: object) -> None:
        """Be root again."""
        if self._user:
            os.seteuid(0)
            os.setegid(0)
