# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report the jobs on the cluster: as a table for people, as data for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.listing import JobView
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.draw_table import laid_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines, format_moment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

COLORS = {
    **{"running": "cyan", "prepared": "cyan", "succeeded": "green", "stopped": "yellow"},
    **{"failed": "red", "unknown": "magenta"},
}
"""Of a job's state on a terminal."""


def as_data(views: Sequence[JobView], errors: Mapping[str, NodeError]) -> dict[str, Any]:
    """Return what is known, for machines."""
    return {
        "jobs": [
            {
                "id": view.id,
                "script": view.spec.get("script"),
                "user": view.user or None,
                "started": view.spec.get("start"),
                "state": view.state,
                "since": view.since,
                "nodes": len(view.taking_part),
                "world_size": job_warnings.world_size(len(view.taking_part), view.spec.get("gang", True), view.met),
                "met": view.met,
                "warning": view.warning or None,
                "notices": list(view.notices),
                "ranks": [
                    {
                        "rank": view.rank_of(place),
                        "host": part.host,
                        "state": part.state,
                        "exit_code": part.record.get("exit_code"),
                        "signal": part.record.get("signal"),
                        "because": part.record.get("because"),
                        "log_bytes": part.log_bytes,
                        "last_line": part.last_line,
                    }
                    for place, part in view.parts.items()
                ],
            }
            for view in views
        ],
        # Of a result's "unreachable" Ansible takes it that the host which ran the task is.
        "silent": {host: str(error) for host, error in errors.items()},
    }


def as_table(views: Sequence[JobView], errors: Mapping[str, NodeError], width: int, is_terminal: bool = False) -> str:
    """Return what is known as a table of at most ``width`` columns, which the last line of rank 0 fills."""
    rows = []
    for view in views:
        since = format_moment(view.since)
        last = next((part.last_line for part in view.parts.values() if part.last_line), "")
        spec = view.spec
        rows.append((view.id, spec.get("script", "-"), view.user or "-", view.state, since, view.ranks, last))
    heads = ("JOB", "SCRIPT", "USER", "STATE", "SINCE", "RANKS", "LAST LINE")
    if is_terminal:
        lines = laid_out(heads, rows, width, COLORS, cut=True)
    else:
        lines = [line[:width].rstrip() for line in laid_out(heads, rows)]
    if not views:
        lines = ["no jobs on the nodes that answered, if any did"] if errors else ["no jobs"]
    warnings = [f"{view.id}: {view.warning}" for view in views if view.warning]
    return "\n".join([*lines, *map(escape_lines, warnings), *map(str, errors.values())])
