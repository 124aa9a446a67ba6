# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Release the node from a job that has not started."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.undo_prepare import undo_prepare
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def discard(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Undo ``prepare`` for a job that never started here; returns when the node is free again, or refuses."""
    pid = undo_prepare(request)
    if pid:
        raise Refusal(f"is still held for job {request['job']['id']}, by process {pid}")
    return {}, b""
