# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Documentation of the action ``thunderhead.cluster.job``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job
short_description: Runs a script on all nodes of the cluster at once
version_added: 0.1.0
author: The Thunderhead developers
description:
  - Snapshots the project, prepares every host of the play that is in group C(cluster), starts the script on all of them
    at the same moment, follows it, and collects logs and what rank 0 wrote.
  - If one node cannot be prepared, nothing starts on any. The first rank that ends badly ends the others.
  - Runs once for all hosts, from threads on the controller; C(forks) does not limit it.
  - Reads the inventory variables C(cluster_address), C(cluster_dir), C(cluster_master_port), C(job_user) and C(job_env)
    of each host; C(inventory/sample) describes them.
options:
  script:
    description: The script, a path relative to O(project_dir).
    type: str
    default: ""
  args:
    description: The script's arguments, a string split as a shell would, or a list. Never given to a shell.
    type: raw
    default: ""
  project_dir:
    description: The folder whose code is copied to the nodes, as git would track it.
    type: path
    required: true
  env:
    description: A mapping of environment variables for the script, merged last, values kept byte for byte.
    type: raw
    default: {}
  logs:
    description: Whose output is shown live. Every log is kept whole in O(runs_dir).
    type: str
    choices: [head, all, none]
    default: head
  runs_dir:
    description: The folder of the records, one folder per job, relative to the working directory.
    type: path
    default: runs
  bundle_max_mb:
    description: The most that the project's files may have together, in MiB.
    type: int
    default: 100
  node_timeout_seconds:
    description: A node that is silent for this long is lost, which ends the job.
    type: int
    default: 30
  stop_grace_seconds:
    description: The time between SIGTERM and SIGKILL when the job is stopped.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
    description: Checks the input and every node, and starts nothing.
"""

EXAMPLES = r"""
- name: Train on all nodes
  thunderhead.cluster.job:
    script: train.py
    args: --max-epochs 3
    project_dir: /home/me/project
    env:
      WANDB_MODE: offline
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
  description: How many nodes took part.
  type: int
  returned: success
"""
