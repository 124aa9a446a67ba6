# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``thunderhead.cluster.preflight``; the code is in plugins/action."""

DOCUMENTATION = r"""
module: preflight
short_description: Finds what would make a job fail or hang, before one is started
version_added: 0.1.0
author: The Thunderhead developers (!UNKNOWN)
description:
  - Asks every host of the play once, at the same time, what it is, has the hosts connect to each other, and judges what
    came of it. Nothing is changed on any host.
  - Each check has a name and ends in one sentence, with the remedy; C(docs/preflight.md) lists them.
  - Fails if a check failed. A warning is no failure.
options:
  script:
    description:
      - Path of a script in O(project_dir), whose imports are tried on every host with the code that a job would have,
        in its folder, with its variables, as its account; the code is removed again.
      - Of the script itself nothing else is run but what it does to its path.
    type: str
    default: ""
  module:
    description: Name of a module of the project, instead of O(script); as for M(thunderhead.cluster.job).
    type: str
    default: ""
  project_dir:
    description: The folder that holds the script, relative to the working directory. C(train/) of this collection,
      if it is not given.
    type: path
  include:
    description: Files that a job's code has besides, as for M(thunderhead.cluster.job).
    type: raw
    default: ""
  project_files:
    description: Which files of the project are a job's code, as for M(thunderhead.cluster.job).
    type: str
    choices: [git, all]
  bundle_max_mb:
    description: The most that the project's files may have together, in MiB.
    type: int
    default: 100
  env:
    description: A mapping of environment variables that the job would get.
    type: raw
    default: {}
  skip:
    description: Checks that are not made, by their names, or by their groups'.
    type: list
    elements: str
    default: []
  format:
    description: How to show the verdicts, a C(table), one line of C(json), or not at all.
    type: str
    choices: [table, json, none]
    default: none
  devices:
    description: Ranks per host, where hosts may have different numbers of GPUs; V(auto) means one for each.
    type: str
    default: auto
  import_timeout_seconds:
    description: How long importing torch, and what the script imports, may take on a host.
    type: int
    default: 60
  clock_max_seconds:
    description: How far clocks may be apart.
    type: float
    default: 2.0
  rtt_max_ms:
    description: Round-trip times below this are fine, however they differ.
    type: float
    default: 5.0
  collective_timeout_seconds:
    description: How long each step of the all-reduce may take, of which importing torch is one.
    type: int
    default: 120
  slow_node_percent:
    description: A host is slow if its fastest exchange with another has less than so many percent of the median of all
      hosts.
    type: int
    default: 50
  gpu_memory_max_mb:
    description: How much of a GPU's memory, in MiB, may be in use while no job runs.
    type: int
    default: 1024
  memory_min_mb:
    description: The least memory that has to be free on a host, in MB.
    type: int
    default: 1024
  disk_min_mb:
    description: The least room that has to be left on the file system of C(cluster_dir), in MB.
    type: int
    default: 2048
  shm_min_mb:
    description: The least size of C(/dev/shm), in MB.
    type: int
    default: 256
  nofile_min:
    description: The least number of files that a job may open.
    type: int
    default: 4096
extends_documentation_fragment:
  - thunderhead.cluster.command_line_options
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
- name: See that the cluster can train
  thunderhead.cluster.preflight:
    script: train.py
    format: table
  run_once: true

- name: The same without what containers are known for
  thunderhead.cluster.preflight:
    skip: [names.hostname, hardware.shm]
  run_once: true
"""

RETURN = r"""
ok:
  description: Whether no check failed.
  type: bool
  returned: success
seconds:
  description: What all checks took together.
  type: float
  returned: success
checks:
  description: For each check its name as C(check), its C(status) (ok, warning, failed or skipped), a C(sentence), and
    what was measured as C(data).
  type: list
  elements: dict
  returned: success
"""
