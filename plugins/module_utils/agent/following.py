# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job is looked at while it runs."""

from __future__ import annotations

import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    GOING_ON,
    POLL_SECONDS,
    Holder,
    as_owner,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import operation
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.records import job_state

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


GATHER_SECONDS = 0.25
"""How often a ``follow`` that only gathers looks at the log and the state."""


@operation
def follow(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Wait for news of the job.

    Request: offset (bytes of the log already known), wait_seconds, linger_seconds (after the first news, to gather
    more), pace_seconds (from the request on, likewise), max_bytes, quiet (log growth alone is no news until
    ``max_bytes`` have gathered). Reply: the job's state and the new offset; payload: the log from the old offset on.
    """
    holder, job_dir = Holder(request), as_owner(request)
    offset, most = request["offset"], request["max_bytes"]
    enough = most if request["quiet"] else 1
    began = time.monotonic()
    deadline = began + request["wait_seconds"]
    with open(os.path.join(job_dir, "log"), "rb") as log:
        while True:
            state = job_state(job_dir, holder)
            size = os.fstat(log.fileno()).st_size - offset
            now = time.monotonic()
            if state["state"] not in GOING_ON or size >= most or now >= deadline:
                break
            if size >= enough:
                deadline = min(deadline, max(now + request["linger_seconds"], began + request["pace_seconds"]))
                enough = most
            # The first words are wanted at once; what follows them, and an end, can wait for a moment.
            time.sleep(min(POLL_SECONDS if enough == 1 else GATHER_SECONDS, max(deadline - now, 0)))
        log.seek(offset)
        data = log.read(most)
        state["more"] = os.fstat(log.fileno()).st_size > offset + len(data)
    return {**state, "offset": offset + len(data)}, data
