# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Jobs on this machine: their folders, their state, and which of them holds the node."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import owner_of
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from typing import Any, BinaryIO

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import User
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Request

GOING_ON = ("prepared", "running")
"""The states of a job that has not ended."""
BUNDLE_MTIME = 946684800
"""Modification time, seconds since 1970, of every file that came with the code: what differs was written by the job."""
FAREWELL_SECONDS = 5
"""How long a supervisor may live on after its job has ended here: it tells the others."""
MOST_JSON_BYTES = 2**22
"""Of a file that a job may have written; one of ours is smaller, with thousands of ranks in it too."""
POLL_SECONDS = 0.05
"""How often a process that waits looks again."""


def unit_name(request: Request) -> str:
    """Return the name of the request's job as a systemd unit."""
    return f"thunderhead-{request['job']['id']}.scope"


def job_directory(request: Request) -> str:
    """Return the folder of the request's job."""
    return os.path.join(request["directory"], "jobs", request["job"]["id"])


def gate_path(request: Request) -> str:
    """Return the file whose appearance starts the request's prepared job; only the agent's own user can write it."""
    return job_directory(request) + ".start"


def reason_path(job_dir: str) -> str:
    """Return the file beside a job's folder that says why it was stopped: written as root, read by its supervisor."""
    return job_dir + ".because"


def started_path(job_dir: str) -> str:
    """Return the file beside a job's folder that says who started it; unlike what is in it, not the job's own."""
    return job_dir + ".started"


def started_by(job_dir: str) -> str | None:
    """Return who started a job, "" if that is not known; None for one that was never started."""
    try:
        with open(started_path(job_dir), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def log_path(job_dir: str) -> str:
    """Return the second name of a job's log, out of the job's reach: whatever it does to the first, the log is there.

    A file system without such names has none, and neither has a job that an older Thunderhead has started.
    """
    return job_dir + ".log"


def bundle_path(request: Request) -> str:
    """Return where the request's bundle lies once this node has it."""
    return os.path.join(request["directory"], "bundles", request["bundle"])


def lay_out(bundle: BinaryIO, work: str, user: User) -> None:
    """Unpack code, whose format is in ``bundle.py``, into a new folder of a user's.

    Raises:
        Refusal: two of its files cannot be told apart there.
    """
    with user.acting():
        os.mkdir(work, 0o700)
        made = {work}
        header = bundle.read(int(bundle.readline())).split(b"\0")
        for path, kind, value in zip(header[0::3], header[1::3], header[2::3]):
            target = os.path.join(work, os.fsdecode(path))
            try:
                if os.path.dirname(target) not in made:
                    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
                    made.add(os.path.dirname(target))
                if kind == b"link":
                    os.symlink(value, target)
                    continue
                mode = 0o755 if kind == b"program" else 0o644
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise Refusal(
                    f"has a disk that does not tell {os.fsdecode(path)} of the project from another of its files, "
                    "whose name differs in case only; rename one, or set cluster_dir to a folder on another disk"
                ) from None
            with open(descriptor, "wb") as file:
                file.write(bundle.read(int(value)))
            os.utime(target, (BUNDLE_MTIME, BUNDLE_MTIME))


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
        with suppress(OSError):
            os.unlink(part)
        raise


def open_regular(path: str, folder: int | None = None, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file, neither following a link nor waiting for the other end of a pipe.

    Args:
        path: of the file.
        folder: descriptor of the folder that it is relative to.
        flags: as for ``os.open``.

    Raises:
        OSError: it cannot be opened, or is none.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if os.fstat(descriptor).st_mode & 0o170000 != 0o100000:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def open_own(path: str, beside: str = "") -> BinaryIO:
    """Open a file that a job's folder, which the job may write to, has from the start.

    What the job put there instead must not mislead or block us; another name of somebody else's file least of all, for
    this may be root.

    Args:
        path: of the file.
        beside: the job's folder, if the file does not lie in it but beside it, out of the job's reach.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    folder = os.stat(beside or os.path.dirname(path))
    if status.st_uid != folder.st_uid or (status.st_nlink > 1 and not beside):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not the job's own file", path)
    return open(descriptor, "rb")


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if there is none."""
    import json

    try:
        with open_own(path) as file:
            found = json.loads(file.read(MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def hold(request: Request) -> dict[str, str] | None:
    """Hold the node for the request's job as long as this process or a fork of it lives, or refuse.

    The kernel lets go of the lock when its holder ends, however it ends: there is no stale one. Returned is the job
    that held the node last, if it ended without a last word: by a crash, or with the machine.
    """
    jobs = os.path.join(request["directory"], "jobs")
    lock = os.open(os.path.join(jobs, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            job = read_current(jobs)
            state = peek_state(jobs, job["id"])
            # Whoever only looks (Holder) has it for a moment; a supervisor whose job has ended says good-bye.
            if time.monotonic() - began > (FAREWELL_SECONDS if b'"ended"' in state else 0.2):
                if job["id"] == request["job"]["id"]:
                    raise Refusal(
                        f"shares the cluster_dir {request['directory']} with another host of the inventory (the same "
                        "machine, or a disk that they share); give each its own"
                    ) from None
                raise in_use(job, state) from None
            time.sleep(0.01)
    last = read_current(jobs)
    write_current(request, os.getpid())
    return last if b'"state": "running"' in peek_state(jobs, last["id"]) else None


def in_use(job: dict[str, str], state: bytes) -> Refusal:
    """Return the words for a node that another job holds; ``state`` is as ``peek_state`` returns it."""
    return Refusal(
        "{does} job {id}, which {user} started at {start}, and a node runs one job at a time; wait for it "
        "with -e wait=SECONDS, end it with: ansible-playbook stop.yml -e job={id}, or leave the node out "
        "with --limit".format(does="runs" if state else "is held for", **job),
        busy={**job, "prepared": not state},
    )


def look_at_hold(directory: str) -> None:
    """Refuse a node that another job holds, as ``hold`` does, and hold nothing."""
    jobs = os.path.join(directory, "jobs")
    job = read_current(jobs)
    state = peek_state(jobs, job["id"])
    if b'"ended"' not in state and Holder({"directory": directory, "job": job}).pid() is not None:
        raise in_use(job, state)


def peek_state(jobs: str, job: str) -> bytes:
    """Return the text of a job's state.json, unread: json takes long to import. Empty for a job not started yet."""
    try:
        with open_own(os.path.join(jobs, job, "state.json")) as file:
            return file.read(4096)
    except OSError:
        return b""


def write_current(request: Request, pid: int) -> None:
    """Write down who holds the node: the job's id, user and start, the process, its birth and the host, a line each."""
    job = request["job"]
    text = f"{job['id']}\n{job['user']}\n{job['start']}\n{pid}\n{born(pid)}\n{request['host']}\n"
    write_file(os.path.join(request["directory"], "jobs", "current"), text.encode(), 0o644)


def born(pid: int | str) -> str:
    """Return when a process was started, in the kernel's ticks since the boot: with its id, no other process has it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def read_current(jobs: str) -> dict[str, str]:
    """Return id, user, start, pid and born as ``write_current`` wrote them."""
    return dict(zip(("id", "user", "start", "pid", "born"), [*read_lines(jobs), *"?????"]))


def held_as(jobs: str) -> str:
    """Return the inventory's name of this node, as the job that holds it has it; "" if that is not known."""
    return "".join(read_lines(jobs)[5:6])


def read_lines(jobs: str) -> list[str]:
    """Return the lines that ``write_current`` wrote."""
    with suppress(FileNotFoundError), open(os.path.join(jobs, "current"), encoding="utf-8", errors="replace") as file:
        return file.read().split("\n")
    return []


class Holder:
    """Who holds the node. Made before this process gives up its rights: the lock is not the job user's to open."""

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
            current = read_current(self._jobs)
            # Whoever takes the lock writes that down a moment later: until then it says who had it before.
            own = current["id"] == self._job and current["born"] == born(current["pid"])
            return int(current["pid"]) if own else None
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return None


def living_job(directory: str) -> dict[str, str] | None:
    """Return id, user and start of the job that holds the node, or None; nothing of that is the job's to change."""
    current = read_current(os.path.join(directory, "jobs"))
    if Holder({"directory": directory, "job": current}).pid() is None:
        return None
    return {name: current[name] for name in ("id", "user", "start")}


def as_owner(request: Request) -> str:
    """Become the owner of the job's directory, for good: what a job wrote is read with the job's own rights."""
    job_dir = job_directory(request)
    try:
        owner = owner_of(job_dir)
    except FileNotFoundError:
        raise Refusal(f"has no job {request['job']['id']}", gone=True) from None
    if owner:
        owner.become()
    return job_dir
