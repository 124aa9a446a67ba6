# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.job_info``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job_info
short_description: Lists the jobs on the cluster
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Asks every host of group C(cluster) for its jobs, the newest 10 of each, whoever started them.
  - Runs once for all hosts.
options:
  job:
    description: One job's id. Empty means all.
    type: str
    default: ""
  format:
    description: Whether the jobs are shown too, as a table or as one line of JSON.
    type: str
    choices: [table, json, none]
    default: none
extends_documentation_fragment:
  - thunderhead.cluster.command_line_options
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
- name: Look at all jobs
  thunderhead.cluster.job_info:
  register: found
"""

RETURN = r"""
jobs:
  description:
    - The jobs, the newest first. Each has C(id), C(script), C(user), C(started), C(state), C(since) (seconds since
      1970), C(nodes) (how many train; spares are not counted), C(met) (whether the ranks of all nodes met; null if that
      is not known), C(world_size) (how many nodes work together; null if that is not known), C(warning) (what the ranks
      were not seen to do, or null), C(notices) (what the head has found out, each with its time), and C(ranks).
    - Each of C(ranks) has C(rank) (null for a spare, or a node whose place a spare has taken), C(host), C(state)
      (V(prepared), V(running), V(spare), V(succeeded), V(failed), V(stopped), V(lost), V(unused), V(unknown) or
      V(removed)), C(exit_code), C(signal), C(because) (why it was stopped), C(log_bytes) and C(last_line).
  type: list
  elements: dict
  returned: success
silent:
  description: Why a host did not answer, by host.
  type: dict
  returned: success
"""
