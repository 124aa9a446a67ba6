# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The one process that stays: it starts the script, waits for its end, and leaves none behind."""

from __future__ import annotations

import contextlib
import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    POLL_SECONDS,
    gate_path,
    job_directory,
    unit_name,
    write_file,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import User, has_systemd
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import descendants, signal_processes
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, said

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from typing import Any

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Request

GATE_SECONDS = 300
"""A prepared job that nobody starts or discards is given up after this long: its controller has vanished."""


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
