# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Return the nodes to which the head could not pass on the start message."""

from __future__ import annotations

import time

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS, LockHolder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_gang_state import read_unreached
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import job_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def find_unreached(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Wait until the head's supervisor has reached all others, or knows which it cannot reach.

    Request: wait_seconds. Reply: unreached, their ranks, as the head's supervisor wrote them down.
    """
    holder, job_dir = LockHolder(request), become_job_owner(request)
    deadline = time.monotonic() + request["wait_seconds"]
    while True:
        is_lost = job_state(job_dir, holder)["state"] == "lost"  # before the file: it may be written last of all
        ranks = read_unreached(job_dir)
        if ranks is not None:
            return {"unreached": ranks}, b""
        if is_lost:
            raise Refusal("lost the job's supervisor process before it had started the job on the other nodes")
        if time.monotonic() > deadline:
            raise Refusal(f"did not say within {request['wait_seconds']} s on which nodes it has started the job")
        time.sleep(POLL_SECONDS / 2)
