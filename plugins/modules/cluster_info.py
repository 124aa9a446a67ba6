# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.cluster_info``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: cluster_info
short_description: Checks the inventory and every node, and returns the cluster's topology
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Reaches every host of the play once, at the same time, and changes nothing.
  - Fails with one sentence for each value that a role of O(roles) refuses, with the hosts that have it.
  - Fails with one sentence per node that is unreachable, has no usable Python, does not hold the address that the
    inventory gives it, or has a C(cluster_dir) that holds anything but what setup makes; and where a
    collection is missing that a node's firewall needs.
  - Ranks follow the order of all hosts in group C(cluster), also of those that C(--limit) leaves out.
options:
  roles:
    description: >-
      Roles of this collection. What the inventory says to them is held against their argument specs, for all hosts
      before any is reached. What a role has to be given comes from the playbook, and is not looked at.
    type: list
    elements: str
    choices: [python_env, firewall, node_env]
    default: []
extends_documentation_fragment:
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Changes nothing in any mode.
  diff_mode:
    support: N/A
    details: Changes nothing.
"""

EXAMPLES = r"""
- name: Look at the cluster
  thunderhead.cluster.cluster_info:
  register: cluster
  run_once: true
"""

RETURN = r"""
warnings:
  description: What does not keep the nodes from being set up.
  type: list
  elements: str
  returned: success
world_size:
  description: How many nodes the cluster has.
  type: int
  returned: success
head:
  description: The first host, which has rank 0.
  type: str
  returned: success
master_addr:
  description: The head's address on the cluster's network.
  type: str
  returned: success
master_port:
  description: The TCP port of the rendezvous on the head.
  type: int
  returned: success
addresses:
  description: All nodes' addresses, in rank order.
  type: list
  elements: str
  returned: success
on_loopback:
  description: Whether all hosts of the play meet on the loopback interface of one machine, where no firewall is passed.
  type: bool
  returned: success
peers:
  description: All addresses on the interfaces that hold those, IPv6 too. Of a host that C(--limit) leaves out only what
    the inventory says.
  type: list
  elements: str
  returned: success
nodes:
  description:
    - Each host of the play to its C(address), C(directory), C(user) and C(port_range).
    - Its C(place) (rank, world_size, master_addr, master_port and interface) is as the role node_env takes it.
    - C(firewalls) are those of firewalld and ufw that run or are enabled.
    - C(job) is the id of the job that holds it, or empty.
  type: dict
  returned: success
"""
