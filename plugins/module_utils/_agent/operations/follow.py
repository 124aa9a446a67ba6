# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Return a job's state and what its log has since the last time."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    log_path,
    stacks_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS, LockHolder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_gang_state import (
    read_gang_state,
    when_changed,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import job_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    GOING_ON,
    Reply,
    Request,
)

GANG_SECONDS = 1.0
"""How long news of the gang may wait for more of them; deadlines only come nearer."""
GATHER_SECONDS = 0.25
"""How often a ``follow`` that only gathers looks at the log and the state."""


def follow(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Wait for news of the job.

    Request: offset (bytes of the log already known), wait_seconds, linger_seconds (after the first news, to gather
    more), pace_seconds (from the request on, likewise), max_bytes, quiet (log growth alone is no news until
    ``max_bytes`` have gathered), gang_changed (of the gang's state that is known; 0: none). Reply: the job's state, the
    new offset, and, absent if there is nothing: trouble (what the job has done to its log, a verb phrase), has_stacks
    (there is something for ``read_stacks``), and from the gang's head gang, what ``read_gang_state`` returns, and
    gang_changed, when it wrote that, in nanoseconds. Payload: the log from the old offset on.
    """
    holder, job_dir = LockHolder(request), become_job_owner(request)
    descriptor, trouble = find_log(job_dir)
    offset, most = request["offset"], request["max_bytes"]
    enough = most if request["quiet"] else 1
    began = time.monotonic()
    deadline = began + request["wait_seconds"]
    with open(descriptor, "rb") as log:
        while True:
            state = job_state(job_dir, holder)
            size = os.fstat(log.fileno()).st_size - offset
            now = time.monotonic()
            if state["state"] not in GOING_ON or size >= most or now >= deadline:
                break
            if when_changed(job_dir) != request["gang_changed"]:
                deadline = min(deadline, began + GANG_SECONDS)
            if size >= enough:
                deadline = min(deadline, max(now + request["linger_seconds"], began + request["pace_seconds"]))
                enough = most
            # The first output is wanted at once; what follows, and an end, can wait for a moment.
            time.sleep(min(POLL_SECONDS if enough == 1 else GATHER_SECONDS, max(deadline - now, 0)))
        log.seek(offset)
        data = log.read(most)
        size = os.fstat(log.fileno()).st_size
        state["more"] = size > offset + len(data)
    if size < offset and not trouble:
        trouble = f"made its log shorter; its output is shown again once that is longer than {offset} bytes, as it was"
    more: Reply = {"trouble": trouble} if trouble else {}
    changed = when_changed(job_dir)
    gang = read_gang_state(job_dir) if changed else None
    if changed:
        more["gang_changed"] = changed
    if gang:
        more["gang"] = gang
    if os.path.lexists(stacks_path(job_dir)):
        more["has_stacks"] = True
    return {**state, "offset": offset + len(data), **more}, data


def find_log(job_dir: str) -> tuple[int, str]:
    """Return a descriptor of what is to be read as the log, and what the job has done to it, or ""."""
    path = os.path.join(job_dir, "log")
    kept = None
    with suppress(OSError):
        kept = open_regular(log_path(job_dir))
    try:
        named = open_regular(path)
        if kept is None or os.path.sameopenfile(named, kept):
            return named, ""
        why = f"Another file: {path}"
    except OSError as error:
        why = error_text(error)
    trouble = f"put something else in the place of its log ({why}); what it prints"
    if kept is None:
        return os.open(os.devnull, os.O_RDONLY), f"{trouble} is not shown"
    return kept, f"{trouble} is shown all the same"
