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
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted, Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts

ARGUMENTS: dict[str, dict[str, Any]] = {
    "script": {"type": "str", "default": ""},
    "args": {"type": "raw", "default": ""},
    "project_dir": {"type": "path"},
    "env": {"type": "raw", "default": {}},
    "launcher": {"type": "str", "choices": ["", "lightning", "torchrun"], "default": ""},
    "devices": {"type": "str", "default": ""},
    "resume": {"type": "str", "default": ""},
    "rerun": {"type": "str", "default": ""},
    "logs": {"type": "str", "choices": ["head", "all", "none"], "default": "head"},
    "collect": {"type": "str", "choices": ["head", "all", "none"], "default": "head"},
    "detach": {"type": "bool", "default": False},
    "on_interrupt": {"type": "str", "choices": ["detach", "stop"], "default": "detach"},
    "wait": {"type": "int", "default": 0},
    "keep": {"type": "int"},
    "runs_dir": {"type": "path", "default": "runs"},
    "bundle_max_mb": {"type": "int", "default": 100},
    "node_timeout_seconds": {"type": "int", "default": 30},
    "stall_timeout_seconds": {"type": "int", "default": 0},
    "rendezvous_timeout_seconds": {"type": "int", "default": 120},
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
        inventory = Inventory(self, task_vars or {})
        interrupts = Interrupts()
        say = interrupts.sayer(Display().display)
        try:
            require_whole_words(inventory.stray_words)
            require_hosts(inventory.taking_part)
            order = as_order(arguments)
            hosts = inventory.taking_part
            cluster = inventory.settings(inventory.cluster if order.resume else hosts)
            desk = runner.Desk(say, interrupts, cluster, hosts, inventory.open_channel)
            if self._task.check_mode:
                world_size = runner.check(order, desk)
                return {**result, "changed": True, "msg": f"would start {order.script} on {world_size} nodes"}
            return {**result, "changed": True, **runner.run(order, desk)}
        except runner.Stopped as stopped:
            if not interrupts.came:
                say(str(stopped))
                interrupts.interrupt_playbook()
        except Interrupted:
            pass
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(str(error)) from error
        return {**result, "failed": True, "msg": "interrupted"}


def as_order(arguments: dict[str, Any]) -> Order:
    """Return the order in the arguments of an action; those it does not have get their defaults."""
    given: dict[str, Any] = {name: about.get("default") for name, about in ARGUMENTS.items()} | arguments
    return Order(
        script=given["script"],
        args=given["args"],
        project=Path(os.path.abspath(given["project_dir"])) if given["project_dir"] else None,
        env=given["env"],
        runs=Path(os.path.abspath(given["runs_dir"])),
        logs=given["logs"],
        launcher=given["launcher"],
        devices=given["devices"],
        resume=given["resume"],
        rerun=given["rerun"],
        detach=given["detach"],
        on_interrupt=given["on_interrupt"],
        wait_seconds=given["wait"],
        collect=given["collect"],
        keep=given["keep"],
        bundle_max_mb=given["bundle_max_mb"],
        node_timeout_seconds=given["node_timeout_seconds"],
        stall_timeout_seconds=given["stall_timeout_seconds"],
        rendezvous_timeout_seconds=given["rendezvous_timeout_seconds"],
        grace_seconds=given["stop_grace_seconds"],
    )
