# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job is made ready: checks, the hold on the node, the code, and the process that waits to start it."""

from __future__ import annotations

import os
import sys
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.directory import require_ours
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    bundle_path,
    gate_path,
    hold,
    job_directory,
    lay_out,
    log_path,
    look_at_hold,
    unit_name,
    write_current,
    write_file,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import (
    User,
    check_port_free,
    check_port_range,
    check_space,
    count_gpus,
    has_systemd,
    locate_address,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import end_leftovers, run_command
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, operation, suppress
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.resources import (
    packages,
    place_at_setup,
    raise_limits,
    shared_memory,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.stopping import take_back, undo
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.supervising import supervise

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from _socket import socket as Socket

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


UNIT_SECONDS = 2
"""How long systemd may take to see that a unit has no process any more."""


@operation
def prepare(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Check that the job can start here, hold the node for it, and lay out its directory.

    Request: directory, user, job {id, user, start}, host (its name in the inventory: a hold for the same job and host
    is the request's own, whose reply was lost), address (or None), master_port (on the head, else None), watched (on
    the head of several nodes), bundle (its SHA-256), size (bytes, unpacked), dry (look only). Reply: address,
    interface, gpus, python, job_dir, gate (the file whose appearance starts the job), watch_port (0 if not asked for),
    clock, packages, node_env (of it what ``place_at_setup`` returns), shm and limits (nofile) as in ``facts``,
    stale (a job that held the node until it crashed; absent if none) and has_bundle: if not, a ``deliver`` must follow.
    """
    directory = request["directory"]
    python = os.path.join(directory, "env", "bin", "python")
    try:
        for path in (python, os.path.join(directory, "jobs", "")):
            os.stat(path)
    except PermissionError:
        raise Refusal(
            f"cannot be used by the account that Ansible works as there: {path} or a folder above it is closed to it; "
            "chmod it"
        ) from None
    except OSError:
        raise Refusal(
            f"is not set up: there is no {python if os.path.isdir(directory) else directory}; "
            "run: ansible-playbook setup.yml"
        ) from None
    require_ours(directory)
    user = User(request["user"])
    address, interface = locate_address(request["address"])
    if request["master_port"]:
        check_port_range(request["master_port"])
    check_space(directory, 2 * request["size"] + 2**24)
    reply = {
        "address": address,
        "interface": interface,
        "python": os.path.join(os.path.realpath(os.path.join(directory, "env")), "bin", "python"),
        "job_dir": job_directory(request),
        "gate": gate_path(request),
        "gpus": count_gpus(),
        "packages": packages(directory),
        "node_env": place_at_setup(directory),
        "shm": shared_memory(),
        "limits": {"nofile": raise_limits()},  # the supervisor inherits them
        "clock": (time.time(),) * 2,
        "has_bundle": False,
        "watch_port": 0,
    }
    if request["dry"]:
        look_at_hold(directory)
        check_master_port(request, user)
        return reply, b""
    take_back(request)
    stale = hold(request)
    try:
        if stale:
            reply["stale"] = stale
            end_leftovers({**request, "job": stale})
        check_master_port(request, user)  # now that no job of ours can have it
        os.mkdir(job_directory(request), 0o700)
        if os.geteuid() == 0:
            os.chown(job_directory(request), user.uid, user.gid)
        reply["has_bundle"] = os.path.exists(bundle_path(request))  # from now on nobody cleans it away
        if reply["has_bundle"]:
            unpack(request, user)
        listener = listen(address) if request["watched"] else None
        if listener:
            reply["watch_port"] = listener.getsockname()[1]
        fork_supervisor(request, user, listener)
    except BaseException:
        undo(request)
        raise
    return reply, b""


def check_master_port(request: Request, user: User) -> None:
    """Refuse to be the head where MASTER_PORT is taken."""
    if request["master_port"]:
        check_port_free(request["master_port"], user.uid)


def listen(address: str) -> Socket:
    """Return a socket at which the other nodes' supervisors find the head's, on a port of the system's choice."""
    import _socket

    listener = _socket.socket(_socket.AF_INET6 if ":" in address else _socket.AF_INET, _socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(1024)
    return listener


@operation
def receive(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Store a piece of a compressed bundle that is too large for one request, and have the prepared job wait on.

    Request: as for ``prepare``, packed (the SHA-256 of the whole as it is sent), offset (where the payload begins in
    it; None: only wait on). Reply: has (how many of its first bytes are here: what an earlier try has brought stays).
    """
    try:
        os.utime(job_directory(request))  # its supervisor would give up
    except FileNotFoundError:
        raise Refusal(f"is not prepared for job {request['job']['id']} any more") from None
    if request["offset"] is None:
        return {"has": 0}, b""
    with open(os.open(part_path(request), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        has = file.seek(0, os.SEEK_END)
        if has == request["offset"]:
            has += file.write(payload)
    return {"has": has}, b""


def part_path(request: Request) -> str:
    """Return where the pieces of the request's bundle lie: a name of digits, like all that is not finished there."""
    return f"{bundle_path(request)}.{int(request['packed'][:12], 16)}"


@operation
def deliver(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Store the bundle, ``payload`` compressed, and unpack it into the prepared job.

    Request: as for ``prepare``, packed (as for ``receive``, if that has brought the payload; else None).
    """
    import hashlib
    import zlib

    try:
        if request["packed"]:
            with open(part_path(request), "rb") as file:
                payload = file.read()
            os.unlink(part_path(request))
        archive = b""
        with suppress(zlib.error):  # what is damaged does not match either
            archive = zlib.decompress(payload)
        if hashlib.sha256(archive).hexdigest() != request["bundle"]:
            raise Refusal("received a bundle that does not match its SHA-256; run the playbook again")
        write_file(bundle_path(request), archive, 0o600, durable=True)
        unpack(request, User(request["user"]))
    except BaseException:
        undo(request)
        raise
    return {}, b""


def unpack(request: Request, user: User) -> None:
    """Lay this job's own copy of the code into ``work/``."""
    with open(bundle_path(request), "rb") as bundle:
        lay_out(bundle, os.path.join(job_directory(request), "work"), user)


def fork_supervisor(request: Request, user: User, listener: Socket | None) -> None:
    """Leave a process behind that outlives the connection and waits to be told to start the job."""
    with user.acting():
        path = os.path.join(job_directory(request), "log")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with suppress(OSError):
        os.link(path, log_path(job_directory(request)))
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            supervise(request, user, listener)
        except BaseException:
            import traceback

            traceback.print_exc()  # into the job's log
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(log)
    if os.geteuid() == 0 and has_systemd():
        adopt(unit_name(request), pid)
    # Until then this agent holds the node, and a second request ends it: it would undo what that one has made.
    write_current(request, pid)


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
    deadline = time.monotonic() + UNIT_SECONDS
    while True:
        code, said = run_command(["busctl", "--quiet", "call", *systemd, *method])
        if not code:
            return
        if "already" not in said or time.monotonic() > deadline:
            raise Refusal(f"could not make the job's unit {unit}: {said}")
        time.sleep(0.01)  # until that of an earlier preparation has gone
