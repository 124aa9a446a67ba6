# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_info``: arguments in, engine, result out."""

from __future__ import annotations

import json
import shutil
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import roster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

ARGUMENTS: dict[str, dict[str, Any]] = {
    "job": {"type": "str", "default": ""},
    "format": {"type": "str", "choices": ["table", "json", "none"], "default": "none"},
}


class ActionModule(ActionBase):
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look at all jobs; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENTS)
        inventory = Inventory(self, task_vars or {})
        try:
            require_hosts(inventory.cluster)
            settings = inventory.settings(inventory.cluster)
            views, errors = roster.look(settings, inventory.open_channel, only=arguments["job"] or None)
            if arguments["job"]:
                roster.choose(arguments["job"], views, errors)
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        data = roster.as_data(views, errors)
        if arguments["format"] == "table":
            Display().display(roster.as_table(views, errors, shutil.get_terminal_size((160, 24)).columns))
        elif arguments["format"] == "json":
            Display().display(json.dumps(data))
        return {**result, "changed": False, **data}
