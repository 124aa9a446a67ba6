# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.job_cleanup``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job_cleanup
short_description: Removes old jobs, their code and unused environments from the nodes
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Removes from every host of the play that is in group C(cluster) all but the user's own newest ended jobs, then the
    code that none of the jobs left there came from, and the Python environments that neither the next job nor the
    running one uses and that are older than a day.
  - A job that is prepared or runs stays, whatever O(keep) says, and is not disturbed.
  - The records of the jobs on the controller stay. A job whose code is gone from a node cannot be run again from its
    record unless the controller has the code.
  - Whose a job is was recorded when it was started, as the user and the machine of the controller. Of others' jobs
    nothing goes, because checkpoints and the artifacts of most ranks lie on the nodes alone.
options:
  keep:
    description: How many of the user's ended jobs stay on each node; with O(all_users), how many of all.
    type: int
    default: 10
  all_users:
    description: Count and remove everybody's jobs.
    type: bool
    default: false
extends_documentation_fragment:
  - thunderhead.cluster.command_line_options
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Says what would be removed, and removes nothing.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Keep the five newest jobs
  thunderhead.cluster.job_cleanup:
    keep: 5
  run_once: true
"""

RETURN = r"""
msg:
  description: What was removed, in one sentence.
  type: str
  returned: always
  sample: removed 12 jobs, 3 bundles and 1 environment (4.7 GB) from 16 nodes
nodes:
  description: Each host that answered to the C(jobs), C(bundles) and C(envs) it removed (lists of names), the C(bytes)
    that became free, and what could not be removed, as C(left), a list of paths with the reason.
  type: dict
  returned: always
"""
