# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the actions of the roles have in common that only look: every node is asked at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError, in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown, shown_lines

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
        """Return what each host replies, as ``nodes``."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        inventory = Inventory(self, task_vars or {})
        try:
            requests = self._requests(inventory)
            nodes, errors = fan_out(
                {host: (inventory.open_channel(host), requests[host]) for host in requests},
                lambda asked: asked[0].call(asked[1])[0],
                TIMEOUT_SECONDS,
            )
            if errors:
                raise in_one(errors.values())
        except (JobError, NodeError) as error:
            raise AnsibleActionFail(shown_lines(str(error))) from None
        return {**result, "changed": False, "nodes": nodes}

    def _requests(self, inventory: Inventory) -> dict[str, dict[str, Any]]:
        """Return what is asked of each host; raise JobError with all hosts whose arguments cannot be used."""
        requests, errors = {}, []
        for host in inventory.batch:
            try:
                requests[host] = self.request(host, self._checked(inventory.arguments(host)), inventory)
            except (AnsibleError, JobError) as error:
                errors.append(JobError(f"{host}: {error}; correct it in the inventory"))
        if errors:
            raise in_one(errors)
        return requests

    def _checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return one host's arguments; raise JobError if they are not what ARGUMENTS says."""
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
        raise JobError(f"directory is {shown(directory) or 'empty'}, which is no absolute path")
