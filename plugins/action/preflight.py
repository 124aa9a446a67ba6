# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what would make a job fail; run by preflight.yml."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from ansible.utils.color import ANSIBLE_COLOR
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    as_environment,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import (
    PROJECT_OPTIONS,
    split_patterns,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.plan_job import count_devices, take_code
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import EXAMPLE
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import report, run_checks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import Code


class ActionModule(ClusterAction):
    """Looks at everything that a job depends on."""

    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        **PROJECT_OPTIONS,
        "skip": {"type": "list", "elements": "str", "default": []},
        "format": {"type": "str", "choices": ["table", "json", "none"], "default": "none"},
        **run_checks.OPTIONS,
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Make the checks, show what they found, and fail if one did."""
        began = time.monotonic()
        skip = run_checks.names_to_skip(arguments["skip"])
        code = _code(arguments, inventory) if arguments["script"] or arguments["module"] else None
        for note in code.bundle.notes if code else ():
            Display().display(escape(note))

        def read() -> NodeGroup:
            require_hosts(inventory.taking_part)
            return inventory.nodes(inventory.taking_part)

        options = {**arguments, "skip": skip, "devices": count_devices(arguments["devices"])}
        verdicts = run_checks.run_checks(read, inventory.cluster, options, code)
        seconds = time.monotonic() - began
        data = report.as_data(verdicts, seconds)
        if arguments["format"] == "table":
            # In this forked worker only Ansible itself knows whether there is a terminal.
            width = Display().columns if ANSIBLE_COLOR else None
            Display().display(report.as_table(verdicts, seconds, width))
        elif arguments["format"] == "json":
            Display().display(json.dumps(data))
        summary = report.summarize(verdicts, seconds)
        if failed := report.failed(verdicts):
            msg = f"{summary}: {', '.join(failed)}"
            not_shown = {"not_shown": f"failed: {', '.join(failed)}"} if arguments["format"] == "table" else {}
            return {"changed": False, "failed": True, "msg": msg, **not_shown}
        return {"changed": False, "msg": summary, **data}


def _code(arguments: dict[str, Any], inventory: Inventory) -> Code:
    """Return what a job would run with the same options."""
    project = Path(os.path.abspath(arguments["project_dir"])) if arguments["project_dir"] else EXAMPLE
    env = as_environment(arguments["env"], "env")
    module = arguments["module"]
    head = inventory.taking_part[:1]
    inherited = as_environment(inventory.value(head[0], "job_env", {}) if head else {}, "job_env")
    include, everything = split_patterns(arguments["include"]), arguments["project_files"] == "all"
    variables, max_mb = {**inherited, **env}, arguments["bundle_max_mb"]
    script, bundle, found = take_code(project, arguments["script"], module, variables, max_mb, include, everything)
    return Code(project, bundle, script, module, env, found.launcher)
