# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Undo ``prepare`` for a job that has not started."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    log_path,
    start_file_path,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import LockHolder, held_host
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request

UNDO_SECONDS = 2
"""How long a supervisor may take to see that its job was discarded."""


def undo_prepare(request: Request) -> int | None:
    """Do what ``discard`` does; return the process that holds the node for the job in spite of it, or None."""
    import shutil

    holder, job_dir = LockHolder(request), job_directory(request)
    if os.path.exists(started_path(job_dir)):
        return None
    for path in (start_file_path(request), start_file_path(request) + ".part", log_path(job_dir)):
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


def undo_earlier_try(request: Request) -> None:
    """Undo an earlier preparation of the same job for the same host, whose reply was lost on its way."""
    pid = LockHolder(request).pid()
    is_own = held_host(os.path.join(request["directory"], "jobs")) == request["host"]
    if pid and is_own and not os.path.exists(started_path(job_directory(request))):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)  # the supervisor, or an agent that is about to make it
        undo_prepare(request)
