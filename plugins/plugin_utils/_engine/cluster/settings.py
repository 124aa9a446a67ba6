# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and check what the inventory sets for a node; the defaults stand here."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    as_environment,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

SPEC: dict[str, dict[str, Any]] = {
    "cluster_address": {"type": "str", "default": ""},
    "cluster_connections": {"type": "int", "default": 32},
    "cluster_dir": {"type": "str", "default": "/opt/thunderhead"},
    "cluster_master_port": {"type": "int", "default": 29500},
    "job_user": {"type": "str", "default": "thunderhead"},
    "job_env": {"type": "raw", "default": {}},
}
"""The variables of inventory/sample that the engine itself reads, as an argument spec."""


@dataclass(frozen=True)
class NodeSettings:
    """One host's settings, validated.

    Attributes:
        host: inventory name.
        address: on the cluster's network, as its peers reach it; None means that of the node's default route.
        directory: absolute path on the node under which everything of ours lies.
        master_port: TCP port of the rendezvous; the head's counts.
        user: the account jobs run as; empty means the connection's own.
        env: additional environment variables, values as they are.
        connections: how many new connections may be in the making at once, with this host's among them.
    """

    host: str
    address: str | None
    directory: str
    master_port: int
    user: str
    env: dict[str, str]
    connections: int = SPEC["cluster_connections"]["default"]

    @classmethod
    def from_variables(cls, host: str, variables: Mapping[str, Any], template: Callable[[Any], Any]) -> NodeSettings:
        """Read one host's inventory variables; ``template`` resolves one value in that host's context.

        Raises:
            JobError: a value cannot be used; the message names the host and the variable.
        """

        def resolved(name: str, value: Any) -> Any:
            try:
                return template(value)
            except AnsibleError as error:
                raise JobError(f"{host}: {name} cannot be resolved: {error}; correct it in the inventory") from error

        given = {name: resolved(name, variables[name]) for name in SPEC if name in variables}
        result = ArgumentSpecValidator(SPEC).validate(
            {name: value for name, value in given.items() if value is not None}
        )
        if result.error_messages:
            raise JobError(f"{host}: {result.error_messages[0]}; set it in the inventory")
        values = result.validated_parameters
        port = values["cluster_master_port"]
        if not 1 <= port <= 65535:
            raise JobError(f"{host}: cluster_master_port is {port}; set a TCP port from 1 to 65535 in the inventory")
        if values["cluster_connections"] < 1:
            raise JobError(
                f"{host}: cluster_connections is {values['cluster_connections']}; set at least 1 in the inventory"
            )
        if values["job_user"] == "root":
            raise JobError(
                f"{host}: job_user is root, but jobs run unprivileged; name another account in the inventory"
            )
        if re.match(r"-|\d+\Z|.*[:\n]", values["job_user"]):
            raise JobError(
                f"{host}: job_user is {escape(values['job_user'])}, which is no name of an account; "
                "set one in the inventory"
            )
        directory = values["cluster_dir"]
        if not (directory.startswith("/") and directory.isprintable() and ".." not in directory.split("/")):
            raise JobError(
                f"{host}: cluster_dir is {escape(directory) or 'empty'}; set an absolute path in the inventory, "
                "without .. in it"
            )
        given_address = values["cluster_address"]
        address = _literal(given_address or resolved("ansible_host", variables.get("ansible_host", host)))
        if given_address and not address:
            raise JobError(f"{host}: cluster_address is {given_address}; set an IPv4 or IPv6 address in the inventory")
        return cls(
            host=host,
            address=address,
            directory="/" + posixpath.normpath(directory).lstrip("/"),
            master_port=port,
            user=values["job_user"],
            env=as_environment(values["job_env"], f"{host}: job_env"),
            connections=values["cluster_connections"],
        )


def _literal(text: Any) -> str | None:
    """Return ``text`` if it is an IP address, else None: names are resolved differently on every machine."""
    try:
        return str(ipaddress.ip_address(str(text)))
    except ValueError:
        return None
