# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.node_env_info``: what each node has of all that the role node_env makes."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.environment import as_environment, as_text, variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.every_node import EveryNodeAction
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory


class ActionModule(EveryNodeAction):
    """See the module of its name for arguments and results."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "directory": {"type": "str", "required": True},
        "parts": {"type": "list", "elements": "str", "required": True},
        "user": {"type": "str", "default": ""},
    }

    def request(self, host: str, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the agent is asked."""
        node, given = (inventory.value(host, f"node_env_{name}", {}) for name in ("node", "variables"))
        text = as_text(variables(node, as_environment(given, f"{host}: node_env_variables")))
        checksum = hashlib.sha256(text.encode()).hexdigest()
        return {"op": "node_env_info", "checksum": checksum, **arguments}
