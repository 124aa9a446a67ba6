# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job that was started earlier is stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import roster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record, who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings


def stop(
    say: Callable[[str], None],
    cluster: Sequence[NodeSettings],
    open_channel: OpenChannel,
    job: str,
    runs: Path,
    grace_seconds: int,
    hosts: Collection[str] | None = None,
) -> dict[str, Any]:
    """End a job on all its nodes, and make sure that no process of it is left.

    Args:
        say: shows text at once.
        cluster: settings of all hosts of the cluster, in inventory order.
        open_channel: gives a new channel to a host.
        job: id; "" means the user's latest that runs.
        runs: folder of the controller's records.
        grace_seconds: between TERM and KILL.
        hosts: without an id, only a job that runs on one of them is meant; None means all.

    Raises:
        JobError: there is none, a node did not answer, or a process could not be ended.
    """
    views, errors = roster.look(cluster, open_channel, only=job or None)
    view = roster.whole(roster.choose(job, views, errors, who(), True, hosts), cluster, open_channel)
    gang, notes = roster.gang_of(view, cluster, open_channel)
    for note in notes:
        say(note)
    replies, failed = gang.end(grace_seconds)
    if not view.spec:  # never started: a node that did not answer may hold it too, and no other can say so
        failed = {**errors, **failed}
    if failed:
        done = ", ".join(replies) or "no node"
        raise in_one(failed.values(), f"Job {view.id} is stopped on {done}; run this again for the others.")
    states = {host: reply["state"] for host, (reply, _payload) in replies.items()}
    record = Record.read(runs, view.id)
    # One that had ended before has its end on the nodes, for logs.yml.
    if record and record.data.get("state") in GOING_ON and {"stopped", "prepared"} & set(states.values()):
        record.note(say, state="stopped")
    may_have_run = [part.host for part in view.parts.values() if part.state in (*GOING_ON, "unknown")]
    return {"job": view.id, "states": states, "was_running": any(host in states for host in may_have_run)}
