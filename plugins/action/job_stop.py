# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_stop``: arguments in, engine, result out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

ARGUMENTS: dict[str, dict[str, Any]] = {
    "job": {"type": "str", "default": ""},
    "runs_dir": {"type": "path", "default": "runs"},
    "stop_grace_seconds": {"type": "int", "default": 10},
}


class ActionModule(ActionBase):
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Stop the job; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENTS)
        inventory = Inventory(self, task_vars or {})
        try:
            require_hosts(inventory.cluster)
            cluster = inventory.settings(inventory.cluster)
            runs = Path(os.path.abspath(arguments["runs_dir"]))
            stopped = runner.stop(
                *(Display().display, cluster, inventory.open_channel),
                *(arguments["job"], runs, arguments["stop_grace_seconds"]),
            )
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        changed = stopped.pop("was_running")
        ended = "was stopped" if changed else "had ended already"
        count = len(stopped["states"])
        msg = f"job {stopped['job']} {ended} on {count} node{'s' if count > 1 else ''}, and no process of it is left"
        Display().display(msg)
        return {**result, "changed": changed, "msg": msg, **stopped}
