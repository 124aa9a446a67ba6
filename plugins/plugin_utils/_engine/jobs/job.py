# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe a job that is to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import (
    Identity,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import PLAIN

LAUNCHERS = ("lightning", "torchrun", "python")
"""Lightning's own and plain Python start a script once per node, torchrun once per device."""
RETRIES = 3
FAULT, ANY = "fault", "any"
"""After what a job is tried again: a fault of a machine or an operator, or also what the script did itself."""


@dataclass(frozen=True)
class Job:
    """What is to run.

    Attributes:
        identity: which job.
        bundle: the code.
        script: relative path in the bundle.
        module: name of the module that the script is, if it is started as one; else "".
        project: folder here that the code is of, as it is or was; None if that is not known.
        args: the script's arguments.
        env: environment variables besides those of the inventory; they win over these.
        node_timeout_seconds: a node silent for this long is lost.
        grace_seconds: between TERM and KILL when the job is stopped.
        stall_timeout_seconds: a job that prints nothing for so long is looked into; 0: none is.
        rendezvous_timeout_seconds: the same while its ranks may still be about to meet.
        wait_seconds: how long to wait for nodes that run another job.
        launcher: one of LAUNCHERS.
        devices: ranks per node under torchrun; None means as many as there are GPUs, or one.
        checkpoint: path relative to the working directory of the checkpoint to go on from, or "".
        companion: whether Lightning's Trainer is helped to find checkpoints, and to go on in the middle of an epoch.
        fit_goes_on: whether the first fit of Lightning's Trainer that is passed no checkpoint gets the job's; None if
            that is not known.
        retries: how many attempts may follow the first.
        retry_on: after what, FAULT or ANY.
        return_seconds: how long another attempt waits for a node that is lost to be there again.
        spares: how many of the nodes wait until one of the others is lost: the last ones.
        preflight: thresholds, and checks to be skipped; see preflight.prepared_nodes.
        gang: whether the nodes work together; else each runs the script for itself.
        uses: what the script uses, of choose_launcher.KINDS.
        reason: why this launcher was chosen, a clause; "" if the user named it.
    """

    identity: Identity
    bundle: Bundle
    script: str
    args: Sequence[str]
    env: Mapping[str, str]
    node_timeout_seconds: int
    grace_seconds: int
    stall_timeout_seconds: int = 0
    rendezvous_timeout_seconds: int = 0
    wait_seconds: int = 0
    launcher: str = LAUNCHERS[0]
    devices: int | None = None
    checkpoint: str = ""
    preflight: Mapping[str, Any] = field(default_factory=dict)
    gang: bool = True
    uses: str = PLAIN
    reason: str = ""
    module: str = ""
    project: Path | None = None
    companion: bool = True
    fit_goes_on: bool | None = None
    retries: int = 0
    retry_on: str = FAULT
    return_seconds: int = 0
    spares: int = 0
