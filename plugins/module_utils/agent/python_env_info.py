# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the role python_env needs to know of this machine."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import operation
from ansible_collections.thunderhead.cluster.plugins.module_utils.python_env.node import probe

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


@operation
def python_env_info(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Request: see ``probe``. Reply: see there."""
    return probe(**{name: value for name, value in request.items() if name != "op"}), b""
