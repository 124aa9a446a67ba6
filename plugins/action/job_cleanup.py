# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_cleanup``: arguments in, engine, result out."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils import housekeeping
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
    display,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts


class ActionModule(ClusterAction):
    """Cleans every node."""

    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "keep": {"type": "int", "default": 10},
        "all_users": {"type": "bool", "default": False},
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Remove what is old, or only say what would be."""
        hosts = inventory.taking_part
        require_hosts(hosts)
        dry = bool(self._task.check_mode)
        owner = None if arguments["all_users"] else who()
        cleaned, errors = housekeeping.clean(
            inventory.settings(hosts), inventory.open_channel, arguments["keep"], owner, dry
        )
        said = housekeeping.summed_up(cleaned, dry)
        if errors:
            found = {"failed": True, "msg": str(in_one(errors.values(), f"On the other nodes: {said}."))}
        else:
            found = {"msg": said}
            for line in (said, *housekeeping.left_over(cleaned)):
                display(line)
        return {**found, "changed": housekeeping.removes(cleaned), "nodes": cleaned}
