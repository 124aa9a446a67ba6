# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve a host's connection and become settings as Ansible does for a task, and open channels to it.

Ansible's executor does this for the one host that its task runs for; the engine's one task talks to all of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleError, AnsibleValueOmittedError
from ansible.executor.process import worker
from ansible.module_utils.common.sentinel import Sentinel
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import become_loader, connection_loader
from ansible.template import Templar
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import HostSlots

KEYWORDS = ("connection", "port", "remote_user", "become", "become_method", "become_user", "become_exe", "become_flags")
"""A task's keywords that plugins take options from; its ``timeout`` is another."""


class ConnectionSettings:
    """One host's settings, resolved once for all channels to it; nothing of another host is in them."""

    def __init__(
        self,
        host: str,
        variables: Mapping[str, Any],
        *,
        task: Task,
        play_context: PlayContext,
        loader: DataLoader,
        slots: HostSlots | None = None,
    ) -> None:
        """Resolve the settings; no host is reached.

        Args:
            host: inventory name.
            variables: all that an ordinary task would have for that host, not templated; only those asked for are.
            task: the task on whose behalf, not templated; its connection and become keywords count, and what it
                inherits.
            play_context: the play's, with the command line's settings and passwords, as no host has changed it.
            loader: Ansible's file loader.
            slots: where new connections to it wait for their turn.

        Raises:
            NodeError: a setting cannot be used.
        """
        self._host = host
        self._slots = slots
        self._variables = variables
        self._templar = Templar(loader=loader, variables=variables)
        self._resolved: dict[str, dict[str, Any]] = {}
        try:
            self._resolve(task, play_context, loader)
        except AnsibleError as error:
            raise self._unusable(error) from error

    def _resolve(self, task: Task, play_context: PlayContext, loader: DataLoader) -> None:
        own = task.copy(exclude_parent=True)
        own._parent, own.delegate_to = task._parent, None
        self._context = play_context.set_task_and_variable_override(own, self._variables, self._templar)
        self._context.post_validate(self._templar)
        self._context.remote_addr = self._context.remote_addr or self._host
        named = dict(self._variables)
        self._context.update_vars(named)
        keywords = Templar(loader=loader, variables=named)
        for name in KEYWORDS:
            value = own.post_validate_attribute(name, templar=keywords)
            if value is not Sentinel:
                setattr(own, name, value)
        self._keys = {name: getattr(own, name) for name in KEYWORDS}
        self._keys["timeout"] = self._context.timeout  # the task's own is for the task
        for name in ("password", "become_pass"):
            if getattr(self._context, name):
                self._keys[name] = getattr(self._context, name)
        self._transport = str(self._value("ansible_connection") or own.connection)
        become = self._value("ansible_become")
        self._becomes = boolean(become) if become is not None else own.become
        self._method = str(self._value("ansible_become_method") or own.become_method)
        self._environment: dict[str, Any] = {}
        for given in own.environment or []:
            self._environment.update(self._templar.template(given) or {})
        self._python = str(self._value("ansible_python_interpreter") or C.config.get_config_value("INTERPRETER_PYTHON"))

    def _value(self, name: str) -> Any:
        """Return one of the host's variables, or None if it has none of that name."""
        value = self._variables.get(name)
        return None if value is None else self._templar.template(value)

    def open(self) -> Channel:
        """Return a new channel; nothing is sent yet.

        Raises:
            NodeError: a plugin is not installed, or a setting cannot be used.
        """
        try:
            connection = connection_loader.get(
                self._transport, self._context, new_stdin=None, ansible_playbook_pid=str(os.getppid())
            )
            if connection is None:
                raise NodeError(self._host, f"has ansible_connection {self._transport}, which is not installed")
            become = become_loader.get(self._method) if self._becomes else None
            if self._becomes and become is None:
                raise NodeError(self._host, f"has ansible_become_method {self._method}, which is not installed")
            connection.set_become_plugin(become)
            for kind, plugin in (("connection", connection), ("shell", connection._shell), ("become", become)):
                if plugin is not None:
                    plugin.set_options(task_keys=self._keys, var_options=self._options(kind, plugin._load_name))
        except AnsibleError as error:
            raise self._unusable(error) from error
        python = self._python if not self._python.startswith("auto") else "python3"
        prefix = connection._shell.env_prefix(**self._environment) if self._environment else ""
        executable = str(self._context.executable or "/bin/sh")
        return Channel(self._host, connection, python, executable, self._slots, prefix)

    def _options(self, kind: str, name: str) -> dict[str, Any]:
        """Return those of the host's variables that a plugin asks for."""
        if kind not in self._resolved:
            found: dict[str, Any] = {}
            for variable in C.config.get_plugin_vars(kind, name):
                if variable in self._variables:
                    with contextlib.suppress(AnsibleValueOmittedError):
                        found[variable] = self._templar.template(self._variables[variable])
            # Else a local sudo that asks for a password gets a terminal as standard input, and the agent no request.
            self._resolved[kind] = {**found, "ansible_pipelining": True}
        return self._resolved[kind]

    def _unusable(self, error: AnsibleError) -> NodeError:
        return NodeError(self._host, f"has connection settings that cannot be used: {error}")


def play_context() -> PlayContext:
    """Return the context of the play whose task this process executes, as the command line made it.

    An action's own is the one of the host that its task runs for, with that host's user, port and passwords.
    """
    return worker.current_worker._play_context


def untemplated_task(task: Task) -> Task:
    """Return a copy of an action's task, as its playbook has it: the action's is templated for the host it runs for."""
    return Task.load(
        task.get_ds(),
        block=task._parent,
        role=task._role,
        variable_manager=task.get_variable_manager(),
        loader=task.get_loader(),
    )
