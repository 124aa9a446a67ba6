# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up which environment each node should have, and whether it has it."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.every_node_action import (
    EveryNodeAction,
    require_absolute,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory


class ActionModule(EveryNodeAction):
    """See the module of its name for arguments and results."""

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "directory": {"type": "str", "required": True},
        "python": {"type": "str", "default": "python3"},
        "backend": {"type": "str", "default": "auto"},
        "digest": {"type": "str", "required": True},
        "tools": {"type": "str", "default": ""},
        "find_links": {"type": "list", "elements": "str", "default": []},
    }

    def request(self, host: str, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the agent is asked."""
        require_absolute(arguments["directory"])
        return {"op": "python_env_info", **arguments}
