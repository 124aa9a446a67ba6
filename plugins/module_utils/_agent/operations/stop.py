# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Stop a job on this node."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    reason_path,
    start_file_path,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import (
    EXIT_SECONDS,
    POLL_SECONDS,
    LockHolder,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import (
    LEFTOVER_SECONDS,
    descendants,
    end_leftovers,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import job_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.discard import discard


def stop(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """End the job: TERM to all its processes, a grace, KILL.

    Request: grace_seconds, because (why, for the record; "" for a stop on request). Reply: the job's state, and left:
    the ids of processes that could not be ended.
    """
    holder, job_dir = LockHolder(request), job_directory(request)
    supervisor = holder.pid()
    if not supervisor and not os.path.isdir(job_dir):
        raise Refusal(f"has no job {request['job']['id']}", gone=True)
    signs = (started_path(job_dir), start_file_path(request), os.path.join(job_dir, "state.json"))
    if not any(map(os.path.lexists, signs)):
        discard(request, b"")
        return {"state": "prepared", "left": end_leftovers(request)}, b""
    if supervisor:
        write_file(reason_path(job_dir), request["because"].encode(errors="replace"), 0o644)
        with suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)  # it tells all the others, and waits for them
        if not gone(holder, request["grace_seconds"] + EXIT_SECONDS):
            signal_processes([*descendants(supervisor), supervisor], signal.SIGKILL)
            gone(holder, LEFTOVER_SECONDS)  # until then the job would still count as running
    left = end_leftovers(request)
    with suppress(OSError):
        os.unlink(reason_path(job_dir))
    become_job_owner(request)
    return {**job_state(job_dir, holder), "left": left}, b""


def gone(holder: LockHolder, seconds: float) -> bool:
    """Wait for the end of a job's supervisor; return whether it has ended."""
    deadline = time.monotonic() + seconds
    while holder.pid() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return holder.pid() is None
