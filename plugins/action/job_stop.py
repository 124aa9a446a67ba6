# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a job on all its nodes; run by stop.yml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.stop import stop
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
    display,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import FOLLOW_OPTIONS


class ActionModule(ClusterAction):
    """Stops a job."""

    _supports_check_mode = False
    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "job": {"type": "str", "default": ""},
        **{name: FOLLOW_OPTIONS[name] for name in ("runs_dir", "stop_grace_seconds")},
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """End it on all its nodes."""
        require_hosts(inventory.cluster)
        cluster = inventory.nodes(inventory.cluster)
        runs = Path(os.path.abspath(arguments["runs_dir"]))
        stopped = stop(
            display, cluster, arguments["job"], runs, arguments["stop_grace_seconds"], hosts=inventory.taking_part
        )
        changed = stopped.pop("was_running")
        ended = "was stopped" if changed else "had ended already"
        nodes = pluralize(len(stopped["states"]), "node")
        msg = f"job {stopped['job']} {ended} on {nodes}, and no process of it is left"
        if set(stopped["states"].values()) == {"prepared"}:
            msg += "; it was never started"
        else:
            msg += f"; for its logs and artifacts: ansible-playbook logs.yml -e job={stopped['job']}"
        display(msg)
        return {"changed": changed, "msg": msg, **stopped}
