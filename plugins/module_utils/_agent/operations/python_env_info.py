# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up what the role python_env needs to know of this machine."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import probe


def python_env_info(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Request: see ``probe``. Reply: see there."""
    return probe(**{name: value for name, value in request.items() if name != "op"}), b""
