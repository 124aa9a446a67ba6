# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""All jobs on the cluster, as the nodes themselves know them: which there are, how each rank fares, and its gang."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang, Identity, OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import printable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node, Topology

LOOK_SECONDS = 30
"""After this long without an answer a node counts as unreachable."""
NEWEST = 20
"""How many jobs of each node are looked at."""


@dataclass
class Part:
    """One rank's part of a job, as its node knows it.

    Attributes:
        host: inventory name.
        state: prepared, running, succeeded, failed, stopped, lost, or unknown (its node did not answer).
        record: the node's words: started, ended, exit_code, signal, because.
        last_line: of its log.
        log_bytes: of its log.
    """

    host: str
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)
    last_line: str = ""
    log_bytes: int = 0


@dataclass
class JobView:
    """A job, put together from its nodes.

    Attributes:
        id: the job's.
        spec: as the launch wrote it on each node; empty for a job that was never started.
        parts: by rank.
    """

    id: str
    spec: Mapping[str, Any]
    parts: dict[int, Part]

    @property
    def state(self) -> str:
        """The job's, from its ranks'."""
        # A rank that was stopped because of another says so: that one's node may be gone.
        states = {"failed" if part.record.get("because") else part.state for part in self.parts.values()}
        for state in ("running", "prepared", "failed", "lost", "unknown", "stopped"):
            if state in states:
                return "failed" if state == "lost" else state
        return "succeeded"

    @property
    def since(self) -> float | None:
        """When it came to this state, seconds since 1970, by its nodes' clocks; None if no rank has started."""
        records = [part.record for part in self.parts.values()]
        started = [record["started"] for record in records if record.get("started")]
        ended = [record["ended"] for record in records if record.get("ended")]
        return max(ended) if ended and self.state not in GOING_ON else min(started, default=None)

    @property
    def ranks(self) -> str:
        """How its ranks fare, in words: ``4 running`` or ``1 failed, 3 stopped``."""
        counts: dict[str, int] = {}
        for part in self.parts.values():
            counts[part.state] = counts.get(part.state, 0) + 1
        return ", ".join(f"{count} {state}" for state, count in counts.items())


def look(
    settings: Sequence[NodeSettings], open_channel: OpenChannel, only: str | None = None
) -> tuple[list[JobView], dict[str, NodeError]]:
    """Ask all nodes for their jobs.

    Args:
        settings: of the cluster's hosts.
        open_channel: gives a new channel to a host.
        only: one job's id; None means the newest of every node.

    Returns:
        The jobs, the newest first, and the nodes that did not answer.
    """

    def ask(one: NodeSettings) -> list[dict[str, Any]]:
        request = {"op": "jobs", "directory": one.directory, "user": one.user, "newest": NEWEST, "only": only}
        reply, _payload = open_channel(one.host).call(request)
        jobs: list[dict[str, Any]] = reply["jobs"]
        return jobs

    answers, errors = fan_out({one.host: one for one in settings}, ask, LOOK_SECONDS)
    views: dict[str, JobView] = {}
    for host, jobs in answers.items():
        for job in jobs:
            spec = job["spec"] or {}
            view = views.setdefault(job["id"], JobView(job["id"], spec, {}))
            view.spec = view.spec or spec
            rank = spec.get("rank", len(view.parts))
            line = printable(job["last_line"])
            view.parts[rank] = Part(host, job["state"]["state"], job["state"], line, job["size"])
    for view in views.values():
        for known in view.spec.get("ranks", []):
            gone = known["host"] in errors
            view.parts.setdefault(known["rank"], Part(known["host"], "unknown" if gone else "lost"))
        view.parts = dict(sorted(view.parts.items()))
    return sorted(views.values(), key=lambda view: view.id, reverse=True), errors


def choose(job: str, views: Sequence[JobView], errors: Mapping[str, NodeError], going_on: bool = False) -> JobView:
    """Return the job of that id; of an empty one, the latest.

    Args:
        job: id, or "".
        views: the newest first.
        errors: nodes that did not answer.
        going_on: only jobs that have not ended are meant by "the latest".

    Raises:
        JobError: there is none.
    """
    silent = "".join(f"; {error}" for error in errors.values())
    if job:
        for view in views:
            if view.id == job:
                return view
        raise JobError(f"no node has a job {job}; ansible-playbook status.yml lists them{silent}")
    for view in views:
        if view.spec and (not going_on or view.state in (*GOING_ON, "unknown")):
            return view
    raise JobError(f"no job {'runs' if going_on else 'was ever started'} on these nodes{silent}")


def gang_of(view: JobView, settings: Sequence[NodeSettings], open_channel: OpenChannel) -> Gang:
    """Return the gang of a job that was started earlier.

    Raises:
        JobError: one of its nodes is not in the inventory.
    """
    known = {one.host: one for one in settings}
    nodes = []
    for rank, part in view.parts.items():
        if part.host not in known:
            raise JobError(f"job {view.id} runs on {part.host} too, which is not in the inventory; name it with -i")
        addresses = {one["rank"]: one["address"] for one in view.spec.get("ranks", [])}
        nodes.append(Node(rank, known[part.host], addresses.get(rank, ""), ""))
    spec = {"start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "user": "", **view.spec}
    gang = Gang(Identity(spec["start"], view.id, spec["user"]), [node.settings for node in nodes], open_channel)
    gang.topology = Topology(nodes)
    return gang


def as_data(views: Sequence[JobView], errors: Mapping[str, NodeError]) -> dict[str, Any]:
    """Return what is known, for machines."""
    return {
        "jobs": [
            {
                "id": view.id,
                "script": view.spec.get("script"),
                "user": view.spec.get("user"),
                "started": view.spec.get("start"),
                "state": view.state,
                "since": view.since,
                "world_size": view.spec.get("world_size"),
                "ranks": [
                    {
                        "rank": rank,
                        "host": part.host,
                        "state": part.state,
                        "exit_code": part.record.get("exit_code"),
                        "signal": part.record.get("signal"),
                        "because": part.record.get("because"),
                        "log_bytes": part.log_bytes,
                        "last_line": part.last_line,
                    }
                    for rank, part in view.parts.items()
                ],
            }
            for view in views
        ],
        "unreachable": {host: str(error) for host, error in errors.items()},
    }


def as_table(views: Sequence[JobView], errors: Mapping[str, NodeError], width: int) -> str:
    """Return what is known as a table of at most ``width`` columns, which the last line of rank 0 fills."""
    rows = [("JOB", "SCRIPT", "USER", "STATE", "SINCE", "RANKS", "LAST LINE")]
    for view in views:
        since = datetime.datetime.fromtimestamp(view.since).strftime("%m-%d %H:%M:%S") if view.since else "-"
        last = next((part.last_line for part in view.parts.values() if part.last_line), "")
        spec = view.spec
        rows.append((view.id, spec.get("script", "-"), spec.get("user", "-"), view.state, since, view.ranks, last))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]])[:width].rstrip())
    if not views:
        lines = ["no jobs"]
    return "\n".join([*lines, *map(str, errors.values())])
