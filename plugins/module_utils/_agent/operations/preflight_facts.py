# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up all that a job's success depends on here, for the preflight; change and judge nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.gpus import gpus
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import job_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import uid_of
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.machine import (
    locate_address,
    network_addresses,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.network_disks import (
    identity,
    network_disks,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_facts import (
    entries,
    packages,
    raise_limits,
    shared_memory,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import running_job
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import (
    check_port_free,
    check_port_range,
    free_port,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import end_of_session, marked
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.try_environment import try_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    LARGEST,
    Document,
    Reply,
    Request,
)

RESOLVE_SECONDS = 10
"""How long the resolver may take: one whose server does not answer takes minutes."""
SHOWN_VARIABLES = (
    *("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
)
"""Of node.env only these are reported: the others may be secrets."""


def preflight_facts(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Say what this node is. A fact that could not be come by is {"problem": a sentence without the node's name}.

    Request: directory, user, address (or None), master_port (on the head, else None), variables ("NAME=value" of the
    environment that jobs have besides), imports (program: the text that tries them; script: a path or ""; module: its
    name or ""; None if the environment is not to be tried), seconds (the most that trying it may take). Payload: the
    script's code, compressed as for ``receive_code``. Reply:

        clock        seconds since 1970 at the beginning and at the end
        machine      what two names of one machine have in common: machine id, boot, network
        folder       what two names of one folder have in common, also on two nodes that share a disk
        uid          of the account that jobs run as; None if it is not there
        session      what ends a job together with the connection; "" if nothing does
        network_disks  the file systems on a network that are mounted
        address      on the cluster's network, with its interface; or a problem
        addresses    [interface, address, whether it is a loopback] each
        free_port    an ephemeral port that is free, and not MASTER_PORT; 0 if there is none
        hostname     its own name, and in resolved the addresses that the name has here
        node_env     what SHOWN_VARIABLES are in node.env; None if that is not there
        master       the addresses that MASTER_ADDR of node.env has here
        master_port  None if it is free or was not asked for; else a problem, and by_job, whether our job has it
        job          id, user and start of the job that holds the node; None if none does
        packages     see node_facts.packages, and in locked what requirements.txt of setup said
        environment  see try_environment
        gpus         see base.gpus.gpus
        cpus         how many
        memory       bytes: total and free
        disk         of the file system of directory: bytes free, files free (None if it does not count them)
        shm          bytes of /dev/shm: size and free
        infiniband   whether there is an InfiniBand adapter
        limits       nofile and memlock (bytes) as a job has them; -1 is no limit
    """
    began = time.time()
    nofile = raise_limits()
    variables = _node_env(request["directory"])
    resolved = _resolve([_hostname(), (variables or {}).get("MASTER_ADDR", "")])
    job = running_job(request["directory"])
    reply = {
        "machine": _machine(),
        "folder": identity(os.path.realpath(request["directory"])),
        "uid": uid_of(request["user"]),
        "session": end_of_session(),
        "network_disks": network_disks(),
        "address": _address(request["address"]),
        "addresses": network_addresses(),
        "free_port": free_port(request["master_port"]),
        "hostname": _hostname(),
        "resolved": resolved[0],
        "node_env": variables,
        "master": resolved[1],
        "master_port": _master_port(request, job),
        "job": job,
        "packages": {**packages(request["directory"]), "locked": _locked(request["directory"])},
        "environment": {"failed": {}} if request["imports"] is None else try_environment(request, payload),
        "gpus": gpus(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "disk": _disk(request["directory"]),
        "shm": shared_memory(),
        "infiniband": bool(entries("/sys/class/infiniband")),
        "limits": {"nofile": nofile, "memlock": _memlock()},
    }
    return {**reply, "clock": (began, time.time())}, b""


def _read(path: str, most: int = 2**20) -> str:
    with suppress(OSError), open(path, errors="replace") as file:
        return file.read(most)
    return ""


def _machine() -> tuple[str, str, str]:
    """Containers on one machine share the boot, and may share the id; each has a network of its own."""
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    return _read("/etc/machine-id").strip(), boot, os.readlink("/proc/self/ns/net")


def _address(wanted: str | None) -> dict[str, str]:
    try:
        return dict(zip(("address", "interface"), locate_address(wanted)))
    except Refusal as refusal:
        return {"problem": str(refusal)}


def _hostname() -> str:
    return os.uname().nodename


def _resolve(names: list[str]) -> list[list[str]]:
    """Return each name's addresses, in the resolver's order; none for a name that has none, or not in time."""
    import socket
    import threading

    found: list[list[str]] = [[] for _name in names]

    def check_interrupt(number: int) -> None:
        with suppress(OSError):
            entries = socket.getaddrinfo(names[number], None, type=socket.SOCK_STREAM)
            found[number] = list(dict.fromkeys(str(entry[4][0]) for entry in entries))

    threads = [
        threading.Thread(target=check_interrupt, args=(at,), daemon=True) for at, name in enumerate(names) if name
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(found)


def _node_env(directory: str) -> dict[str, str] | None:
    import shlex

    text = _read(os.path.join(directory, "node.env"))
    if not text:
        return None
    try:
        pairs = [part.partition("=") for part in shlex.split(text, comments=True)]
    except ValueError:
        return {}
    return {name: value for name, _equals, value in pairs if name in SHOWN_VARIABLES}


def _master_port(request: Request, job: dict[str, str] | None) -> dict[str, Any] | None:
    port = request["master_port"]
    if not port:
        return None
    try:
        check_port_range(port)
        uid = uid_of(request["user"])
        check_port_free(port, -1 if uid is None else uid)  # an account that is not there yet is no root
    except Refusal as refusal:
        owners = marked(job_directory({**request, "job": job})) if job else []
        return {"problem": str(refusal), "by_job": any(f"(process {pid})" in str(refusal) for pid in owners)}
    return None


def _locked(directory: str) -> Document:
    return Document(_read(os.path.join(directory, "requirements.txt")))


def _memory() -> dict[str, int]:
    """Return the machine's memory, or its control group's where that is less."""
    lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    found = {name: int(lines[key].split()[0]) * 1024 for name, key in (("total", "MemTotal"), ("free", "MemAvailable"))}
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit() and int(limit) < found["total"]:
        statistics = dict(
            line.split(" ", 1) for line in _read("/sys/fs/cgroup/memory.stat").splitlines() if " " in line
        )
        # Files that were read once count as used, and make room for whatever needs it.
        free = int(limit) - int(used) + int(statistics.get("inactive_file", 0))
        return {"total": int(limit), "free": max(0, min(found["free"], free))}
    return found


def _disk(directory: str) -> dict[str, int | None]:
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    room = os.statvfs(directory)
    counts = room.f_files > 0 and room.f_favail <= LARGEST  # CephFS says 2**64 - 1: it does not
    return {"free": room.f_bavail * room.f_frsize, "files": room.f_favail if counts else None}


def _memlock() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
