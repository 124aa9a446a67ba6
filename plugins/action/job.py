# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.job``: arguments in, engine, result out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils import runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import (
    ATTENDING,
    OPTIONS,
    Arguments,
    AttendingAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import PROJECT_FILES, Order, split_patterns
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight import brief
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import counted


class ActionModule(AttendingAction):
    """Runs a job."""

    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "script": {"type": "str", "default": ""},
        "module": {"type": "str", "default": ""},
        "script_args": {"type": "raw", "default": ""},
        "project_dir": {"type": "path"},
        **PROJECT_FILES,
        "env": {"type": "raw", "default": {}},
        "launcher": {"type": "str", "choices": ["auto", "lightning", "torchrun", "python"]},
        "devices": {"type": "str", "default": ""},
        "gang": {"type": "bool"},
        "resume": {"type": "str", "default": ""},
        "checkpoint": {"type": "str", "default": ""},
        "rerun": {"type": "str", "default": ""},
        "detach": {"type": "bool", "default": False},
        "wait": {"type": "int", "default": 0},
        "skip": {"type": "list", "elements": "str", "default": []},
        **brief.OPTIONS,
        **ATTENDING,
    }

    def attend(
        self, arguments: dict[str, Any], inventory: Inventory, interrupts: Interrupts, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Run it to its end, or only say what would be started."""
        hosts = inventory.taking_part
        require_hosts(hosts)
        if arguments["skip"]:
            from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight import examine

            examine.require_known(arguments["skip"])
        order = as_order(arguments)
        cluster = inventory.settings(inventory.cluster if order.resume else hosts)
        desk = Desk(say, interrupts, cluster, hosts, inventory.open_channel, inventory.cluster)
        if self._task.check_mode:
            world_size = runner.check(order, desk)
            msg = f"would start {order.module or order.script} on {counted(world_size, 'node')}"
            say(msg)
            return {"changed": True, "msg": msg}
        return {"changed": True, **runner.run(order, desk)}


def as_order(arguments: dict[str, Any]) -> Order:
    """Return the order in the arguments of an action; those it does not have get their defaults."""
    given: dict[str, Any] = {name: about.get("default") for name, about in ActionModule.ARGUMENTS.items()} | arguments
    return Order(
        script=given["script"],
        module=given["module"],
        args=given["script_args"],
        project=Path(os.path.abspath(given["project_dir"])) if given["project_dir"] else None,
        env=given["env"],
        runs=Path(os.path.abspath(given["runs_dir"])),
        logs=given["logs"],
        launcher=given["launcher"] or "",
        devices=given["devices"],
        resume=given["resume"],
        checkpoint=given["checkpoint"],
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
        preflight={name: given[name] for name in brief.DEFAULTS},
        gang=given["gang"],
        include=split_patterns(given["include"]),
        project_files=given["project_files"],
    )
