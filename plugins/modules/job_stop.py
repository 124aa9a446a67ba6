# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.job_stop``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job_stop
short_description: Stops a job on all its nodes
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Sends SIGTERM to all processes of the job on all nodes at the same moment, and SIGKILL after a grace. Fails if a
    node does not answer, or if a process of the job is left.
  - Runs once for all hosts.
options:
  job:
    description:
      - The job's id. Empty means the user's latest that runs on a host of the play; somebody else's is stopped only by
        its id.
    type: str
    default: ""
  runs_dir:
    description: The folder of the records, one folder per job, relative to the working directory.
    type: path
    default: runs
  stop_grace_seconds:
    description: The time between SIGTERM and SIGKILL when the job is stopped.
    type: int
    default: 10
extends_documentation_fragment:
  - thunderhead.cluster.command_line_options
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: none
    details: It would have to stop the job to know that nothing is left of it.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Stop the job that runs
  thunderhead.cluster.job_stop:
"""

RETURN = r"""
job:
  description: The job's id.
  type: str
  returned: success
  sample: 20261122-173000-train-9f3a
states:
  description: How the job ended on each host.
  type: dict
  returned: success
  sample: {gpu-1: stopped, gpu-2: stopped}
"""
