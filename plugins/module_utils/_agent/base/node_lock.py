# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Lock the node for a job, and return which job holds the lock."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_json, write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import GOING_ON, Request

EXIT_SECONDS = 8
"""How long a supervisor may run on after its job has ended on all nodes, or is stopped: it tells the others."""
MOST_STATE_BYTES = 8192
"""Of a state.json, which its job can write: a supervisor's has half of that."""
POLL_SECONDS = 0.05
"""How often a process that waits checks again."""


def lock_node(request: Request) -> dict[str, str] | None:
    """Hold the node for the request's job as long as this process or a fork of it lives, or refuse.

    The kernel lets go of the lock when its holder ends, however it ends: there is no stale one. Returned is the job
    that held the node last, if its supervisor wrote no end: after a crash, or when the machine went down.
    """
    jobs = os.path.join(request["directory"], "jobs")
    lock = os.open(os.path.join(jobs, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            job = read_holder(jobs)
            state = read_state(jobs, job["id"])
            # A LockHolder has it for a moment only; a supervisor whose job has ended tells the other nodes first.
            if time.monotonic() - began > (EXIT_SECONDS if "ended" in state else 0.2):
                if job["id"] == request["job"]["id"]:
                    raise Refusal(
                        f"shares the cluster_dir {request['directory']} with another host of the inventory (the same "
                        "machine, or a disk that they share); give each its own"
                    ) from None
                raise in_use_refusal(job, state) from None
            time.sleep(0.01)
    last = read_holder(jobs)
    write_holder(request, os.getpid())
    return last if read_state(jobs, last["id"]).get("state") in GOING_ON else None


def in_use_refusal(job: dict[str, str], state: dict[str, object]) -> Refusal:
    """Return the refusal of a node that another job holds; ``state`` is as ``read_state`` returns it."""
    return Refusal(
        "{does} job {id}, which {user} started at {start}, and a node runs one job at a time; wait for it "
        "with -e wait=SECONDS, end it with: ansible-playbook stop.yml -e job={id}, or leave the node out "
        "with --limit".format(does="runs" if state and "ended" not in state else "is held for", **job),
        busy={**job, "prepared": not state},
    )


def require_unlocked(directory: str) -> None:
    """Refuse a node that another job holds, as ``lock_node`` does, and hold nothing."""
    jobs = os.path.join(directory, "jobs")
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        job = read_holder(jobs)
        state = read_state(jobs, job["id"])
        if LockHolder({"directory": directory, "job": job}).pid() is None:
            return
        if "ended" not in state or time.monotonic() > deadline:
            raise in_use_refusal(job, state)
        time.sleep(POLL_SECONDS)


def read_state(jobs: str, job: str) -> dict[str, object]:
    """Return what a job's state.json says, believed or not; empty for a job not started yet."""
    return read_json(os.path.join(jobs, job, "state.json"), MOST_STATE_BYTES) or {}


def write_holder(request: Request, pid: int) -> None:
    """Write down the holder: the job's id, user and start, the process, its start and the host, a line each."""
    job = request["job"]
    text = f"{job['id']}\n{job['user']}\n{job['start']}\n{pid}\n{process_start_time(pid)}\n{request['host']}\n"
    write_file(os.path.join(request["directory"], "jobs", "current"), text.encode(), 0o644)


def process_start_time(pid: int | str) -> str:
    """Return when a process was started, in the kernel's ticks since the boot: with its id, no other process has it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def read_holder(jobs: str) -> dict[str, str]:
    """Return id, user, start, pid and process_start as ``write_holder`` wrote them."""
    return dict(zip(("id", "user", "start", "pid", "process_start"), [*read_holder_lines(jobs), *"?????"]))


def held_host(jobs: str) -> str:
    """Return this node's name in the inventory of the job that holds it; "" if that is not known."""
    return "".join(read_holder_lines(jobs)[5:6])


def read_holder_lines(jobs: str) -> list[str]:
    """Return the lines that ``write_holder`` wrote."""
    with suppress(FileNotFoundError), open(os.path.join(jobs, "current"), encoding="utf-8", errors="replace") as file:
        return file.read().split("\n")
    return []


class LockHolder:
    """The process that holds the node. Made before this process becomes the job's user, who may not open the lock."""

    def __init__(self, request: Request) -> None:
        """Open the lock; a node without one has no holder."""
        self._job = request["job"]["id"]
        self._jobs = os.path.join(request["directory"], "jobs")
        self._lock = None
        with suppress(FileNotFoundError):  # what else goes wrong does not say that there is none
            self._lock = os.open(os.path.join(self._jobs, "lock"), os.O_RDWR | os.O_NOFOLLOW)

    def pid(self) -> int | None:
        """Return the id of the supervisor of the request's job, or None if none lives."""
        if self._lock is None:
            return None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            current = read_holder(self._jobs)
            # A process that takes the lock writes that down a moment later: until then the file names the one before.
            own = current["id"] == self._job and current["process_start"] == process_start_time(current["pid"])
            return int(current["pid"]) if own else None
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return None


def running_job(directory: str) -> dict[str, str] | None:
    """Return id, user and start of the job that holds the node, or None; nothing of that is the job's to change."""
    current = read_holder(os.path.join(directory, "jobs"))
    if LockHolder({"directory": directory, "job": current}).pid() is None:
        return None
    return {name: current[name] for name in ("id", "user", "start")}
