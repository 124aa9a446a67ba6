# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.job_logs``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job_logs
short_description: Follows a job that was started earlier to its end
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Shows the output of a job on group C(cluster) from where an earlier command left off, follows it, and collects logs
    and artifacts, as M(thunderhead.cluster.job) does. Nothing is fetched twice, and nothing is left out.
  - It ends as M(thunderhead.cluster.job) would have ended, also with a failure.
  - Runs once for all hosts.
options:
  job:
    description:
      - The job's id. Empty means the user's latest on a host of the play; somebody else's is followed only by its id.
    type: str
    default: ""
  offset:
    description:
      - From which byte of the logs on they are shown, V(0) being their beginning.
      - By default from where the copy in O(runs_dir) ends; from the beginning, if it is complete.
    type: int
extends_documentation_fragment:
  - thunderhead.cluster.follow_options
  - thunderhead.cluster.command_line_options
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: none
    details: There is nothing to check.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Wait for the latest job
  thunderhead.cluster.job_logs:

- name: See the whole log of a job again
  thunderhead.cluster.job_logs:
    job: 20261122-173000-train-9f3a
    offset: 0
"""

RETURN = r"""
job:
  description: The job's id.
  type: str
  returned: success
  sample: 20261122-173000-train-9f3a
path:
  description: The job's folder on the controller, with C(job.json), C(logs/) and C(artifacts/).
  type: str
  returned: success
nodes:
  description: How many nodes train; spares are not counted.
  type: int
  returned: success
world_size:
  description:
    - How many nodes worked together, and 1 where their ranks never met, or each works for itself.
    - Null if that is not known.
  type: int
  returned: success
state:
  description: How the job ended.
  type: str
  returned: success
warning:
  description: What the ranks of a job that succeeded were not seen to do, such as to meet, and what helps; else empty.
  type: str
  returned: success
"""
