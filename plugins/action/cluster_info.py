# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.cluster_info``: arguments in, engine, result out."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import survey
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

ARGUMENTS: dict[str, dict[str, Any]] = {}


class ActionModule(ActionBase):
    """Runs once for all hosts of the group."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Look at every node; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.validate_argument_spec(ARGUMENTS)
        inventory = Inventory(self, task_vars or {})
        try:
            require_hosts(inventory.cluster)
            settings = inventory.settings(inventory.cluster)
            found = survey.survey(settings, inventory.taking_part, inventory.open_channel)
            return {**result, "changed": False, **found}
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
