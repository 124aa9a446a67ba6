# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the role firewall needs to know of this machine."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import operation
from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall.node import look

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


@operation
def firewall_info(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Request: provider, sources, ports. Reply: see there."""
    return look(request["provider"], request["sources"], request["ports"]), b""
