# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the requirements and resolve them into locks, once for all hosts."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements import check_resolution, locks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines


class ActionModule(ActionBase):
    """Runs once for all hosts of the play; see the module of its name for arguments and results."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "hosts": {"type": "list", "elements": "str", "required": True},
        "nodes": {"type": "dict", "default": {}},
    }

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read the requirements; resolve them if what the nodes are is known."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(dict(self.ARGUMENTS))
        inventory = Inventory(self, task_vars or {})
        try:
            wanted = {host: locks.Wanted.of(host, inventory.value) for host in arguments["hosts"]}
            plan = locks.Plan(wanted)
            if arguments["nodes"]:

                def there(workshop: Path, request: Mapping[str, Any]) -> dict[str, Any]:
                    return self._on_node(workshop, request, task_vars)

                is_dry = bool(self._task.check_mode)
                done = plan.resolve(arguments["nodes"], there if self._task.delegate_to != locks.HERE else None, is_dry)
                return {**result, **done}
            return {**result, "changed": False, **plan.read()}
        except JobError as error:
            raise AnsibleActionFail(escape_lines(str(error))) from None
        except (OSError, ValueError, tarfile.TarError) as error:
            raise AnsibleActionFail(escape_lines(locks.explained(error))) from None

    def _on_node(self, workshop: Path, request: Mapping[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Have the node that this task is delegated to resolve; bring the wheels home that it built.

        Raises:
            Failure: it could not.
        """
        with tempfile.TemporaryDirectory(prefix="thunderhead-") as folder:
            packed = Path(folder, "workshop.tar")
            with tarfile.open(packed, "w", dereference=True) as archive:
                archive.add(workshop, ".")
            place = f"{self._make_tmp_path()}/workshop.tar"
            self._transfer_file(str(packed), place)
            self._fixup_perms2((place,), execute=False)
            done = self._execute_module(
                "thunderhead.cluster.python_env_resolve",
                module_args={"archive": place, "request": json.dumps(dict(request))},
                task_vars=task_vars,
            )
        self._remove_tmp_path(self._connection._shell.tmpdir)
        if done.get("failed") or done.get("unreachable"):
            why = str(done.get("msg") or "it gave no answer")[: check_resolution.MOST_SHOWN]
            raise Failure(
                why, str(done.get("output", ""))[-check_resolution.MOST_SHOWN :], check_resolution.unmet(done)
            )
        resolution, contents = check_resolution.checked(done, request["targets"])
        (workshop / "wheels").mkdir(exist_ok=True)
        for name, content in contents.items():
            (workshop / "wheels" / name).write_bytes(content)
        return resolution
