# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Action ``thunderhead.cluster.preflight``: arguments in, engine, result out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ansible.utils.color import ANSIBLE_COLOR
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.entry_point import find_entry, search_path
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.environment import as_environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.frameworks import fit
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import (
    EXAMPLE,
    PROJECT_FILES,
    count_devices,
    split_patterns,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight import examine, report
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.preflight.code import Code
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown


class ActionModule(ClusterAction):
    """Looks at everything that a job depends on."""

    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "script": {"type": "str", "default": ""},
        "module": {"type": "str", "default": ""},
        "project_dir": {"type": "path"},
        "env": {"type": "raw", "default": {}},
        **PROJECT_FILES,
        "skip": {"type": "list", "elements": "str", "default": []},
        "format": {"type": "str", "choices": ["table", "json", "none"], "default": "none"},
        **examine.OPTIONS,
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Make the checks, show what they found, and fail if one did."""
        began = time.monotonic()
        skip = [name.strip() for name in arguments["skip"] if name.strip()]
        examine.require_known(skip)
        code = _code(arguments, inventory) if arguments["script"] or arguments["module"] else None
        for note in code.bundle.notes if code else ():
            Display().display(shown(note))

        def read() -> Sequence[NodeSettings]:
            require_hosts(inventory.taking_part)
            return inventory.settings(inventory.taking_part)

        verdicts = examine.examine(
            *(read, inventory.cluster, inventory.open_channel),
            {**arguments, "skip": skip, "devices": count_devices(arguments["devices"])},
            code,
        )
        seconds = time.monotonic() - began
        data = report.as_data(verdicts, seconds)
        if arguments["format"] == "table":
            # In this forked worker only Ansible itself knows whether there is a terminal.
            width = Display().columns if ANSIBLE_COLOR else None
            Display().display(report.as_table(verdicts, seconds, width))
        elif arguments["format"] == "json":
            Display().display(json.dumps(data))
        summary = report.summed_up(verdicts, seconds)
        if failed := report.failed(verdicts):
            return {"changed": False, "failed": True, "msg": f"{summary}: {', '.join(failed)}"}
        return {"changed": False, "msg": summary, **data}


def _code(arguments: dict[str, Any], inventory: Inventory) -> Code:
    """Return what a job would run with the same options."""
    project = Path(os.path.abspath(arguments["project_dir"])) if arguments["project_dir"] else EXAMPLE
    env = as_environment(arguments["env"], "env")
    module = arguments["module"]
    head = inventory.taking_part[:1]
    inherited = as_environment(inventory.value(head[0], "job_env", {}) if head else {}, "job_env")
    variables = {**inherited, **env}
    script = find_entry(project, arguments["script"], module, variables)
    include, everything = split_patterns(arguments["include"]), arguments["project_files"] == "all"
    bundle = make_bundle(project, script, arguments["bundle_max_mb"], include, everything)
    launcher = fit(project, script, search_path(project, script, module, variables), bundle.paths).launcher
    return Code(project, bundle, script, module, env, launcher)
