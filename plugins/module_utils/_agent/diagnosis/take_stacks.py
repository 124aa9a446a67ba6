# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Take the stacks of a job's processes, by py-spy, and measure how much they work."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import descendants
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import Process

SPY_SECONDS = 5
"""How long the stacks of all processes may take; one takes 15 ms."""
SPY_ATTEMPTS = 5
"""A process that is not halted may change while it is read; of a very busy one, a tenth of the attempts fail."""
MOST_LISTED = 1000
"""The most processes that are read, oldest first."""
MOST_SPIED = 64
"""The most processes whose stacks are taken, oldest first."""
LONGEST_DUMP = 2**18
LONGEST_COMMAND = 200
LONGEST_RANK = len("LOCAL_RANK=123456789")
"""Bytes of a variable that names a local rank; in a longer one stands something else."""


@dataclass(frozen=True)
class Snapshot:
    """What the processes of a job are doing on this node.

    Attributes:
        processes: the oldest first.
        seconds: for how long their use of CPU and disk was measured.
        missing: where py-spy should have been, or "".
        text: the stacks of all as text, for a person; where there is none, what the kernel says.
    """

    processes: list[Process]
    seconds: float
    missing: str
    text: str


def take_snapshot(
    supervisor: int,
    directory: str,
    owner: User | None,
    seconds: float,
    wait: Callable[[float], None] = time.sleep,
) -> Snapshot:
    """Take the Python stacks of a job's processes, without halting one, and see how much they work meanwhile.

    Args:
        supervisor: the process below which they run.
        directory: the cluster directory, in which py-spy lies.
        owner: as whom they run; None if that is who this process runs as.
        seconds: how long to look at what they use; children that come or go meanwhile count at their parents.
        wait: waits for so many seconds.
    """
    began = time.monotonic()
    with acting(owner):  # where it lacks CAP_SYS_PTRACE, root sees less of a user's processes than the user
        found = [one for one in map(read_process, descendants(supervisor)) if one]
        before = used(descendants(supervisor))
    found.sort(key=lambda one: (one.pop("start"), one["pid"]))
    del found[MOST_LISTED:]
    spy = os.path.realpath(os.path.join(directory, "tools", "env", "bin", "py-spy"))
    missing = "" if os.path.isfile(spy) else spy
    pids = [one["pid"] for one in found if one["python"]]
    taken = {} if missing else take_stacks(pids[:MOST_SPIED], spy, owner)
    for one in found:
        is_taken, text = taken.get(one["pid"], (False, b""))
        if not is_taken:
            with acting(owner):
                text += kernels_view(one["pid"])
        rank = "" if one["local_rank"] is None else f", local rank {one['local_rank']}"
        head = f"==== process {one['pid']}{rank}, state {one['state']}: {one.pop('command')}"
        one["text"] = "\n".join([printable(head.encode(errors="replace")), *map(printable, text.split(b"\n")), ""])
    wait(max(0, began + seconds - time.monotonic()))
    with acting(owner):
        after = used(descendants(supervisor))
    add_work(found, before, after)
    processes = [Process(**one) for one in found]
    return Snapshot(processes, time.monotonic() - began, missing, "\n".join(one.text for one in processes))


def used(pids: list[int]) -> dict[int, tuple[int, float, int]]:
    """Return of processes their parent, the CPU time (seconds) and the bytes read and written so far; see proc(5).

    Those of children that have ended, and were waited for, count too.
    """
    found = {}
    for pid in pids:
        cpu, transferred, parent = 0.0, 0, 0
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            parent, cpu = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        with suppress(OSError), open(f"/proc/{pid}/io", "rb") as file:
            counters = dict(line.split(b": ") for line in file.read().splitlines())
            transferred = sum(int(counters[name]) for name in (b"rchar", b"wchar", b"read_bytes"))
        found[pid] = (parent, cpu, transferred)
    return found


def add_work(
    found: list[dict[str, Any]],
    before: dict[int, tuple[int, float, int]],
    after: dict[int, tuple[int, float, int]],
) -> None:
    """Note at each process what it has used between two looks; a process that came meanwhile counts at its parent."""
    known = {one["pid"]: one for one in found}
    for one in found:
        one["cpu"], one["io"] = 0.0, 0
    for pid, (parent, cpu, transferred) in after.items():
        _parent, cpu_before, transferred_before = before.get(pid, (0, 0.0, 0))
        while pid not in known and parent in after:
            pid, parent = parent, after[parent][0]
        if pid in known:
            known[pid]["cpu"] += max(0.0, cpu - cpu_before)
            known[pid]["io"] += max(0, transferred - transferred_before)


def acting(user: User | None) -> contextlib.AbstractContextManager[None]:
    """Act as ``user``, or as the account that this agent has."""
    return user.acting() if user else contextlib.nullcontext()


def read_process(pid: int) -> dict[str, Any] | None:
    """Return what /proc has about a process, or None if it has ended; see proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = os.fsdecode(file.read(4096)).split("\0")
    except OSError:
        return None
    program, rank = arguments[0], None
    with suppress(OSError):
        program = os.readlink(f"/proc/{pid}/exe")
    with suppress(OSError, ValueError), open(f"/proc/{pid}/environ", "rb") as file:
        for variable in file.read().split(b"\0"):
            if variable.startswith(b"LOCAL_RANK=") and variable[11:].isdigit() and len(variable) < LONGEST_RANK:
                rank = int(variable[11:])
    if fields[0] == b"Z":
        return None
    return {
        "pid": pid,
        "parent": int(fields[1]),
        "start": int(fields[19]),
        "command": " ".join(arguments).strip()[:LONGEST_COMMAND],
        "local_rank": rank,
        "state": fields[0].decode(),
        "python": any(os.path.basename(name).startswith("python") for name in (program, arguments[0])),
    }


def take_stacks(pids: list[int], spy: str, owner: User | None) -> dict[int, tuple[bool, bytes]]:
    """Run py-spy on each process at once; return by process whether that succeeded, and its output.

    As this agent's user first: root may look at all, unless in a container without CAP_SYS_PTRACE. Else as the owner,
    who may look at what is his own, unless Yama's ptrace_scope forbids it.
    """
    deadline = time.monotonic() + SPY_SECONDS
    taken: dict[int, tuple[bool, bytes]] = {}
    if owner is None or is_roots(spy):
        taken = run_spy(pids, spy, None, deadline)
    failed = [pid for pid in pids if not taken.get(pid, (False, b""))[0]]
    if owner and failed:
        again = run_spy(failed, spy, owner, time.monotonic() + SPY_SECONDS)
        taken.update({pid: result for pid, result in again.items() if result[0] or pid not in taken})
    return taken


def is_roots(path: str) -> bool:
    """Return whether only root can have put the program there; ``path`` has no links in it."""
    while True:
        status = os.lstat(path)
        if status.st_uid != 0 or status.st_mode & 0o022:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def run_spy(pids: list[int], spy: str, user: User | None, deadline: float) -> dict[int, tuple[bool, bytes]]:
    """Run py-spy as ``user``, or as this agent's user, on each process until it succeeds or the time is over."""
    import subprocess

    # Without halting the process: a halted one stays so if py-spy is killed at the wrong moment.
    options = ["dump", "--nonblocking", "--full-filenames", "--pid"]
    account: dict[str, Any] = {}
    if user:
        account = {"user": user.uid, "group": user.gid, "extra_groups": os.getgrouplist(user.name, user.gid)}
    results: dict[int, tuple[bool, bytes]] = {}
    running: dict[int, tuple[subprocess.Popen[bytes], int]] = {}
    attempts = dict.fromkeys(pids, 0)

    def start(pid: int) -> None:
        attempts[pid] += 1
        output = os.memfd_create("stack")
        running[pid] = (
            subprocess.Popen(  # pylint: disable=ansible-bad-function
                [spy, *options, str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                **account,
            ),
            output,
        )

    def end(pid: int, ended: bool) -> bool:
        process, output = running.pop(pid)
        if not ended:
            process.kill()
        code = process.wait()
        text = os.pread(output, LONGEST_DUMP, 0)
        os.close(output)
        lines = [line.strip() for line in text.partition(b"Stack backtrace:")[0].split(b"\n") if line.strip()]
        why = b" ".join(lines) if ended else b"it took too long"
        results[pid] = (code == 0, text if code == 0 else b"py-spy: %b\n" % why[:500])
        return code == 0 or b"ermission" in text or b"not permitted" in text

    try:
        for pid in pids:
            start(pid)
        while running and time.monotonic() < deadline:
            for pid, (process, _output) in list(running.items()):
                if process.poll() is not None and not end(pid, True) and attempts[pid] < SPY_ATTEMPTS:
                    start(pid)
            time.sleep(0.005)
    except OSError as error:  # it cannot be run at all
        results = {pid: (False, f"{spy}: {error_text(error)}\n".encode()) for pid in pids}
    for pid in list(running):
        end(pid, False)
    return results


def kernels_view(pid: int) -> bytes:
    """Return the kernel's stack of a process, where there is no better one."""
    text = b""
    with suppress(OSError), open(f"/proc/{pid}/wchan", "rb") as file:
        place = file.read()
        text += b"Waits in the kernel at: %b\n" % (place if place not in (b"", b"0") else b"(not known)")
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        wanted = (b"State", b"Threads", b"VmRSS", b"voluntary_ctxt_switches")
        text += b"".join(line for line in file if line.split(b":")[0] in wanted)
    return text
