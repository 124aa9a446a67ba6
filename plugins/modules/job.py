# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.job``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: job
short_description: Runs a script on all nodes of the cluster at once
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Snapshots the project, prepares every host of the play that is in group C(cluster), starts the script on all of them
    at the same moment, follows it, and collects logs and what rank 0 wrote.
  - If one node cannot be prepared, nothing starts on any. The first rank that ends badly ends the others, whether this
    action still looks on or not.
  - A job that is stopped, by M(thunderhead.cluster.job_stop) or a second Ctrl-C, ends ansible-playbook as Ctrl-C does,
    with exit status 99.
  - Runs once for all hosts, from threads on the controller; C(forks) does not limit it.
  - Reads the inventory variables C(cluster_address), C(cluster_connections), C(cluster_dir), C(cluster_master_port),
    C(job_user) and C(job_env) of each host; C(inventory/sample) describes them.
options:
  script:
    description: The script, a path relative to O(project_dir).
    type: str
    default: ""
  module:
    description:
      - A module of the project, such as V(pkg.train), that is started as C(python -m) does, instead of O(script). It
        may import relative to its package.
      - It is looked for in O(project_dir), and in folders of it that PYTHONPATH in O(env) names.
    type: str
    default: ""
  script_args:
    description:
      - The script's arguments, a string split as a shell would, or a list. Never given to a shell.
      - Each node puts the values of the job's variables in for C($NAME) and C(${NAME}), such as C($NODE_RANK),
        C($NUM_NODES), C($CKPT_PATH), C($HOME) and those of O(env); a name that no variable has is refused. C($$) is a
        dollar. Values are in the process list of the node.
    type: raw
    default: ""
  project_dir:
    description:
      - The folder whose code is copied to the nodes, as git would track it (submodules too). If it is in no repository,
        what tools make for themselves (C(.venv), C(__pycache__)) is left out, and so are folders called C(runs),
        C(checkpoints), C(wandb) and C(lightning_logs) that are neither packages nor imported.
      - The folder of the records, C(runs/), is never part of it, and neither is C(.git); the script finds the commit in
        the environment variable C(JOB_GIT_COMMIT), with C(-dirty) behind it if the project differs from it.
      - A note lists what was left out.
      - By default the collection's C(train/), or the earlier job's with O(resume).
    type: path
  include:
    description:
      - Files to be copied besides, though git ignores them or they are results, such as V(*.bin,.env); patterns as in a
        C(.gitignore), with commas between, or a list.
      - A file C(.thunderheadinclude) in O(project_dir) has such patterns, one a line; one with C(!) takes files out
        again.
    type: raw
    default: ""
  project_files:
    description: V(git) copies what git would track, V(all) also what it ignores, and results; neither what tools make
      for themselves. By default V(git), or with O(resume) the earlier job's.
    type: str
    choices: [git, all]
  env:
    description: A mapping of environment variables for the script, merged last, values kept byte for byte.
    type: raw
    default: {}
  launcher:
    description:
      - V(lightning) starts the script once on each node, and Lightning starts the local ranks.
      - V(torchrun) has torchrun start the script once for each device.
      - V(python) starts the script once on each node, and that is all.
      - V(auto), the default, takes V(lightning) where the script, or a module of the project that it imports, uses
        Lightning's Trainer or LightningCLI, V(torchrun) where it uses Fabric, Transformers' Trainer, Accelerate,
        DeepSpeed or torch.distributed, else V(python), as where it starts its processes itself. With O(resume) and
        O(rerun), what that job used is the default.
    type: str
    choices: [auto, lightning, torchrun, python]
  devices:
    description: How many ranks torchrun starts on each node, or V(auto), as many as there are GPUs, or one.
    type: str
    default: ""
  gang:
    description:
      - Whether the nodes work together. By default they do, and a warning follows if their ranks never meet.
      - If not, each runs the script for itself. Lightning is not told how many nodes there are then, and torchrun knows
        of its own node only.
    type: bool
  resume:
    description:
      - Id of a job to go on from. The newest complete checkpoint that any of its nodes has, or the one that
        O(checkpoint) names, is put on all nodes before the start, and the script finds its path in the environment
        variable C(CKPT_PATH).
      - What is not given (O(script) or O(module), O(script_args), O(launcher), O(devices), O(gang), O(project_dir),
        O(include), O(project_files)) is as it was in that job. Values of O(env) are not kept, so they are given again.
    type: str
    default: ""
  checkpoint:
    description:
      - A checkpoint to go on from, a file or a folder of whatever library. With O(resume), a path below the folder that
        that job worked in; or an absolute one, on any node (C(~/) is the home of the account that jobs run as); or a
        path on the controller.
      - It is put on every node that does not have it, and the script finds its path in C(CKPT_PATH). Of a folder of
        which nodes have a part each, every node gets all.
    type: str
    default: ""
  companion:
    description:
      - Whether Lightning's Trainer is helped to find checkpoints, and to go on in the middle of an epoch. Its C(fit)
        goes on from the one of O(resume) or O(checkpoint) where the script passes it no C(ckpt_path), the first time
        that it is called. Where O(script_args), the script's code or a configuration file of the project mention
        C(CKPT_PATH), they say what it is for.
      - A checkpoint that only some nodes have, such as C(ckpt_path="best") after C(fit), is sent to the others when
        they load it, through the training's own connections.
    type: bool
    default: true
  retries:
    description:
      - How often a training with Lightning's Trainer or LightningCLI is started again by itself, from its newest whole
        checkpoint, after a fault that is none of the script's, such as a rank that was killed. The nodes decide that
        among themselves, whether anybody follows the job or not.
      - Each attempt runs the same code on the same nodes, or with one of O(spares) in the place of a lost one, and
        finds its number in C(JOB_ATTEMPT), from C(1) on. Pauses between attempts grow. There is no other after three in
        a row that left no newer checkpoint, after a second C(fit), or where a node is lost for good and there is no
        spare.
      - V(0) means never, as do O(gang=false), O(companion=false), and
        arguments or variables that say which checkpoint the script begins from.
      - By default V(3), where that is possible.
    type: int
  retry_on:
    description:
      - After what the job is started again. V(fault) is a process of it that was killed from outside, or a node that
        was lost and is there again, or whose place one of O(spares) takes; V(any) is also a script that failed by
        itself, but for bad arguments and failed imports.
    type: str
    choices: [fault, any]
    default: fault
  return_seconds:
    description:
      - How long a job that may be started again waits for a node that is lost, such as one that is frozen or cut off
        the network. Where the head is lost, the job ends.
    type: int
    default: 300
  spares:
    description:
      - How many of the hosts, the last ones that take part, wait until another is lost. When a job is started again
        because of that, a spare takes the lost node's rank. A node that is silent first gets the time to end its own.
      - They are prepared as the others, and held for the job, but run nothing until then. At least two hosts have to be
        left to train. The first, the head, is not replaced.
      - Only for a job that may be started again; see O(retries).
      - By default none, or with O(rerun) as many as that job had.
    type: int
  rerun:
    description: Id of a job to be run again, with the same code and arguments on the same nodes.
    type: str
    default: ""
  detach:
    description: Return once the job is started.
    type: bool
    default: false
  stall_timeout_seconds:
    description:
      - When no rank has printed anything for this long, say what each of them does, and keep their stacks in the job's
        folder. The job goes on. V(0) means never.
    type: int
    default: 0
  rendezvous_timeout_seconds:
    description:
      - When no rank has printed anything for this long since the start, find out what they do. A job whose ranks wait
        for each other without end is stopped, with the reason; one in which a rank works while the others wait for it
        goes on. V(0) means never, as does O(gang=false).
    type: int
    default: 120
  wait:
    description: How many seconds to wait for nodes that run another job.
    type: int
    default: 0
  bundle_max_mb:
    description: The most that the project's files may have together, in MiB.
    type: int
    default: 100
  skip:
    description: Checks of the preflight that are left out, of those that a run makes; C(docs/preflight.md) lists them.
    type: list
    elements: str
    default: []
  clock_max_seconds:
    description: How far clocks may be apart before a warning.
    type: float
    default: 2.0
  shm_min_mb:
    description: The least size of C(/dev/shm), in MB, before a warning.
    type: int
    default: 256
  nofile_min:
    description: The least number of files that a job may open before a warning.
    type: int
    default: 4096
extends_documentation_fragment:
  - thunderhead.cluster.follow_options
  - thunderhead.cluster.command_line_options
  - thunderhead.cluster.action
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.flow
attributes:
  check_mode:
    support: full
    details: Checks the input and every node, and starts nothing.
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Train on all nodes
  thunderhead.cluster.job:
    script: train.py
    script_args: --max-epochs 3
    project_dir: /home/me/project
    env:
      WANDB_MODE: offline

- name: Go on where that job was when it lost a node
  thunderhead.cluster.job:
    resume: 20261122-173000-train-9f3a
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
  description: What the job is doing, V(succeeded), or V(running) if O(detach) is set.
  type: str
  returned: success
warning:
  description: What the ranks of a job that succeeded were not seen to do, such as to meet, and what helps; else empty.
  type: str
  returned: success
"""
