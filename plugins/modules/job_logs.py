# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Documentation of the action ``thunderhead.cluster.job_logs``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job_logs
short_description: Follows a job that was started earlier to its end
version_added: 0.1.0
author: The Thunderhead developers
description:
  - Shows the output of a job on group C(cluster) from where an earlier command left off, follows it, and collects logs
    and artifacts, as M(thunderhead.cluster.job) does. Nothing is fetched twice, and nothing is left out.
  - It ends as M(thunderhead.cluster.job) would have ended, also with a failure.
  - Runs once for all hosts.
options:
  job:
    description: The job's id. Empty means the latest.
    type: str
    default: ""
  offset:
    description:
      - From which byte of the logs on they are shown, V(0) being their beginning.
      - By default from where the copy in O(runs_dir) ends; from the beginning, if it is complete.
    type: int
  logs:
    description: Whose output is shown live. Every log is kept whole in O(runs_dir).
    type: str
    choices: [head, all, none]
    default: head
  collect:
    description: Whose artifacts are brought home, those of rank 0, of all ranks, or none.
    type: str
    choices: [head, all, none]
    default: head
  on_interrupt:
    description: What Ctrl-C does, leave the job running (a second one stops it), or stop it at once.
    type: str
    choices: [detach, stop]
    default: detach
  keep:
    description: How many ended jobs stay on each node afterwards. All, if it is not given.
    type: int
  runs_dir:
    description: The folder of the records, one folder per job, relative to the working directory.
    type: path
    default: runs
  node_timeout_seconds:
    description: A node that is silent for this long is lost, which ends the job.
    type: int
    default: 30
  stall_timeout_seconds:
    description:
      - When no rank has printed anything for this long, say what each of them does, and keep their stacks in the job's
        folder. The job goes on. V(0) means never.
    type: int
    default: 0
  rendezvous_timeout_seconds:
    description:
      - When no rank has printed anything for this long since the start, look what they do. A job whose ranks wait for
        each other in vain is ended, with the reason. V(0) means never.
    type: int
    default: 120
  stop_grace_seconds:
    description: The time between SIGTERM and SIGKILL when the job is stopped.
    type: int
    default: 10
attributes:
  check_mode:
    support: none
    description: There is nothing to check.
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
world_size:
  description: How many nodes take part.
  type: int
  returned: success
state:
  description: How the job ended.
  type: str
  returned: success
"""
