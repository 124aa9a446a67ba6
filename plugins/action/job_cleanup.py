# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove old jobs from the nodes; run by clean.yml."""

from __future__ import annotations

from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
    display,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import cleanup


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
        cleaned, errors = cleanup.remove_old_jobs(inventory.nodes(hosts), arguments["keep"], owner, dry)
        summary = cleanup.summarize(cleaned, dry)
        if errors:
            found = {"failed": True, "msg": str(join_errors(errors.values(), f"On the other nodes: {summary}."))}
        else:
            found = {"msg": summary}
            for line in (summary, *cleanup.describe_leftovers(cleaned)):
                display(line)
        return {**found, "changed": cleanup.removed_anything(cleaned), "nodes": cleaned}
