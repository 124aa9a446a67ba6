# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job is ended: before it has started, or while it runs."""

from __future__ import annotations

import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    FAREWELL_SECONDS,
    POLL_SECONDS,
    Holder,
    as_owner,
    gate_path,
    held_as,
    job_directory,
    log_path,
    reason_path,
    started_path,
    write_file,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import (
    LEFTOVER_SECONDS,
    descendants,
    end_leftovers,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, operation, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


UNDO_SECONDS = 2
"""How long a supervisor may take to see that its job was discarded."""


@operation
def discard(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Undo ``prepare`` for a job that never started here; returns when the node is free again, or refuses."""
    pid = undo(request)
    if pid:
        raise Refusal(f"is still held for job {request['job']['id']}, by process {pid}")
    return {}, b""


def undo(request: Request) -> int | None:
    """Do what ``discard`` does; return the process that holds the node for the job in spite of it, or None."""
    import shutil

    holder, job_dir = Holder(request), job_directory(request)
    if os.path.exists(started_path(job_dir)):
        return None
    for path in (gate_path(request), gate_path(request) + ".part", log_path(job_dir)):
        with suppress(OSError):
            os.unlink(path)
    shutil.rmtree(job_dir, ignore_errors=True)  # the supervisor sees it
    deadline = time.monotonic() + UNDO_SECONDS
    while True:
        pid = holder.pid()
        if pid in (None, os.getpid()):
            return None
        if time.monotonic() > deadline:
            return pid
        time.sleep(0.01)


def take_back(request: Request) -> None:
    """Undo an earlier preparation of the same job for the same host, whose reply was lost on its way."""
    pid = Holder(request).pid()
    is_own = held_as(os.path.join(request["directory"], "jobs")) == request["host"]
    if pid and is_own and not os.path.exists(started_path(job_directory(request))):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)  # the supervisor, or an agent that is about to make it
        undo(request)


@operation
def stop(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """End the job: TERM to all its processes, a grace, KILL.

    Request: grace_seconds, because (why, for the record; "" for a stop on request). Reply: the job's state, and left:
    the ids of processes that could not be ended.
    """
    import signal

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.records import job_state

    holder, job_dir = Holder(request), job_directory(request)
    supervisor = holder.pid()
    if not supervisor and not os.path.isdir(job_dir):
        raise Refusal(f"has no job {request['job']['id']}", gone=True)
    signs = (started_path(job_dir), gate_path(request), os.path.join(job_dir, "state.json"))
    if not any(map(os.path.lexists, signs)):
        discard(request, b"")
        return {"state": "prepared", "left": end_leftovers(request)}, b""
    if supervisor:
        write_file(reason_path(job_dir), request["because"].encode(errors="replace"), 0o644)
        with suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)  # it tells all the others, and waits for them
        if not gone(holder, request["grace_seconds"] + FAREWELL_SECONDS):
            signal_processes([*descendants(supervisor), supervisor], signal.SIGKILL)
            gone(holder, LEFTOVER_SECONDS)  # until then the job would still count as running
    left = end_leftovers(request)
    with suppress(OSError):
        os.unlink(reason_path(job_dir))
    as_owner(request)
    return {**job_state(job_dir, holder), "left": left}, b""


def gone(holder: Holder, seconds: float) -> bool:
    """Wait for the end of a job's supervisor; return whether it has ended."""
    deadline = time.monotonic() + seconds
    while holder.pid() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return holder.pid() is None
