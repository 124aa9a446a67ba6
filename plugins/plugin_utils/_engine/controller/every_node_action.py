# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask every node at once, for the actions of the roles that only look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

TIMEOUT_SECONDS = 60


class EveryNodeAction(ActionBase):
    """Has the agent of every host of the play look, with the arguments that the task has for that host.

    Each look of an ordinary module would take a quarter of a second of a node's CPU, most of it for Python to compile
    Ansible's own code, and 50 ms of this machine's.
    """

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    ARGUMENTS: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what each host replies, as ``nodes``, and why another did not reply, as ``errors``.

        Where an error on one host ends the play for all, and where there is one on each, they are raised together.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        inventory = Inventory(self, task_vars or {})
        requests, wrong = self._requests(inventory)
        nodes, failed = fan_out(requests, lambda asked: asked[0].call(asked[1])[0], TIMEOUT_SECONDS)
        failures = {**wrong, **failed}
        if failures and (self._task.any_errors_fatal or not nodes):
            raise AnsibleActionFail(escape_lines(str(join_errors(failures.values()))))
        errors = {host: escape_lines(str(error)) for host, error in failures.items()}
        return {**result, "changed": False, "nodes": nodes, "errors": errors}

    def _requests(self, inventory: Inventory) -> tuple[dict[str, tuple[Channel, dict[str, Any]]], dict[str, Exception]]:
        """Return whom to ask what, and of which hosts that cannot be made, each by host."""
        requests: dict[str, tuple[Channel, dict[str, Any]]] = {}
        errors: dict[str, Exception] = {}
        for host in inventory.batch:
            try:
                request = self.request(host, self._checked(inventory.arguments(host)), inventory)
                requests[host] = inventory.open_channel(host), request
            except NodeError as error:
                errors[host] = error
            except (AnsibleError, JobError) as error:
                errors[host] = JobError(f"{host}: {error}; correct it in the inventory")
        return requests, errors

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return one host's arguments; raise JobError if they do not fit ARGUMENTS."""
        validation = ArgumentSpecValidator(dict(self.ARGUMENTS)).validate(dict(arguments))
        if validation.error_messages:
            raise JobError(validation.errors.msg)
        checked: dict[str, Any] = validation.validated_parameters
        return checked

    def request(self, host: str, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the agent of one host is asked.

        Raises:
            JobError: what the user is told if the arguments cannot be used.
        """
        raise NotImplementedError


def require_absolute(directory: str) -> None:
    """Raise JobError for what would be another folder for each account, or none."""
    if not directory.startswith("/"):
        raise JobError(f"directory is {escape(directory) or 'empty'}, which is no absolute path")
