# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow an earlier job again; run by logs.yml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.logs import follow_earlier_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    FollowingAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import (
    FOLLOW_OPTIONS,
    FollowOptions,
)


class ActionModule(FollowingAction):
    """Follows a job again."""

    _supports_check_mode = False
    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "job": {"type": "str", "default": ""},
        "offset": {"type": "int"},
        **FOLLOW_OPTIONS,
    }

    def follow(
        self, arguments: dict[str, Any], inventory: Inventory, interrupts: Interrupts, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Follow it to its end."""
        require_hosts(inventory.cluster)
        cluster = inventory.nodes(inventory.cluster)
        context = CommandContext(say, interrupts, cluster, inventory.taking_part)
        followed = follow_earlier_job(
            FollowOptions.from_arguments(arguments), context, arguments["job"], arguments["offset"]
        )
        return {"changed": False, **followed}
