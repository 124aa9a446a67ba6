# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of every action that follows a job to its end."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ansible-doc."""

    DOCUMENTATION = r"""
options:
  logs:
    description: Whose output is shown live. Every log is kept whole in O(runs_dir).
    type: str
    choices: [head, all, none]
    default: head
  collect:
    description: Whose artifacts are fetched, those of rank 0, of all ranks, or none.
    type: str
    choices: [head, all, none]
    default: head
  on_interrupt:
    description:
      - What Ctrl-C does, leave the job running (a second one stops it), or stop it at once.
      - The same holds for TERM, HUP and KILL to ansible-playbook, by which ansible-runner, AWX and CI systems cancel; a
        second Ctrl-C is then not waited for.
    type: str
    choices: [detach, stop]
    default: detach
  keep:
    description: How many of the user's own ended jobs stay on each node afterwards. All, if it is not given.
    type: int
  runs_dir:
    description: The folder of the records, one folder per job, relative to the working directory.
    type: path
    default: runs
  node_timeout_seconds:
    description:
      - A node that sends the other nodes no heartbeat for this long is lost, which ends the job. One that only this
        machine gets no reply from is named, and asked again.
    type: int
    default: 30
  stop_grace_seconds:
    description: The time between SIGTERM and SIGKILL when the job is stopped.
    type: int
    default: 10
"""
