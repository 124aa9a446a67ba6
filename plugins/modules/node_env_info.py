# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.node_env_info``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: node_env_info
short_description: Looks at the account, the directories and the environment file of every node
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Changes nothing.
  - Asks all hosts of the play at once, with the arguments that the task has for each.
  - What C(node.env) is to hold follows from the variables C(node_env_node) and C(node_env_variables) of the role
    node_env. They are no arguments, because these are shown and recorded, and a variable may be a secret.
options:
  directory:
    description: The node's cluster directory.
    type: str
    required: true
  parts:
    description: The folders that it is to have.
    type: list
    elements: str
    required: true
  user:
    description: The account that jobs run as; empty means that of Ansible.
    type: str
    default: ""
extends_documentation_fragment:
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: It changes nothing anyway.
  diff_mode:
    support: N/A
    details: Changes nothing.
"""

EXAMPLES = r"""
- name: Look at every node
  thunderhead.cluster.node_env_info:
    directory: "{{ cluster_dir }}"
    parts: [jobs, bundles]
    user: thunderhead
  register: found
  run_once: true
  vars:
    node_env_node: {rank: 0, world_size: 2, master_addr: 192.0.2.11, master_port: 29500, interface: eth0}
    node_env_variables: {NCCL_DEBUG: WARN}
"""

RETURN = r"""
errors:
  description: By host, why it could not be looked at. The task fails where an error on one host ends the play for all
    (C(any_errors_fatal)), and where no host could be looked at.
  returned: success
  type: dict
nodes:
  description: By host, what it has.
  returned: success
  type: dict
  contains:
    has_user:
      description: Whether the account is there, or none is needed.
      type: bool
    is_complete:
      description: Whether the account, the folders and the file are there and as they are to be.
      type: bool
"""
