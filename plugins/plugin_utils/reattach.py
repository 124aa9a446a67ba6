# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job that was started earlier is followed again."""

from __future__ import annotations

from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils import roster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.attend import see_through, with_others
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.history import described_by_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record, who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import counted


def follow_again(order: Order, desk: Desk, job: str, offset: int | None) -> dict[str, Any]:
    """Follow a job that was started earlier to its end, and bring home what it left.

    Args:
        order: of its options only those count that say what is shown, what is collected, and how to stop.
        desk: the command's; without an id, only a job on one of its hosts is meant.
        job: id; "" means the user's latest.
        offset: bytes of the shown logs to leave out; None means what an earlier command brought home, or nothing if
            the job had ended by then.

    Raises:
        JobError: there is no such job, or it did not end well on every rank.
    """
    if offset is not None and offset < 0:
        raise JobError(f"offset is {offset}; set it to 0, the beginning of the logs, or more")
    views, errors = roster.look(desk.cluster, desk.open_channel, only=job or None)
    view = roster.whole(roster.choose(job, views, errors, who(), hosts=desk.hosts), desk.cluster, desk.open_channel)
    gang, notes = roster.gang_of(view, desk.cluster, desk.open_channel)
    for note in notes:
        desk.say(note)
    try:
        record = Record.read(order.runs, view.id)
        if record is None:
            record = Record(order.runs, view.id)
            record.restore(**described_by_nodes(view.spec))
        if "ended" not in record.data:
            record.update(ranks=with_others(record, gang.topology.ranks))
        logs = record.open_logs(gang.topology.nodes)
    except OSError as error:
        sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
        raise JobError(sentence) from None
    goes_on = offset is None and "ended" not in record.data
    starts = {host: log.last_line_start() if goes_on else offset or 0 for host, log in logs.items()}
    desk.say(f"{view.id}: {view.spec.get('script', '')} on {counted(len(view.parts), 'node')}, {view.ranks}")
    return see_through(order, desk, gang, record, logs, starts)
