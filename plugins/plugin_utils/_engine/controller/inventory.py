# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the settings of a play's hosts from Ansible's variables, and open channels to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connect import (
    ConnectionSettings,
    play_context,
    untemplated_task,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import (
    ConnectionSlots,
    HostSlots,
)

GROUP = "cluster"


class Inventory:
    """What an action that talks to many hosts needs of Ansible."""

    def __init__(self, action: ActionBase, task_vars: Mapping[str, Any]) -> None:
        self._action = action
        self._task_vars = task_vars
        self._task = untemplated_task(action._task)
        # As Ansible's executor has it, for lookups of files.
        folders = [*self._task.get_search_path(), action._loader.get_basedir()]
        self._search_path = list(dict.fromkeys(folders))
        self._variables = functools.cache(self._read)
        self._settings = functools.cache(self._check)
        self._access = functools.cache(self._resolve)
        self._connection_slots = ConnectionSlots()

    @property
    def cluster(self) -> list[str]:
        """All hosts of group ``cluster``, in inventory order."""
        return list(self._task_vars["groups"].get(GROUP, []))

    @property
    def taking_part(self) -> list[str]:
        """The hosts of the play, in inventory order: of the group, those that ``--limit`` leaves."""
        chosen = set(self._task_vars["ansible_play_hosts_all"])
        return [host for host in self.cluster if host in chosen]

    @property
    def batch(self) -> list[str]:
        """The hosts of the play that its next task runs for."""
        return list(self._task_vars["ansible_play_batch"])

    def settings(self, hosts: Sequence[str]) -> list[NodeSettings]:
        """Read and check the inventory's variables of ``hosts``."""
        return [self._settings(host) for host in hosts]

    def nodes(self, hosts: Sequence[str]) -> NodeGroup:
        """Return ``hosts`` with their settings and the way to reach them."""
        return NodeGroup(self.settings(hosts), self.open_channel)

    def _check(self, host: str) -> NodeSettings:
        return NodeSettings.from_variables(host, self._variables(host), self._templar(host).template)

    def value(self, host: str, name: str, default: Any) -> Any:
        """Return a variable of one host."""
        return self._templar(host).template(self._variables(host).get(name, default))

    def variables(self, host: str) -> Mapping[str, Any]:
        """Return one host's variables, as they are written."""
        return self._variables(host)

    def resolve(self, host: str, name: str, others: Mapping[str, Any]) -> Any:
        """Return a variable that a host has, with ``others`` in its reach that the host's own come before."""
        variables = {**others, **self._variables(host)}
        return Templar(loader=self._action._loader, variables=variables).template(variables[name])

    def _templar(self, host: str) -> Templar:
        return Templar(loader=self._action._loader, variables=self._variables(host))

    def arguments(self, host: str) -> dict[str, Any]:
        """Return the task's arguments as they are for one host."""
        found: dict[str, Any] = self._templar(host).template(self._task.args)
        return found

    def open_channel(self, host: str) -> Channel:
        """Return a new channel to ``host``; nothing is sent yet."""
        return self._access(host).open()

    def _resolve(self, host: str) -> ConnectionSettings:
        return ConnectionSettings(
            *(host, self._variables(host)),
            task=self._task,
            play_context=play_context(),
            loader=self._action._loader,
            slots=HostSlots(self._connection_slots, self._settings(host).connections),
        )

    def _read(self, host: str) -> dict[str, Any]:
        """Return what an ordinary task of this play would have as that host's variables."""
        manager = self._task.get_variable_manager()
        variables: dict[str, Any] = manager.get_vars(
            play=self._task.get_play(),
            host=manager._inventory.get_host(host),
            task=self._task,
            _hosts=self._task_vars["ansible_play_batch"],
            _hosts_all=self._task_vars["ansible_play_hosts_all"],
        )
        variables["ansible_search_path"] = self._search_path
        return variables
