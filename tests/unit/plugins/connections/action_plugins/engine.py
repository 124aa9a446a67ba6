# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's task: writes down with what it would reach each host of the play, from its run for the first of them."""

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from settled import settled


class ActionModule(ActionBase):
    BYPASS_HOST_LOOP = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        inventory = Inventory(self, task_vars or {})
        for host in inventory.taking_part:
            channel = inventory.open_channel(host)
            found = settled(channel._connection, channel._python, channel._executable)
            Path(self._task.args["folder"], f"{host}.json").write_text(json.dumps(found))
        return {"changed": False}
