# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.firewall_info``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: firewall_info
short_description: Finds the firewall that is active on every node, and what it has and lacks of the cluster's rules
version_added: 0.1.0
description:
  - Reads, and changes nothing.
  - Asks all hosts of the play at once, with the arguments that the task has for each.
  - Active is what filters incoming packets now; what is installed and does not run is not. Of several, the one that
    manages the others is chosen, firewalld before ufw before iptables before nftables.
  - A firewall that is not chosen should have no rule of the cluster; any that it has is stale. Only where V(auto)
    chooses none they stay as they are, because it may have been stopped for a moment.
options:
  provider:
    description: The firewall that is to let the peers in. V(auto) chooses it; V(none) makes every rule stale.
    type: str
    choices: [auto, firewalld, ufw, iptables, nftables, none]
    default: auto
  peers:
    description: IPv4 and IPv6 addresses that may connect.
    type: list
    elements: str
    required: true
  ports:
    description: TCP ports (V(29500)) and ranges (V(32768-60999)) they may connect to.
    type: list
    elements: str
    required: true
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
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look which firewall is active
  thunderhead.cluster.firewall_info:
    peers: [192.0.2.11, 2001:db8::11]
    ports: ["29500", "32768-60999"]
  register: found
  run_once: true
"""

RETURN = r"""
errors:
  description: By host, why it could not be looked at. The task fails where an error on one host ends the play for all
    (C(any_errors_fatal)), and where no host could be looked at.
  returned: success
  type: dict
msg:
  description: What was chosen, and why; a line for all hosts of which that is the same.
  returned: success
  type: str
  sample: "gpu-1, gpu-2: ufw, because it is active (firewalld does not run)"
nodes:
  description: By host, what is there and what is missing.
  returned: success
  type: dict
  contains:
    provider:
      description: The firewall that is to let the peers in, or C(none).
      type: str
      sample: ufw
    msg:
      description: What was chosen, and why.
      type: str
      sample: "ufw, because it is active (firewalld does not run)"
    firewalld:
      description: The rich rules that are C(missing) and C(stale), each with its C(zone) and C(rule).
      type: dict
    ufw:
      description:
        - The rules that are C(missing) and C(stale), each with its C(network) and C(ports).
        - What is missing has the C(position) at which it belongs, none where there is no other rule of its family.
      type: dict
    concerned:
      description: The firewalls in which there may be something to do, the one that is to let the peers in first.
      type: list
      elements: str
"""
