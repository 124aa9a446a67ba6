# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_logs``: arguments in, engine, result out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.action.job import as_order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import (
    ATTENDING,
    OPTIONS,
    Arguments,
    AttendingAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.reattach import follow_again
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts


class ActionModule(AttendingAction):
    """Follows a job again."""

    _supports_check_mode = False
    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "job": {"type": "str", "default": ""},
        "offset": {"type": "int"},
        **ATTENDING,
    }

    def attend(
        self, arguments: dict[str, Any], inventory: Inventory, interrupts: Interrupts, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Follow it to its end."""
        require_hosts(inventory.cluster)
        cluster = inventory.settings(inventory.cluster)
        desk = Desk(say, interrupts, cluster, inventory.taking_part, inventory.open_channel)
        followed = follow_again(as_order(arguments), desk, arguments["job"], arguments["offset"])
        return {"changed": False, **followed}
