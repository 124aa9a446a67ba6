# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up what each node has of what the role node_env makes."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    as_environment,
    variables,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.every_node_action import (
    EveryNodeAction,
    require_absolute,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


class ActionModule(EveryNodeAction):
    """See the module of its name for arguments and results."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "directory": {"type": "str", "required": True},
        "parts": {"type": "list", "elements": "str", "required": True},
        "user": {"type": "str", "default": ""},
    }

    def request(self, host: str, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the agent is asked."""
        require_absolute(arguments["directory"])
        node, given = (inventory.value(host, f"node_env_{name}", {}) for name in ("node", "variables"))
        try:
            text = environment_text(variables(node, as_environment(given, "node_env_variables")))
        except KeyError as missing:
            raise JobError(f"node_env_node has no {missing.args[0]}") from None
        return {"op": "node_env_info", "checksum": hashlib.sha256(text.encode()).hexdigest(), **arguments}
