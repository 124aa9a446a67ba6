# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up what the role firewall needs to know of this machine."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.find_firewall import inspect_firewall


def firewall_info(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Request: provider, sources, ports. Reply: see there."""
    return inspect_firewall(request["provider"], request["sources"], request["ports"]), b""
