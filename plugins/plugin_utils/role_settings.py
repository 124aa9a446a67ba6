# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the inventory says to the roles, checked before anything is changed on any node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import listed

ROLES = Path(__file__).parents[2] / "roles"


def require_valid(roles: Sequence[str], hosts: Sequence[str], value: Callable[[str, str], Any]) -> None:
    """Raise JobError for what a role's argument spec refuses, each fault once for all hosts that have it.

    Args:
        roles: names of roles of this collection.
        hosts: inventory names.
        value: returns a host's variable, None where it has none.
    """
    faults: dict[str, list[str]] = {}
    for role in roles:
        spec = arguments(role)
        validator = ArgumentSpecValidator(spec)
        for host in hosts:
            for fault in validator.validate(_given(host, spec, value)).error_messages:
                faults.setdefault(fault, []).append(host)
    if faults:
        raise JobError(
            "\n".join(f"{listed(who)}: {fault}; correct it in the inventory" for fault, who in faults.items())
        )


def arguments(role: str) -> dict[str, dict[str, Any]]:
    """Return the argument spec of a role; what has to be given comes from the playbook, so nothing is required here."""
    document = DataLoader().load_from_file(str(ROLES / role / "meta" / "argument_specs.yml"))
    options: Mapping[str, dict[str, Any]] = document["argument_specs"]["main"]["options"]
    return {name: {**option, "required": False} for name, option in options.items()}


def _given(host: str, names: Collection[str], value: Callable[[str, str], Any]) -> dict[str, Any]:
    """Return what a host has of the arguments; one that is made of others has to wait for the role."""
    found = {}
    for name in names:
        try:
            found[name] = value(host, name)
        except AnsibleError as error:
            if not any(repr(other) in str(error) for other in names):
                raise JobError(f"{host}: {name} cannot be resolved: {error}; correct it in the inventory") from error
    return {name: one for name, one in found.items() if one is not None}
