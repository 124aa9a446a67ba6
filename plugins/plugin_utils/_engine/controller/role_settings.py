# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what the inventory sets for the roles, before any node is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import ROLES

Resolve = Callable[[str, str, Mapping[str, Any]], Any]
"""Returns a host's variable by its name, with others that count where the host has none of that name."""


def require_valid(roles: Sequence[str], hosts: Mapping[str, Mapping[str, Any]], resolve: Resolve) -> None:
    """Raise JobError for what a role's argument spec refuses, each fault once for all hosts that have it.

    Args:
        roles: names of roles of this collection.
        hosts: inventory names to the host's variables, as they are written.
        resolve: resolves one of them.
    """
    specs = {role: _read(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"] for role in roles}
    from_playbook = {name for spec in specs.values() for name, option in spec.items() if option.get("required")}
    defaults = {name: value for role in roles for name, value in _read(role, "defaults/main.yml").items()}
    faults: dict[str, list[str]] = {}
    for role, spec in specs.items():
        checked = {name: option for name, option in spec.items() if name not in from_playbook and _is_refusable(option)}
        validator = ArgumentSpecValidator(checked)
        others = {"role_path": str(ROLES / role), **defaults}
        for host, variables in hosts.items():
            given: dict[str, Any] = {}
            for name in [name for name in checked if name in variables]:
                try:
                    given[name] = resolve(host, name, others)
                except AnsibleError as error:
                    if not any(f"'{needed}' is undefined" in str(error) for needed in from_playbook):
                        faults.setdefault(f"{name} cannot be resolved: {error}", []).append(host)
            for fault in validator.validate(given).error_messages:
                faults.setdefault(fault, []).append(host)
    if faults:
        raise JobError(
            "\n".join(f"{join_names(who)}: {fault}; correct it in the inventory" for fault, who in faults.items())
        )


def _read(role: str, file: str) -> dict[str, Any]:
    found: dict[str, Any] = DataLoader().load_from_file(str(ROLES / role / file), trusted_as_template=True)
    return found


def _is_refusable(option: Mapping[str, Any]) -> bool:
    """Return whether there are values that its spec refuses: anything is text."""
    return "choices" in option or option.get("type", "str") not in ("str", "path", "raw")
