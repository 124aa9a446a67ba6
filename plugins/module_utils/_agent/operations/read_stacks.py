# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read what the job's processes were doing when the gang last looked into them."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import stacks_path
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def read_stacks(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Return the stacks that this node's supervisor wrote down.

    Request: max_bytes. Payload: the stacks as text.
    """
    path = stacks_path(become_job_owner(request))
    try:
        with open(open_regular(path), "rb") as file:
            return {}, file.read(request["max_bytes"])
    except OSError as error:
        raise Refusal(f"has no stacks of the job: {error_text(error)}") from None
