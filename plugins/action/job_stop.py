# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_stop``: arguments in, engine, result out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import (
    ATTENDING,
    OPTIONS,
    Arguments,
    ClusterAction,
    display,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.stopping import stop
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import counted


class ActionModule(ClusterAction):
    """Stops a job."""

    _supports_check_mode = False
    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "job": {"type": "str", "default": ""},
        **{name: ATTENDING[name] for name in ("runs_dir", "stop_grace_seconds")},
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """End it on all its nodes."""
        require_hosts(inventory.cluster)
        cluster = inventory.settings(inventory.cluster)
        runs = Path(os.path.abspath(arguments["runs_dir"]))
        stopped = stop(
            *(display, cluster, inventory.open_channel),
            *(arguments["job"], runs, arguments["stop_grace_seconds"]),
            hosts=inventory.taking_part,
        )
        changed = stopped.pop("was_running")
        ended = "was stopped" if changed else "had ended already"
        nodes = counted(len(stopped["states"]), "node")
        msg = f"job {stopped['job']} {ended} on {nodes}, and no process of it is left"
        if set(stopped["states"].values()) == {"prepared"}:
            msg += "; it was never started"
        else:
            msg += f"; for its logs and artifacts: ansible-playbook logs.yml -e job={stopped['job']}"
        display(msg)
        return {"changed": changed, "msg": msg, **stopped}
