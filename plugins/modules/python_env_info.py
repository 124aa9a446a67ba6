# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.python_env_info``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: python_env_info
short_description: Looks at every node's Python, platform, GPU driver and environments
version_added: 0.1.0
description:
  - Says which environment each node should have, by a checksum of all that decides its content, and whether it has it.
  - Asks all hosts of the play at once, with the arguments that the task has for each.
  - Refuses a node that can have none, with no Python from 3.10 to 3.13, or with a cluster directory whose programs
    cannot run.
options:
  directory:
    description: The cluster directory, absolute.
    type: str
    required: true
  python:
    description: The node's Python, by name or path.
    type: str
    default: python3
  backend:
    description: The wanted build of torch; V(auto) is C(cpu) where there is no NVIDIA driver.
    type: str
    default: auto
  digest:
    description: What else decides the environment's content, from M(thunderhead.cluster.python_env_lock).
    type: str
    required: true
  tools:
    description: The lock of the product's own tools.
    type: str
    default: ""
  find_links:
    description: Folders that have to be there, or URLs, which are not looked at.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Changes nothing.
  diff_mode:
    support: N/A
    details: Changes nothing.
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look at every node's Python
  thunderhead.cluster.python_env_info:
    directory: "{{ cluster_dir }}"
    digest: 0f3a
  register: found
  run_once: true
"""

RETURN = r"""
errors:
  description: By host, why it could not be looked at. The task fails where an error on one host ends the play for all
    (C(any_errors_fatal)), and where no host could be looked at.
  returned: success
  type: dict
nodes:
  description: >-
    By host, what M(thunderhead.cluster.python_env_lock) and M(thunderhead.cluster.python_env) need to know of it.
  returned: success
  type: dict
  contains:
    python:
      description: Its version, as in V(3.11).
      type: str
    executable:
      description: Its path.
      type: str
    machine:
      description: The processor.
      type: str
    platform:
      description: uv's name of the platform.
      type: str
    wheel_platform:
      description: pip's name of the platform.
      type: str
    backend:
      description: The build of torch.
      type: str
    driver:
      description: The NVIDIA driver's version.
      type: str
    uv:
      description: The version of uv in the cluster directory, empty if there is none.
      type: str
    free:
      description: >-
        The room that this account has where the cluster directory lies, or will, in bytes; of a file system that does
        not say it, the largest number.
      type: int
    target:
      description: The environment's folder, below the cluster directory.
      type: str
    complete:
      description: Whether it is there.
      type: bool
    current:
      description: Whether jobs use it.
      type: bool
    tools:
      description: The folder of the tools.
      type: str
    tools_current:
      description: Whether these are there.
      type: bool
"""
