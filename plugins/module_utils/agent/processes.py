# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Processes of a job: finding them, telling them, ending them."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    pass


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
