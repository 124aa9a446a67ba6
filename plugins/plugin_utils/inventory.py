# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The hosts of a play, as Ansible's variables describe them: their settings and channels to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import Templar
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import Channel, open_channel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings

GROUP = "cluster"


class Inventory:
    """What an action that talks to many hosts needs of Ansible."""

    def __init__(self, action: ActionBase, task_vars: Mapping[str, Any]) -> None:
        self._action = action
        self._task_vars = task_vars
        self._variables = functools.cache(self._read)

    @property
    def cluster(self) -> list[str]:
        """All hosts of group ``cluster``, in inventory order."""
        return list(self._task_vars["groups"].get(GROUP, []))

    @property
    def taking_part(self) -> list[str]:
        """The hosts of the play, in inventory order: of the group, those that ``--limit`` leaves."""
        chosen = set(self._task_vars["ansible_play_hosts_all"])
        return [host for host in self.cluster if host in chosen]

    def settings(self, hosts: Sequence[str]) -> list[NodeSettings]:
        """Read and check what the inventory says about ``hosts``."""
        found = []
        for host in hosts:
            variables = self._variables(host)
            templar = Templar(loader=self._action._loader, variables=variables)
            found.append(NodeSettings.from_variables(host, variables, templar.template))
        return found

    def value(self, host: str, name: str, default: Any) -> Any:
        """Return a variable of one host."""
        variables = self._variables(host)
        return Templar(loader=self._action._loader, variables=variables).template(variables.get(name, default))

    def open_channel(self, host: str) -> Channel:
        """Return a new channel to ``host``; nothing is sent yet."""
        return open_channel(
            host,
            self._variables(host),
            task=self._action._task,
            play_context=self._action._play_context,
            loader=self._action._loader,
        )

    def _read(self, host: str) -> dict[str, Any]:
        variables: dict[str, Any] = self._task_vars["hostvars"].raw_get(host)
        return variables
