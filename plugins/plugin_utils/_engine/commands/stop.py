# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop a job that was started earlier."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import listing
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Unreachable


def stop(
    say: Callable[[str], None],
    cluster: NodeGroup,
    job: str,
    runs: Path,
    grace_seconds: int,
    hosts: Collection[str] | None = None,
) -> dict[str, Any]:
    """End a job on all its nodes, and make sure that no process of it is left.

    Args:
        say: shows text at once.
        cluster: all its nodes.
        job: id; "" means the user's latest that runs.
        runs: folder of the controller's records.
        grace_seconds: between TERM and KILL.
        hosts: without an id, only a job that runs on one of them is meant; None means all.

    Raises:
        JobError: there is none, a node did not answer, or a process could not be ended.
    """
    views, errors = listing.list_jobs(cluster, only=job or None)
    view = listing.with_ranks(listing.choose_job(job, views, errors, who(), True, hosts), cluster)
    gang, notes = listing.gang_of(view, cluster)
    for note in notes:
        say(note)
    replies, failed = gang.end(grace_seconds)
    left_out = {part.host for place, part in view.parts.items() if view.roster and view.rank_of(place) is None}
    for host in left_out & failed.keys():
        if isinstance(failed[host], Unreachable):  # it may be gone for good
            say(f"{failed.pop(host)}; it had no part in the job's last attempt")
    if not view.spec:  # never started: a node that did not answer may hold it too, and no other can say so
        failed = {**errors, **failed}
    if failed:
        done = ", ".join(replies) or "no node"
        raise join_errors(failed.values(), f"Job {view.id} is stopped on {done}; run this again for the others.")
    states = {host: reply["state"] for host, (reply, _payload) in replies.items()}
    record = Record.read(runs, view.id)
    # One that had ended before has its end on the nodes, for logs.yml.
    if record and record.data.get("state") in GOING_ON and {"stopped", "prepared"} & set(states.values()):
        record.note(say, state="stopped")
    may_have_run = [part.host for part in view.parts.values() if part.state in (*GOING_ON, "unknown")]
    return {"job": view.id, "states": states, "was_running": any(host in states for host in may_have_run)}
