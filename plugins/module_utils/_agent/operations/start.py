# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Start a prepared job on a node that the head could not reach."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    start_file_path,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS, LockHolder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request

TAKE_SECONDS = 10
"""How long a supervisor may take to see the start message."""


def start(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Give the job's supervisor the start message, and wait until it has taken it.

    Payload: what the start file is to hold. A job that was started meanwhile stays as it is.
    """
    holder, path = LockHolder(request), started_path(job_directory(request))
    if not os.path.exists(path):
        write_file(start_file_path(request), payload, 0o600)
    deadline = time.monotonic() + TAKE_SECONDS
    try:
        while not os.path.exists(path):
            if holder.pid() is None:
                raise Refusal("lost the job's supervisor process before the start")
            if time.monotonic() > deadline:
                raise Refusal(f"did not start the job within {TAKE_SECONDS} s")
            time.sleep(POLL_SECONDS)
    finally:
        with suppress(FileNotFoundError):  # where its supervisor has not read it, it had the message from the head
            os.unlink(start_file_path(request))
    return {}, b""
