# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a job on all nodes and follow it to its end; run by run.yml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands import run
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    FollowingAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import RUN_OPTIONS, RunOptions


class ActionModule(FollowingAction):
    """Runs a job."""

    ARGUMENTS: ClassVar[Arguments] = {**OPTIONS, **RUN_OPTIONS}

    def follow(
        self, arguments: dict[str, Any], inventory: Inventory, interrupts: Interrupts, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Run it to its end, or only say what would be started."""
        hosts = inventory.taking_part
        require_hosts(hosts)
        if arguments["skip"]:  # else the start does not wait until the checks of a preflight are imported
            from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import run_checks

            arguments["skip"] = run_checks.names_to_skip(arguments["skip"])
        options = RunOptions.from_arguments(arguments)
        cluster = inventory.nodes(inventory.cluster if options.resume else hosts)
        context = CommandContext(say, interrupts, cluster, hosts, inventory.cluster)
        if self._task.check_mode:
            msg = run.check(options, context)
            say(msg)
            return {"changed": True, "msg": msg}
        return {"changed": True, **run.run(options, context)}
