# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_cleanup``: arguments in, engine, result out."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import housekeeping
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError, in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

ARGUMENTS: dict[str, dict[str, Any]] = {"keep": {"type": "int", "default": 10}}


class ActionModule(ActionBase):
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Clean every node; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENTS)
        inventory = Inventory(self, task_vars or {})
        dry = bool(self._task.check_mode)
        try:
            hosts = inventory.taking_part
            require_hosts(hosts)
            settings = inventory.settings(hosts)
            cleaned, errors = housekeeping.clean(settings, inventory.open_channel, arguments["keep"], dry)
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        said = housekeeping.summed_up(cleaned, dry)
        if errors:
            found = {"failed": True, "msg": str(in_one(errors.values(), f"On the other nodes: {said}."))}
        else:
            found = {"msg": said}
            for line in (said, *housekeeping.left_over(cleaned)):
                Display().display(line)
        return {**result, **found, "changed": housekeeping.removes(cleaned), "nodes": cleaned}
