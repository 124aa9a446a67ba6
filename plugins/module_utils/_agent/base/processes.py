# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find, signal and end the processes of a job."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import job_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import has_systemd, job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request

LEFTOVER_SECONDS = 5
"""How long a killed process may take to vanish."""


def how_it_ended(code: int) -> str:
    """Return "exited with code 1" or "was killed by SIGKILL"; negative codes are signals."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def run_command(command: list[str]) -> tuple[int, str]:
    """Run a command and return its exit code and what it wrote to both streams.

    Not by subprocess, which ``prepare`` does without: its import takes as long as that of all else here.
    """
    reader, writer = os.pipe()
    pid = os.posix_spawnp(  # pylint: disable=ansible-bad-function
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)],
    )
    os.close(writer)
    with open(reader, errors="replace") as output:
        text = output.read().strip()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def descendants(ancestor: int) -> list[int]:
    """Return the ids of all processes below one."""
    children: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(pid))
    found: list[int] = []
    queue = [ancestor]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def marked(job_dir: str) -> list[int]:
    """Return the ids of the processes that are the job's by their environment, as far as this user may read it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if b"JOB_DIR=" + os.fsencode(job_dir) in file.read().split(b"\0"):
                found.append(int(pid))
    return found


def signal_processes(pids: list[int], number: int) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):  # a setuid child is not ours to end
            os.kill(pid, number)


def end_leftovers(request: Request) -> list[int]:
    """End what outlived the supervisor of the request's job; return the ids of those that could not be ended."""
    unit = job_unit(request)
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while True:
        left = marked(job_directory(request))
        if unit:  # also those that threw their environment away
            run_command(["systemctl", "kill", "--signal=KILL", unit])
            _code, active = run_command(["systemctl", "show", "--property=ControlGroup", "--value", unit])
            left = sorted({*left, *members(active)}) if active else left
        signal_processes(left, signal.SIGKILL)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)


def members(group: str) -> list[int]:
    """Return the ids of the processes in a control group, given as systemd does; see cgroups(7)."""
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
        with suppress(OSError), open(f"{root}{group}/cgroup.procs") as file:
            return [int(pid) for pid in file.read().split()]
    return []


def end_of_session() -> str:
    """Return, as a sentence about the node, that a job ends with the connection here; "" if not. See logind.conf(5)."""
    if os.geteuid() == 0 or not has_systemd():
        return ""
    import pwd

    manager = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
    settings = []
    for name in ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers"):
        code, text = run_command(["busctl", "get-property", *manager, name])
        if code:  # logind does not run
            return ""
        settings.append([value.strip('"') for value in text.split()])
    (_boolean, kills), only, excluded = settings
    me = pwd.getpwuid(os.geteuid()).pw_name
    if kills != "true" or (only[2:] and me not in only[2:]) or me in excluded[2:]:
        return ""
    return (
        f"ends every process of {me} with its last SSH session, jobs too that run detached (systemd-logind has "
        f"KillUserProcesses=yes); have its administrator set KillExcludeUsers={me} in /etc/systemd/logind.conf, or let "
        "Ansible become root there (ansible_become), whose jobs have units of their own"
    )
