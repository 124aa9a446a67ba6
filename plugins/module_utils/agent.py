# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
r"""The agent: everything Thunderhead does *on* a node while jobs run.

It is never installed. The controller sends this file's text on standard input with every request
(``plugins/plugin_utils/channel.py``), so it is never out of date; only the standard library of Python 3.9 or newer is
needed. One request, one reply:

    standard input   a line with the length of the program in bytes; the program, which is this text and one call of
                     ``answer`` at its end; the payload
    standard output  a line ``MARK <length> <length>``; a Python literal and a payload of that many bytes

A request is ``{"op": name, ...}``; the functions decorated with ``@operation`` answer it. What cannot be done is a
``Refusal``: one sentence without the node's name, which the controller puts in front.

``prepare`` leaves one process behind, the supervisor: it holds the node for the job, waits for ``start``'s word, and is
the parent of the job's processes until the last has ended. It is a fork of the agent, so nothing is written to the node
and no second interpreter has to start.

Imports that only some requests need stand inside the functions, and nothing on the way to a start needs json, re or
subprocess: with 16 nodes on two cores every millisecond is paid 16 times, and each of these takes as long to import as
the interpreter takes to start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable, Iterator
    from typing import Any

    Request = dict[str, Any]
    Reply = dict[str, Any]

MARK = "thunderhead-reply"
BUNDLE_MTIME = 946684800
"""Modification time, seconds since 1970, of every file that came with the code: what differs was written by the job."""
GATE_SECONDS = 300
"""A prepared job that nobody starts or discards is given up after this long: its controller has vanished."""
GOING_ON = ("prepared", "running")
"""The states of a job that has not ended."""
POLL_SECONDS = 0.05
"""How often a waiting ``follow`` looks at the log and the state."""

OPERATIONS: dict[str, Callable[[Request, bytes], tuple[Reply, bytes]]] = {}


class Refusal(Exception):
    """Why the request cannot be done: one sentence about this node."""


def operation(
    function: Callable[[Request, bytes], tuple[Reply, bytes]],
) -> Callable[[Request, bytes], tuple[Reply, bytes]]:
    """Make ``function(request, payload) -> (reply, payload)`` answer the requests of its name."""
    OPERATIONS[function.__name__] = function
    return function


# ----------------------------------------------------------------------------------------------------------------- node


def network_addresses() -> list[tuple[str, str, bool]]:
    """Return ``[(interface, address, is_loopback)]``, IPv4 before IPv6; see netdevice(7) and /proc/net/if_inet6."""
    import _socket  # what the module socket wraps; with its wrapping it takes as long to import as all else here
    import array
    import struct

    entry_bytes = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq: a name of 16 bytes, then a sockaddr_in
    buffer = array.array("B", bytes(1000 * entry_bytes))
    request = bytearray(struct.pack("iP", len(buffer), buffer.buffer_info()[0]))  # struct ifconf
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(probe.fileno(), 0x8912, request)  # SIOCGIFCONF
    probe.close()
    used = struct.unpack("iP", request)[0]
    entries = [bytes(buffer[at : at + entry_bytes]) for at in range(0, used, entry_bytes)]
    # An alias such as eth0:1 is an address of eth0; gloo and NCCL want the interface.
    names = [entry[:16].partition(b"\0")[0].decode().partition(":")[0] for entry in entries]
    found = [(name, _socket.inet_ntoa(entry[20:24])) for name, entry in zip(names, entries)]
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as file:
        for digits, _index, _prefix, scope, _flags, name in map(str.split, file):
            if scope != "20":  # a link-local address needs its interface besides: of no use here
                found.append((name, _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits))))
    return [(name, address, address == "::1" or address.startswith("127.")) for name, address in found]


def default_route_address() -> str | None:
    """Return the address this node uses to reach others, or None. Connecting a UDP socket sends nothing."""
    import socket

    for family, target in ((socket.AF_INET, "198.18.0.1"), (socket.AF_INET6, "2001:2::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return None


def locate_address(wanted: str | None) -> tuple[str, str]:
    """Return ``(address, interface)`` of this node on the cluster's network; ``wanted`` may be None."""
    found = network_addresses()
    address = wanted or default_route_address()
    if address is None:
        raise Refusal("has no network address besides loopback; set cluster_address for it in the inventory")
    for interface, candidate, loopback in found:
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
        with contextlib.suppress(OSError), open(table) as file:
            rows = [line.split() for line in file.readlines()[1:]]
            inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    if not inodes:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                link = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if link.startswith("socket:[") and link[8:-1] in inodes:
                    with open(f"/proc/{pid}/comm") as file:
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
    import socket

    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        first = int(file.read())
    if port < first and uid != 0:
        raise Refusal(
            f"cannot be the head: an unprivileged job may not listen on port {port}; set cluster_master_port in the "
            f"inventory to a port of {first} or more"
        )

    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((wildcard, port))
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


def disk_full(path: str, state: str) -> str:
    """Return the sentence for a full file system."""
    return f"has too little disk space in {path} ({state}); free some there, or move cluster_dir to a larger disk"


def has_systemd() -> bool:
    """Return whether systemd is this node's init."""
    return os.path.isdir("/run/systemd/system")


@operation
def inspect(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Look, and change nothing. Request: user, address (or None), master_port (on the head, else None).

    Reply: address, interface, port_range (first and last ephemeral port).
    """
    refuse_root(request["user"], None)
    address, interface = locate_address(request["address"])
    if request["master_port"]:
        check_port_range(request["master_port"])
    return {"address": address, "interface": interface, "port_range": ephemeral_ports()}, b""


# ---------------------------------------------------------------------------------------------------------- preparation


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
            raise Refusal(f"has no user {name}; run: ansible-playbook setup.yml") from None
        if entry.pw_uid != os.geteuid() != 0:
            raise Refusal(
                f"cannot run jobs as {name}: the connection's user is {pwd.getpwuid(os.geteuid()).pw_name} and may not "
                "become another; allow sudo (ansible_become), or set job_user to that name"
            )
        refuse_root(name, entry.pw_uid)
        self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir

    def become(self) -> None:
        """Turn this process into the user, for good."""
        if os.geteuid() == 0 and self.uid != 0:
            os.initgroups(self.name, self.gid)
            os.setgid(self.gid)
            os.setuid(self.uid)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Touch files as the user only, so that no link a job has planted makes root write elsewhere."""
        if os.geteuid() != 0 or self.uid == 0:
            yield
            return
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)


def write_file(path: str, data: bytes, mode: int, durable: bool = False) -> None:
    """Replace ``path`` as a whole: a reader sees the old content or the new, never a part."""
    part = f"{path}.{os.getpid()}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:  # not for what is read within the second: a sync costs 16 nodes on one disk most of their start
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if there is none."""
    import json

    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def hold(request: Request) -> None:
    """Hold the node for the request's job as long as this process or a fork of it lives, or refuse.

    The kernel lets go of the lock when its holder ends, however it ends: there is no stale one.
    """
    jobs = os.path.join(request["directory"], "jobs")
    lock = os.open(os.path.join(jobs, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + 0.2  # whoever only looks (holder) has it for a moment
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                job = read_current(jobs)
                if job["id"] == request["job"]["id"]:
                    raise Refusal(
                        f"has the cluster_dir {request['directory']} of another host of the inventory on the same "
                        "machine; give each its own"
                    ) from None
                raise Refusal(
                    "runs job {id}, which {user} started at {start}, and a node runs one job at a time; wait for it, "
                    "end it there with: kill {pid}, or leave the node out with --limit".format(**job)
                ) from None
            time.sleep(0.01)
    write_current(request, os.getpid())


def write_current(request: Request, pid: int) -> None:
    """Write down who holds the node: the job's id, its user, its start and the process, a line each."""
    job = request["job"]
    text = f"{job['id']}\n{job['user']}\n{job['start']}\n{pid}\n"
    write_file(os.path.join(request["directory"], "jobs", "current"), text.encode(), 0o644)


def read_current(jobs: str) -> dict[str, str]:
    """Return id, user, start and pid as ``write_current`` wrote them."""
    lines: list[str] = []
    with contextlib.suppress(OSError), open(os.path.join(jobs, "current")) as file:
        lines = file.read().split("\n")
    return dict(zip(("id", "user", "start", "pid"), [*lines, *"????"]))


class Holder:
    """Who holds the node. Made before this process gives up its rights: the lock is not the job user's to open."""

    def __init__(self, request: Request) -> None:
        """Open the lock; a node without one has no holder."""
        self._job = request["job"]["id"]
        self._jobs = os.path.join(request["directory"], "jobs")
        self._lock = None
        with contextlib.suppress(OSError):
            self._lock = os.open(os.path.join(self._jobs, "lock"), os.O_RDWR | os.O_NOFOLLOW)

    def pid(self) -> int | None:
        """Return the id of the supervisor of the request's job, or None if none lives."""
        if self._lock is None:
            return None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            current = read_current(self._jobs)
            return int(current["pid"]) if current["id"] == self._job else None
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return None


def job_directory(request: Request) -> str:
    """Return the folder of the request's job."""
    return os.path.join(request["directory"], "jobs", request["job"]["id"])


def gate_path(request: Request) -> str:
    """Return the file whose appearance starts the request's prepared job; only the agent's own user can write it."""
    return job_directory(request) + ".start"


def bundle_path(request: Request) -> str:
    """Return where the request's bundle lies once this node has it."""
    return os.path.join(request["directory"], "bundles", request["bundle"])


@operation
def prepare(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Check that the job can start here, hold the node for it, and lay out its directory.

    Request: directory, user, job {id, user, start}, address (or None), master_port (on the head, else None), bundle
    (its SHA-256), size (bytes, unpacked), dry (look only). Reply: address, interface, python, job_dir, gate (the file
    whose appearance starts the job), and has_bundle: if not, a ``deliver`` must follow.
    """
    directory = request["directory"]
    python = os.path.join(directory, "env", "bin", "python")
    if not os.path.exists(python) or not os.path.isdir(os.path.join(directory, "jobs")):
        raise Refusal(
            f"was never set up: there is no {python if os.path.isdir(directory) else directory}; "
            "run: ansible-playbook setup.yml"
        )
    user = User(request["user"])
    address, interface = locate_address(request["address"])
    if request["master_port"]:
        check_port_range(request["master_port"])
        check_port_free(request["master_port"], user.uid)
    check_space(directory, 2 * request["size"] + 2**24)
    reply = {
        "address": address,
        "interface": interface,
        "python": os.path.join(os.path.realpath(os.path.join(directory, "env")), "bin", "python"),
        "job_dir": job_directory(request),
        "gate": gate_path(request),
        "has_bundle": os.path.exists(bundle_path(request)),
    }
    if request["dry"]:
        return reply, b""
    hold(request)
    try:
        os.mkdir(job_directory(request), 0o700)
        if os.geteuid() == 0:
            os.chown(job_directory(request), user.uid, user.gid)
        if reply["has_bundle"]:
            unpack(request, user)
        fork_supervisor(request, user)
    except BaseException:
        discard(request, b"")
        raise
    return reply, b""


@operation
def deliver(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Store the bundle, ``payload`` compressed, and unpack it into the prepared job. Request: as for ``prepare``."""
    import hashlib
    import zlib

    try:
        archive = b""
        with contextlib.suppress(zlib.error):  # what is damaged does not match either
            archive = zlib.decompress(payload)
        if hashlib.sha256(archive).hexdigest() != request["bundle"]:
            raise Refusal("received a bundle that does not match its SHA-256; run the playbook again")
        write_file(bundle_path(request), archive, 0o600, durable=True)
        unpack(request, User(request["user"]))
    except BaseException:
        discard(request, b"")
        raise
    return {}, b""


def unpack(request: Request, user: User) -> None:
    """Lay this job's own copy of the code into ``work/``. The bundle's format is in ``bundle.py``."""
    work = os.path.join(job_directory(request), "work")
    with open(bundle_path(request), "rb") as bundle, user.acting():
        os.mkdir(work, 0o700)
        made = {work}
        header = bundle.read(int(bundle.readline())).split(b"\0")
        for path, kind, value in zip(header[0::3], header[1::3], header[2::3]):
            target = os.path.join(work, os.fsdecode(path))
            if os.path.dirname(target) not in made:
                os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
                made.add(os.path.dirname(target))
            if kind == b"link":
                os.symlink(value, target)
                continue
            mode = 0o755 if kind == b"program" else 0o644
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(bundle.read(int(value)))
            os.utime(target, (BUNDLE_MTIME, BUNDLE_MTIME))


@operation
def discard(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Undo ``prepare`` for a job that never started here; returns when the node is free again."""
    import shutil

    holder, job_dir = Holder(request), job_directory(request)
    if not os.path.exists(os.path.join(job_dir, "state.json")):
        for path in (gate_path(request), gate_path(request) + ".part"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        shutil.rmtree(job_dir, ignore_errors=True)  # the supervisor sees it
        deadline = time.monotonic() + 2
        while holder.pid() not in (None, os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.01)
    return {}, b""


# -------------------------------------------------------------------------------------------------------------- running


def unit_name(request: Request) -> str:
    """Return the name of the request's job as a systemd unit."""
    return f"thunderhead-{request['job']['id']}.scope"


def fork_supervisor(request: Request, user: User) -> None:
    """Leave a process behind that outlives the connection and waits to be told to start the job."""
    with user.acting():
        log = os.open(os.path.join(job_directory(request), "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            supervise(request, user)
        except BaseException:
            import traceback

            traceback.print_exc()  # into the job's log
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(log)
    write_current(request, pid)
    if os.geteuid() == 0 and has_systemd():
        adopt(unit_name(request), pid)


def adopt(unit: str, pid: int) -> None:
    """Have systemd put a process into a unit of its own: its control group holds all of a job, so a stop ends it all.

    A scope, which takes a process that runs already; systemd-run would start one more interpreter per node.
    """
    properties = [
        *("PIDs", "au", "1", str(pid)),
        *("KillMode", "s", "control-group"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("TasksMax", "t", str(2**64 - 1)),  # data loader workers
    ]
    systemd = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    method = ["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "4", *properties, "0"]
    code, said = run_command(["busctl", "--quiet", "call", *systemd, *method])
    if code:
        raise Refusal(f"could not make the job's unit {unit}: {said}")


def run_command(command: list[str]) -> tuple[int, str]:
    """Run a command and return its exit code and output; to import subprocess takes as long as all else here."""
    reader, writer = os.pipe()
    pid = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
    )
    os.close(writer)
    with open(reader, errors="replace") as output:
        said = output.read().strip()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def wait_at_gate(request: Request) -> bool:
    """Wait until the job is started (True), or discarded or forgotten (False)."""
    deadline = time.monotonic() + GATE_SECONDS
    while not os.path.exists(gate_path(request)):
        if not os.path.isdir(job_directory(request)):
            return False
        if time.monotonic() > deadline:
            import shutil

            shutil.rmtree(job_directory(request), ignore_errors=True)
            return False
        time.sleep(0.01)
    return True


def descendants(ancestor: int) -> list[int]:
    """Return the ids of all processes below one."""
    children: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(pid))
    found: list[int] = []
    queue = [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def marked(job_dir: str) -> list[int]:
    """Return the ids of the processes whose environment says that they are the job's, as well as this user may see."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if b"JOB_DIR=" + os.fsencode(job_dir) in file.read().split(b"\0"):
                found.append(int(pid))
    return found


def signal_processes(pids: list[int], number: int) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # a setuid child is not ours to end
            os.kill(pid, number)


def supervise(request: Request, user: User) -> None:
    """Be the parent of the job's processes: start the script when told, wait, leave none behind, say how it ended.

    The gate file holds fields that end with a null byte: the seconds of grace, the text of node.env, how many words the
    command has, these, and the environment variables as NAME=value.
    """
    import ctypes
    import resource
    import signal

    job_dir = job_directory(request)
    if not wait_at_gate(request):
        return
    with open(gate_path(request), "rb") as gate:
        grace, text, count, *words = gate.read().split(b"\0")[:-1]
    os.unlink(gate_path(request))
    # Orphans of the job become children of this process (PR_SET_CHILD_SUBREAPER), so none escapes the final sweep.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    # NCCL pins memory, a full mesh has many sockets; where that is not ours to raise, the limits stay as they are.
    for limit, value in ((resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY), (resource.RLIMIT_NOFILE, 1048576)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    unit = unit_name(request) if os.geteuid() == 0 and has_systemd() else None
    user.become()
    os.umask(0o022)
    state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "started": time.time()}
    stopping: list[float] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(time.monotonic()))
    try:
        if unit:
            await_unit(unit)
        os.chdir(os.path.join(job_dir, "work"))
        write_file(os.path.join(job_dir, "node.env"), text, 0o600)
        argv, variables = words[: int(count)], words[int(count) :]
        # Python ignores these two signals; a script expects the default.
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        script = os.posix_spawn(argv[0], argv, job_environment(user, argv[0], variables), setsigdef=defaults)
    except (OSError, Refusal) as error:
        save_state(
            job_dir, {**state, "state": "failed", "ended": time.time(), "error": f"did not start: {said(error)}"}
        )
        return
    save_state(job_dir, state)
    status = see_out(script, stopping, float(grace))
    sweep()
    code = os.waitstatus_to_exitcode(status)
    state["state"] = "stopped" if stopping else "succeeded" if code == 0 else "failed"
    state["exit_code"], state["signal"] = (code, None) if code >= 0 else (128 - code, -code)
    save_state(job_dir, {**state, "ended": time.time()})


def await_unit(unit: str) -> None:
    """Return when this process is in its unit: systemd takes it there some time after it was asked to."""
    deadline = time.monotonic() + 5
    while True:
        with open("/proc/self/cgroup") as file:
            if unit in file.read():
                return
        if time.monotonic() > deadline:
            raise Refusal(f"systemd did not put the job into its unit {unit} within 5 s")
        time.sleep(0.005)


def job_environment(user: User, python: bytes, variables: list[bytes]) -> dict[bytes, bytes]:
    """Return all that a job's environment holds: nothing of the login's or the agent's own comes along."""
    environment = {
        b"HOME": os.fsencode(user.home),
        b"USER": user.name.encode(),
        b"LOGNAME": user.name.encode(),
        b"SHELL": b"/bin/sh",
        b"LANG": b"C.UTF-8",
        b"PATH": os.path.dirname(python) + b":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"PYTHONUNBUFFERED": b"1",
    }
    for variable in variables:
        name, _equals, value = variable.partition(b"=")
        environment[name] = value
    return environment


def save_state(job_dir: str, state: dict[str, Any]) -> None:
    """Write state.json. Padded, so that the last word fits into the first one's place when the disk is full."""
    import json

    data = json.dumps(state).ljust(1000).encode() + b"\n"
    path = os.path.join(job_dir, "state.json")
    try:
        write_file(path, data, 0o600, durable="ended" in state)
    except OSError:
        with open(path, "r+b") as file:
            file.write(data)


def see_out(script: int, stopping: list[float], grace_seconds: float) -> int:
    """Wait for the process ``script`` and return its status; once ``stopping`` has a moment: TERM, the grace, KILL."""
    import signal

    told = False
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of the job too
        if pid == script:
            return status
        if stopping and not told:
            told = True
            signal_processes(descendants(os.getpid()), signal.SIGTERM)
        elif stopping and time.monotonic() - stopping[0] > grace_seconds:
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
        if not pid:
            time.sleep(POLL_SECONDS)


def sweep() -> None:
    """End what the script left behind: TERM, a second to comply, KILL."""
    import signal

    began = time.monotonic()
    signal_processes(descendants(os.getpid()), signal.SIGTERM)
    while time.monotonic() < began + 5:  # a setuid child may stay; the unit's control group holds it
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if time.monotonic() > began + 1:
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
        if not pid:
            time.sleep(0.01)


# ----------------------------------------------------------------------------------------------- following and stopping


def as_owner(request: Request) -> str:
    """Become the owner of the job's directory, for good: what a job wrote is read with the job's own rights."""
    import pwd

    job_dir = job_directory(request)
    try:
        owner = os.lstat(job_dir).st_uid
    except OSError:
        raise Refusal(f"has no job {request['job']['id']}") from None
    if os.geteuid() == 0 and owner:
        User(pwd.getpwuid(owner).pw_name).become()
    return job_dir


def job_state(job_dir: str, holder: Holder) -> dict[str, Any]:
    """Return the job's state; a job whose supervisor ended without its last word is ``lost``."""
    alive = holder.pid() is not None  # before the file: a supervisor writes its last word, then lets go of the lock
    state = read_json(os.path.join(job_dir, "state.json")) or {"state": "prepared"}
    if state["state"] in GOING_ON and not alive:
        state["state"] = "lost"
    return state


@operation
def follow(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Wait for news of the job.

    Request: offset (bytes of the log already known), wait_seconds, linger_seconds (after the first news, to gather
    more), max_bytes, quiet (log growth alone is no news until ``max_bytes`` have gathered). Reply: the job's state and
    the new offset; payload: the log from the old offset on.
    """
    holder, job_dir = Holder(request), as_owner(request)
    offset, most = request["offset"], request["max_bytes"]
    enough = most if request["quiet"] else 1
    deadline = time.monotonic() + request["wait_seconds"]
    with open(os.path.join(job_dir, "log"), "rb") as log:
        while True:
            state = job_state(job_dir, holder)
            size = os.fstat(log.fileno()).st_size - offset
            left = deadline - time.monotonic()
            if state["state"] not in GOING_ON or size >= most or left <= 0:
                break
            if size >= enough:
                deadline, enough = min(deadline, time.monotonic() + request["linger_seconds"]), most
                continue
            time.sleep(min(POLL_SECONDS, max(left, 0)))
        log.seek(offset)
        data = log.read(most)
        state["more"] = os.fstat(log.fileno()).st_size > offset + len(data)
    return {**state, "offset": offset + len(data)}, data


@operation
def stop(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """End the job: TERM to all its processes, a grace, KILL. Request: grace_seconds. Reply: the job's state."""
    import signal

    holder, job_dir = Holder(request), job_directory(request)
    supervisor = holder.pid()
    if supervisor:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)  # it tells all the others, and waits for them
        deadline = time.monotonic() + request["grace_seconds"] + 3
        while holder.pid() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if holder.pid():
            signal_processes([*descendants(supervisor), supervisor], signal.SIGKILL)
    if os.geteuid() == 0 and has_systemd():
        run_command(["systemctl", "kill", "--signal=KILL", unit_name(request)])  # what outlived its supervisor
    elif not holder.pid():
        signal_processes(marked(job_dir), signal.SIGKILL)
    as_owner(request)
    return job_state(job_dir, holder), b""


# ----------------------------------------------------------------------------------------------------------- collecting


@operation
def artifacts(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List what the job wrote into ``work/``: reply files ``[[path, bytes]]``, sorted, without links and caches."""
    work = os.path.join(as_owner(request), "work")
    found: list[tuple[str, int]] = []
    for folder, folders, files in os.walk(work):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                entry = os.lstat(path)
                if (entry.st_mode & 0o170000) == 0o100000 and int(entry.st_mtime) != BUNDLE_MTIME:
                    found.append((os.path.relpath(path, work), entry.st_size))
    return {"files": sorted(found)}, b""


@operation
def read(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Read parts ``[[path, offset, length]]`` of files in ``work/``. Reply: lengths, as read; payload: the parts."""
    work = os.path.join(as_owner(request), "work")
    lengths, data = [], []
    for path, offset, length in request["parts"]:
        block = b""
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(work, path), os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                file.seek(offset)
                block = file.read(length)
        lengths.append(len(block))
        data.append(block)
    return {"lengths": lengths}, b"".join(data)


# ----------------------------------------------------------------------------------------------------------------- main


def said(error: Exception) -> str:
    """Return an exception's words without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {os.fsdecode(error.filename)}" if error.filename else error.strerror
    return str(error)


def answer(request: Request) -> None:
    """Do what is asked and write the reply."""
    payload = b""
    try:
        reply, payload = OPERATIONS[request["op"]](request, sys.stdin.buffer.read())
        reply["ok"] = True
    except Refusal as refusal:
        reply = {"ok": False, "refusal": str(refusal)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        sentence = disk_full(request["directory"], said(error)) if full else f"failed at {request['op']}: {said(error)}"
        reply = {"ok": False, "refusal": sentence}
    text = ascii(reply).encode()
    sys.stdout.buffer.write(b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text)
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()
