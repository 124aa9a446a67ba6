# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A new job goes on from an earlier one's newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import checkpoints, roster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.history import described_by_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record


@dataclass(frozen=True)
class Origin:
    """What a job goes on from.

    Attributes:
        about: what job.json or spec.json say of the earlier job.
        gang: its nodes.
        checkpoint: the newest complete one on any of them.
    """

    about: Mapping[str, Any]
    gang: Gang
    checkpoint: checkpoints.Checkpoint

    def fetch(self, runs: Path) -> Path:
        """Bring the checkpoint to the controller and return its file; raises JobError if that cannot be done."""
        return checkpoints.fetch(self.gang, self.checkpoint, runs / ".checkpoints" / self.checkpoint.sha256)

    def distribute(self, gang: Gang, file: Path) -> list[str]:
        """Put the checkpoint on all nodes of a prepared job; return what the user should know.

        Args:
            gang: the prepared job's nodes.
            file: from ``fetch``; it is removed.

        Raises:
            JobError: names every node that does not have it now.
        """
        checkpoint = self.checkpoint
        checkpoints.distribute(gang, file, checkpoint, self.gang.job_id)
        file.unlink()
        what = f"step {checkpoint.step} of {self.gang.job_id}, which {checkpoint.host} had"
        return [*checkpoint.notes, f"CKPT_PATH is {checkpoint.path} ({what})"]


def find_origin(job: str, runs: Path, desk: Desk) -> Origin:
    """Return what a job can go on from.

    Args:
        job: id of the earlier job.
        runs: folder of the controller's records.
        desk: the command's.

    Raises:
        JobError: there is no such job, it still runs, or it has no complete checkpoint.
    """
    views, errors = roster.look(desk.cluster, desk.open_channel, only=job)
    view = roster.choose(job, views, errors)
    if view.state in GOING_ON:
        raise JobError(
            f"job {view.id} still runs ({view.ranks}), so it cannot be gone on from; stop it first: "
            f"ansible-playbook stop.yml -e job={view.id}"
        )
    known = Record.read(runs, job)
    gang, notes = roster.gang_of(view, desk.cluster, desk.open_channel)
    for note in notes:
        desk.say(note)
    about = {**described_by_nodes(view.spec), **(known.data if known else {})}
    return Origin(about, gang, checkpoints.find(gang))
