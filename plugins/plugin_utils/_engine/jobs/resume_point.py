# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the checkpoint that a new job goes on from, and put it on all nodes."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity, who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import checkpoints, listing
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import described_by_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.named_checkpoint import (
    HERE,
    find_named,
    is_absolute,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record


@dataclass(frozen=True)
class ResumePoint:
    """What a job goes on from.

    Attributes:
        about: what job.json or spec.json say of the earlier job; empty if there is none.
        gang: the nodes that were asked: the earlier job's, or this one's.
        path: of CKPT_PATH: relative to the working directory, or absolute.
        step: the global step; None if it is not known.
        files: what the checkpoint consists of; empty if every node has it.
        description: where it was found, a clause.
        notes: what the user should know.
    """

    about: Mapping[str, Any]
    gang: Gang
    path: str
    step: int | None
    files: Sequence[checkpoints.Checkpoint]
    description: str
    notes: Sequence[str]

    def fetch(self, runs: Path) -> list[Path]:
        """Bring the files to the controller and return them; raises JobError if that cannot be done."""
        return [
            Path(file.source)
            if file.host == HERE
            else checkpoints.fetch(self.gang, file, runs / ".checkpoints" / file.sha256)
            for file in self.files
        ]

    def distribute(self, gang: Gang, files: Sequence[Path]) -> list[str]:
        """Put the checkpoint on all nodes of a prepared job; return what the user should know.

        Args:
            gang: the prepared job's nodes.
            files: from ``fetch``; what it brought is removed.

        Raises:
            JobError: names every node that does not have it now.
        """
        for file, checkpoint in zip(files, self.files, strict=True):
            is_here = checkpoint.host == HERE
            about = dataclasses.replace(checkpoint, source="") if is_here else checkpoint
            checkpoints.distribute(gang, file, about, "" if is_here else self.gang.job_id)
        for file, checkpoint in zip(files, self.files, strict=True):
            if checkpoint.host != HERE:
                file.unlink(missing_ok=True)  # two files may be the same
        return [*self.notes, f"CKPT_PATH is {self.path} ({self.description})"]


def find_resume_point(job: str, named: str, runs: Path, context: CommandContext) -> ResumePoint:
    """Return what a job can go on from.

    Args:
        job: id of the earlier job, or "".
        named: the path of the checkpoint, or "": then it is the earlier job's newest.
        runs: folder of the controller's records.
        context: the command's.

    Raises:
        JobError: there is no such job, it still runs, or there is no such checkpoint.
    """
    if not job:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return _named(named, {}, Gang(Identity(now, "", who()), context.nodes), context)
    views, errors = listing.list_jobs(context.cluster, only=job)
    view = listing.choose_job(job, views, errors)
    if view.state in GOING_ON:
        raise JobError(
            f"job {view.id} still runs ({view.ranks}), so it cannot be gone on from; stop it first: "
            f"ansible-playbook stop.yml -e job={view.id}"
        )
    known = Record.read(runs, job)
    gang, notes = listing.gang_of(view, context.cluster)
    for note in notes:
        context.say(note)
    about = {**described_by_nodes(view.spec), **(known.data if known else {})}
    if named:
        if is_absolute(named):
            settings = {**gang.settings, **{one.host: one for one in context.nodes.settings}}
            gang = Gang(gang.identity, context.cluster.of(list(settings.values())))
        return _named(named, about, gang, context)
    found = checkpoints.find(gang)
    description = f"step {found.step} of {job}, which {found.host} had"
    return ResumePoint(about, gang, found.path, found.step, [found], description, found.notes)


def _named(named: str, about: Mapping[str, Any], gang: Gang, context: CommandContext) -> ResumePoint:
    found = find_named(named, gang, gang.job_id, context.hosts)
    return ResumePoint(about, gang, found.path, None, found.files, found.description, found.notes)
