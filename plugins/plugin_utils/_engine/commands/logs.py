# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a job that was started earlier."""

from __future__ import annotations

from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_job import follow_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import listing
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import described_by_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import FollowOptions
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record, merge_ranks


def follow_earlier_job(options: FollowOptions, context: CommandContext, job: str, offset: int | None) -> dict[str, Any]:
    """Follow a job that was started earlier to its end, and fetch what it left.

    Args:
        options: what is shown, what is collected, and how to stop.
        context: the command's; without an id, only a job on one of its hosts is meant.
        job: id; "" means the user's latest.
        offset: bytes of the shown logs to leave out; None means what an earlier command brought home, or nothing if
            the job had ended by then.

    Raises:
        JobError: there is no such job, or it did not end well on every rank.
    """
    if offset is not None and offset < 0:
        raise JobError(f"offset is {offset}; set it to 0, the beginning of the logs, or more")
    views, errors = listing.list_jobs(context.cluster, only=job or None)
    view = listing.with_ranks(listing.choose_job(job, views, errors, who(), hosts=context.hosts), context.cluster)
    gang, notes = listing.gang_of(view, context.cluster)
    for note in notes:
        context.say(note)
    try:
        record = Record.read(options.runs_dir, view.id)
        if record is None:
            record = Record(options.runs_dir, view.id)
            record.restore(**described_by_nodes(view.spec))
        if "ended" not in record.data:
            record.update(ranks=merge_ranks(record, gang.topology.ranks))
        logs = record.open_logs(gang.topology.nodes)
    except OSError as error:
        sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
        raise JobError(sentence) from None
    goes_on = offset is None and "ended" not in record.data
    starts = {host: log.last_line_start() if goes_on else offset or 0 for host, log in logs.items()}
    context.say(
        f"{view.id}: {view.spec.get('script', '')} on {pluralize(len(view.taking_part), 'node')}, "
        f"{view.state}: {view.ranks}"
    )
    return follow_job(options, context, gang, record, logs, starts)
