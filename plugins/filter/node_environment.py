# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Return the environment variables of one node as a mapping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    as_environment,
    variables,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

DOCUMENTATION = """
name: node_environment
author: The Thunderhead developers (!UNKNOWN)
version_added: 0.1.0
short_description: The environment of one node
description:
  - Returns what Lightning and torch read of a node's place in the cluster, and the user's own variables.
positional: variables
options:
  _input:
    description: The node's C(rank) and C(interface), and C(world_size), C(master_addr) and C(master_port).
    type: dict
    required: true
  variables:
    description: More variables, which win; a mapping, or its text in JSON or YAML.
    type: raw
    default: {}
"""

EXAMPLES = """
- name: Show the environment of a node
  ansible.builtin.debug:
    msg: "{{ node | thunderhead.cluster.node_environment({'NCCL_DEBUG': 'WARN'}) }}"
  vars:
    node: {rank: 0, world_size: 2, master_addr: 192.0.2.11, master_port: 29500, interface: eth0}
"""

RETURN = """
_value:
  description: The names to the values, which are strings.
  type: dict
"""


def node_environment(node: Mapping[str, Any], given: Any = None) -> dict[str, str]:
    """Return it; raise AnsibleFilterError for variables that cannot be used."""
    try:
        return variables(node, as_environment(given or {}, "node_env_variables"))
    except JobError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by their names."""
        return {"node_environment": node_environment}
