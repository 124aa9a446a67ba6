# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.cluster_info``: arguments in, engine, result out."""

from __future__ import annotations

from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils import survey
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import ClusterAction
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts


class ActionModule(ClusterAction):
    """Looks at every node."""

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the hosts that take part look like."""
        require_hosts(inventory.cluster)
        settings = inventory.settings(inventory.cluster)
        return {"changed": False, **survey.survey(settings, inventory.taking_part, inventory.open_channel)}
