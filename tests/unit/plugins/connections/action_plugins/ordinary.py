# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ordinary task: writes down with what Ansible's executor would reach the task's host."""

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from settled import configured, settled


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        python = self._templar.template(variables.get("ansible_python_interpreter", configured()))
        found = settled(self._connection, python, self._play_context.executable)
        path = Path(self._task.args["folder"], f"{variables['inventory_hostname']}.json")
        path.write_text(json.dumps(found))
        return {"changed": False}
