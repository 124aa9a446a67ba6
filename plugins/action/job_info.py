# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the jobs on the cluster; run by status.yml."""

from __future__ import annotations

import json
import shutil
from typing import Any, ClassVar

from ansible.utils.color import ANSIBLE_COLOR
from ansible.utils.display import Display
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    OPTIONS,
    Arguments,
    ClusterAction,
    display,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import listing, status_report


class ActionModule(ClusterAction):
    """Looks at all jobs."""

    ARGUMENTS: ClassVar[Arguments] = {
        **OPTIONS,
        "job": {"type": "str", "default": ""},
        "format": {"type": "str", "choices": ["table", "json", "none"], "default": "none"},
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the nodes say about their jobs, and show it."""
        require_hosts(inventory.cluster)
        cluster = inventory.nodes(inventory.cluster)
        views, errors = listing.list_jobs(cluster, only=arguments["job"] or None)
        if arguments["job"]:
            listing.choose_job(arguments["job"], views, errors)
        data = status_report.as_data(views, errors)
        if arguments["format"] == "table":
            if ANSIBLE_COLOR:  # in this forked worker only Ansible itself knows whether there is a terminal
                Display().display(status_report.as_table(views, errors, Display().columns, is_terminal=True))
            else:
                display(status_report.as_table(views, errors, shutil.get_terminal_size((160, 24)).columns))
        elif arguments["format"] == "json":
            display(json.dumps(data))
        return {"changed": False, **data}
