# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job_logs``: arguments in, engine, result out."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.action.job import ARGUMENTS as JOB_ARGUMENTS
from ansible_collections.thunderhead.cluster.plugins.action.job import as_order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted, Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

SHARED = ("logs", "collect", "on_interrupt", "keep", "runs_dir", "node_timeout_seconds", "stall_timeout_seconds")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "job": {"type": "str", "default": ""},
    "offset": {"type": "int"},
    **{name: JOB_ARGUMENTS[name] for name in (*SHARED, "rendezvous_timeout_seconds", "stop_grace_seconds")},
}


class ActionModule(ActionBase):
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Follow the job; see the module of the same name for arguments and results."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENTS)
        inventory = Inventory(self, task_vars or {})
        interrupts = Interrupts()
        say = interrupts.sayer(Display().display)
        try:
            require_hosts(inventory.cluster)
            hosts = inventory.cluster
            desk = runner.Desk(say, interrupts, inventory.settings(hosts), hosts, inventory.open_channel)
            followed = runner.follow_again(as_order(arguments), desk, arguments["job"], arguments["offset"])
            return {**result, "changed": False, **followed}
        except runner.Stopped as stopped:
            if not interrupts.came:
                say(str(stopped))
                interrupts.interrupt_playbook()
        except Interrupted:
            pass
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        return {**result, "failed": True, "msg": "interrupted"}
