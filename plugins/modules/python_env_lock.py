# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.python_env_lock``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: python_env_lock
short_description: Reads requirements, and resolves them once for all nodes
version_added: 0.1.0
description:
  - Reads what C(python_env_requirements) names, with all that it includes, and refuses what no node could install, by
    file and line.
  - With O(nodes), makes a lock with hashes for every kind of node that lacks its environment, with uv, on the
    controller, or on the node that C(python_env_resolve_on) names. What has no hash (local projects, git) is
    built into a wheel.
  - Locks are kept on the controller, in C(~/.cache/thunderhead/locks), and serve as long as the files, the projects
    that they name, the settings and uv's version are the same.
  - Runs once for all hosts, and reads the role's variables of each.
options:
  hosts:
    description: The nodes.
    type: list
    elements: str
    required: true
  nodes:
    description: By host, what M(thunderhead.cluster.python_env_info) says. Without it requirements are only read.
    type: dict
    default: {}
extends_documentation_fragment:
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Resolves all the same, which changes no node.
  diff_mode:
    support: full
    details: Shows what each lock changes.
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Read the requirements
  thunderhead.cluster.python_env_lock:
    hosts: "{{ ansible_play_batch }}"
"""

RETURN = r"""
hosts:
  description: >-
    By host the digest of what decides its environment; with O(nodes) also the files of its lock, wheels and uv on the
    controller, the name of the folder for these wheels, and from which indexes the packages come.
  returned: success
  type: dict
resolver:
  description: Who resolves.
  returned: without O(nodes)
  type: str
  sample: localhost
"""
