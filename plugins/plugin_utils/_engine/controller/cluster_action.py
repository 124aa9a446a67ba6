# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run an action once for all hosts: check its arguments, call the engine, return the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import settings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller import extra_vars
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import (
    Interrupted,
    Interrupts,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, Stopped
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

Arguments = Mapping[str, dict[str, Any]]
"""An argument spec."""

OPTIONS: Arguments = {"options": {"type": "dict", "default": {}}}
"""The argument of every action that a playbook has options for, described in plugins/doc_fragments."""


def display(text: str) -> None:
    """Show text; what nodes have put into it does not act upon the terminal."""
    Display().display(escape_lines(text))


class ClusterAction(ActionBase):
    """Runs once for all hosts of the play; see the module of the action's name for arguments and results."""

    BYPASS_HOST_LOOP = True
    _supports_check_mode = True
    _supports_async = False

    ARGUMENTS: ClassVar[Arguments] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments, and have ``act`` do the rest."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        options = self._task.args.pop("options", {})
        if not isinstance(options, dict):
            raise AnsibleActionFail("options has to be a mapping of arguments' names to their values")
        self._task.args.update(options)  # a new mapping would be shown whole, with secrets, where a value is wrong
        for name, now in extra_vars.RENAMED.items():
            if name in self._task.args and now in self.ARGUMENTS:
                raise AnsibleActionFail(f"{name} is called {now}, because Ansible reserves {name}; write {now}")
        _validation, arguments = self.validate_argument_spec(dict(self.ARGUMENTS))
        try:
            self._require_meant(load_extra_vars(self._loader))
            return {**result, **self.act(arguments, Inventory(self, task_vars or {}))}
        except (JobError, NodeError) as error:
            not_shown = escape_lines(getattr(error, "not_shown", ""))
            more = {"not_shown": not_shown} if not_shown else {}
            raise AnsibleActionFail(escape_lines(str(error)), result=more) from None  # a cause is shown too, as it is

    def _require_meant(self, given: Mapping[str, Any]) -> None:
        """Check what was given with ``-e``; the playbook is only read if its task does not read all of that."""
        read = extra_vars.options_of(str(self._task.get_ds())) | settings.SPEC.keys()
        others: set[str] = set()
        if not given.keys() <= read:
            own, others = extra_vars.variables_beside(self._task.get_path().rpartition(":")[0])
            read |= own
        extra_vars.require_meant(given, read, others)

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return the result.

        Raises:
            JobError, NodeError: what the user is told if it cannot be done.
        """
        raise NotImplementedError


class FollowingAction(ClusterAction):
    """One that follows a job, and may be interrupted."""

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Have ``follow`` do it; a job that was stopped ends ansible-playbook as Ctrl-C does."""
        interrupts = Interrupts()
        say = interrupts.printer(Display().display)
        try:
            return self.follow(arguments, inventory, interrupts, say)
        except Stopped as stopped:
            if not interrupts.came:
                say(escape_lines(str(stopped)))
                interrupts.interrupt_playbook()
            return {"failed": True, "msg": escape_lines(str(stopped))}
        except Interrupted:
            return {"failed": True, "msg": "interrupted"}

    def follow(
        self, arguments: dict[str, Any], inventory: Inventory, interrupts: Interrupts, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return the result; raise as ``act`` does, and Stopped or Interrupted besides."""
        raise NotImplementedError
