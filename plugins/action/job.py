# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job``: arguments in, engine, result out."""

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
    "script": {"type": "str", "default": ""},
    "args": {"type": "raw", "default": ""},
    "project_dir": {"type": "path", "required": True},
    "env": {"type": "raw", "default": {}},
    "logs": {"type": "str", "choices": ["head", "all", "none"], "default": "head"},
    "runs_dir": {"type": "path", "default": "runs"},
    "bundle_max_mb": {"type": "int", "default": 100},
    "node_timeout_seconds": {"type": "int", "default": 30},
    "stop_grace_seconds": {"type": "int", "default": 10},
}


def require_whole_words(stray: str) -> None:
    """Raise JobError for what Ansible dropped of ``-e "args=--max-epochs 3"``: there the 3 belongs to no variable."""
    if stray:
        raise JobError(
            f"-e was given {stray!r}, which belongs to no variable; quote a value with spaces once more, "
            'as in -e "args=\'--max-epochs 3\'", or give JSON: -e \'{"args": ["--max-epochs", "3"]}\''
        )


class ActionModule(ActionBase):
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the job; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENTS)
        order = runner.Order(
            script=arguments["script"],
            args=arguments["args"],
            project=Path(os.path.abspath(arguments["project_dir"])),
            env=arguments["env"],
            runs=Path(os.path.abspath(arguments["runs_dir"])),
            logs=arguments["logs"],
            bundle_max_mb=arguments["bundle_max_mb"],
            node_timeout_seconds=arguments["node_timeout_seconds"],
            grace_seconds=arguments["stop_grace_seconds"],
        )
        inventory = Inventory(self, task_vars or {})
        try:
            require_whole_words(inventory.stray_words)
            hosts = inventory.taking_part
            require_hosts(hosts)
            gang = runner.plan(order, inventory.settings(hosts), inventory.open_channel)
            if self._task.check_mode:
                topology = gang.prepare(dry=True)
                return {**result, "changed": True, "msg": f"would start {order.script} on {topology.world_size} nodes"}
            return {**result, "changed": True, **runner.run(order, gang, Display().display, inventory.open_channel)}
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
