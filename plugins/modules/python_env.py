# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.python_env``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: python_env
short_description: Makes a node's Python environment from a lock, and nothing else
version_added: 0.1.0
description:
  - Makes C(envs/<key>) below the cluster directory with uv, of the packages in a lock, each checked by its hash, and
    points the link C(env) at it. A failed install is removed and leaves C(env) as it was. While one installs, another
    is refused.
  - Makes C(tools/<key>) likewise, with the product's own tools, and points C(tools/env) at it. Without these setup goes
    on, with a warning.
  - uv has to be in C(bin) already, and in O(wheels) what the controller has built.
options:
  lock:
    description: A file on the controller, with all packages and their hashes; empty if the environment is there.
    type: path
    default: ""
  indexes:
    description: URLs that the lock's packages come from, the default first, or empty; without credentials.
    type: list
    elements: str
    default: []
  written_indexes:
    description: URLs as the requirements have them, with variables of the controller's environment, ${NAME}.
    type: list
    elements: str
    default: []
  links:
    description: URLs of pages with links to the lock's packages, beside O(find_links); without credentials.
    type: list
    elements: str
    default: []
  index_url:
    description: The package index; V(none) for none, empty for the node's own, else that of the lock.
    type: str
    default: ""
  extra_index_urls:
    description: More indexes.
    type: list
    elements: str
    default: []
  find_links:
    description: Folders on the node, or URLs, with wheels.
    type: list
    elements: str
    default: []
  proxy:
    description: URL of the proxy; empty for the node's own setting.
    type: str
    default: ""
  uv_settings:
    description: What is written into a C(uv.toml).
    type: dict
    default: {}
extends_documentation_fragment:
  - thunderhead.cluster.python_env
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  action:
    support: full
  async:
    support: none
  bypass_host_loop:
    support: none
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the environment
  thunderhead.cluster.python_env:
    directory: /opt/thunderhead
    node: "{{ found.nodes[inventory_hostname] }}"
    lock: "{{ locks.hosts[inventory_hostname].lock }}"
    digest: "{{ locks.hosts[inventory_hostname].digest }}"
"""

RETURN = r"""
path:
  description: The environment's folder.
  returned: success
  type: str
  sample: /opt/thunderhead/envs/0123456789abcdef
"""
