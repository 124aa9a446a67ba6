# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the jobs on the cluster, as the nodes know them."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, join_names, printable
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    GOING_ON,
    SPARE,
    UNUSED,
    is_job_id,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import (
    Identity,
    check_job_id,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import format_moment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import is_address

LIST_SECONDS = 30
"""After this long without an answer a node counts as unreachable."""
NEWEST = 10
"""How many jobs of each node are listed."""
MOST_RANKS = 10_000
"""A job that claims to have more has no unknown ranks filled in."""


@dataclass
class Part:
    """One rank's part of a job, as its node knows it.

    Attributes:
        host: inventory name; "" if only rank 0, which did not answer, could say it.
        state: prepared, running, succeeded, failed, stopped, lost, spare (it waits to take the place of a lost one),
            unused (it had no part in the last attempt), unknown (its node did not answer, and
            the head of its gang does not know it), or removed (it did, but the job lies there no more).
        record: from the node's reply: started, ended, exit_code, signal, because, error.
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
        parts: by rank, spares last; a spare that has taken a node's place is still among these.
        user: who started it; "" if no node can say so.
        notices: what its head has found out of ranks that print nothing, each with its time, the oldest first.
        roster: as its head says: which of the parts take part, in the order of NODE_RANK; empty if that is not known.
    """

    id: str
    spec: Mapping[str, Any]
    parts: dict[int, Part]
    user: str = ""
    notices: Sequence[str] = ()
    roster: Sequence[int] = ()

    @property
    def taking_part(self) -> list[Part]:
        """The parts that are no spares, in the order of NODE_RANK."""
        return [self.parts[place] for place in self.roster or self.parts if self._takes_part(place)]

    def _takes_part(self, place: int) -> bool:
        """Return whether a part is there, and no spare; if the head is not there to say so, one that runs is none."""
        part = self.parts.get(place)
        return part is not None and (bool(self.roster) or not is_spare(self.spec, place) or part.state == "running")

    def rank_of(self, place: int) -> int | None:
        """Return the NODE_RANK of one of the parts; None for a spare, or one whose place a spare has taken."""
        if self.roster:
            return self.roster.index(place) if place in self.roster else None
        return None if is_spare(self.spec, place) else place

    @property
    def state(self) -> str:
        """The job's, from its ranks'."""
        # A rank that was stopped because of another says so: that one's node may be gone.
        states = {"failed" if part.record.get("because") else part.state for part in self.taking_part}
        states.discard("removed")
        for state in ("running", "prepared", "failed", "lost", "unknown", "stopped"):
            if state in states:
                return "failed" if state == "lost" else state
        return "succeeded"

    @property
    def warning(self) -> str:
        """What its ranks, running or ended well, were not seen to do, and what the head found out last; or ""."""
        if self.state not in ("running", "succeeded"):
            return ""
        unseen = job_warnings.warning(self.spec, self._noticed, ended=self.state == "succeeded")
        return "; ".join(filter(None, [unseen, *(self.notices[-1:] if self.state == "running" else ())]))

    @property
    def met(self) -> bool | None:
        """Whether all its ranks met; None if that is not known."""
        return job_warnings.met(self.spec, self._noticed)

    @property
    def _noticed(self) -> job_warnings.Parts:
        return [(part.host, part.record) for part in self.taking_part]

    @property
    def since(self) -> float | None:
        """When it came to this state, seconds since 1970, by its nodes' clocks; None if no rank has started."""
        records = [part.record for part in self.taking_part]
        started = [record["started"] for record in records if record.get("started")]
        ended = [record["ended"] for record in records if record.get("ended")]
        return max(ended) if ended and self.state not in GOING_ON else min(started, default=None)

    @property
    def ranks(self) -> str:
        """How many ranks are in which state: ``4 running`` or ``1 failed, 3 stopped``."""
        counts: dict[str, int] = {}
        for part in self.parts.values():
            counts[part.state] = counts.get(part.state, 0) + 1
        return ", ".join(f"{count} {state}" for state, count in counts.items())


def list_jobs(nodes: NodeGroup, only: str | None = None) -> tuple[list[JobView], dict[str, NodeError]]:
    """Ask all nodes for their jobs.

    Args:
        nodes: the cluster's.
        only: one job's id; None means the newest of every node.

    Returns:
        The jobs, the newest first, and the nodes that did not answer. What nodes say is ready to be shown.

    Raises:
        JobError: ``only`` is no job's id.
    """
    if only is not None:
        check_job_id(only)

    def ask(one: NodeSettings) -> list[dict[str, Any]]:
        request = {"op": "list_jobs", "directory": one.directory, "user": one.user, "newest": NEWEST, "only": only}
        reply, _payload = nodes.open_channel(one.host).call(request)
        jobs: list[dict[str, Any]] = reply["jobs"]
        return jobs

    answers, errors = fan_out({one.host: one for one in nodes.settings}, ask, LIST_SECONDS)
    found: dict[str, list[tuple[Part, dict[str, Any]]]] = {}
    users: dict[str, str] = {}
    told: dict[str, list[str]] = {}  # by its head, of all ranks of a job
    rosters: dict[str, list[int]] = {}
    notices: dict[str, list[str]] = {}
    for host, jobs in answers.items():
        for job in jobs:
            spec = _readable(job["spec"] or {})
            if not is_job_id(job["id"]) or only not in (None, job["id"]) or not _has_rank(spec):
                continue
            state = _readable(job["state"])
            part = Part(host, state["state"], state, printable(job["last_line"].encode()), job["size"])
            found.setdefault(job["id"], []).append((part, spec))
            if spec.get("rank") == 0 and "gang" in job:
                # Of a job that has ended on its head, one that still runs is one that the gang has lost.
                goes_on = state["state"] in GOING_ON
                states = [one["state"] for one in job["gang"]["ranks"]]
                told[job["id"]] = [one if goes_on or one != "running" else "unknown" for one in states]
                rosters[job["id"]] = job["gang"]["roster"]
                notices[job["id"]] = [f"{format_moment(at)} {escape(text)}" for at, text in job["gang"]["notices"]]
            # While a job holds a node, that is written down where the job cannot change it.
            users[job["id"]] = escape(job["user"]) or users.get(job["id"], "") or spec.get("user", "")
    views = [
        _view(
            JobView(job, {}, {}, users[job], notices.get(job, []), rosters.get(job, [])),
            parts,
            answers.keys(),
            told.get(job, []) if errors else None,
        )
        for job, parts in found.items()
    ]
    return sorted(views, key=lambda view: view.id, reverse=True), errors


def _readable(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's reply about a job, ready to be shown, without a start that is no time, and unsound ranks."""
    known: dict[str, Any] = {name: escape(value) if isinstance(value, str) else value for name, value in reply.items()}
    if "ranks" in known and not _are_sound(known["ranks"], _count_nodes(known)):
        del known["ranks"]
    try:
        datetime.datetime.fromisoformat(known.get("start", "")).timestamp()
    except (ValueError, OverflowError):
        known.pop("start", None)
    return known


def _count_nodes(spec: Mapping[str, Any]) -> int:
    """Return how many nodes a job has, its spares among them; 0 if its spec.json does not say so."""
    count: int = spec.get("world_size", 0) + max(0, spec.get("spares", 0))
    return count


def is_spare(spec: Mapping[str, Any], rank: int) -> bool:
    """Return whether a node was one of a job's spares when it began."""
    return bool(spec.get("world_size", 0) <= rank < _count_nodes(spec))


def _are_sound(ranks: Sequence[Mapping[str, Any]], count: int) -> bool:
    """Whether each of so many ranks has a host and an address of its own; the job's user can write anything."""
    return (
        sorted(one["rank"] for one in ranks) == list(range(min(len(ranks), MOST_RANKS)))
        and len(ranks) == count
        and all(is_address(one["address"]) for one in ranks)
        and all(len({one[name] for one in ranks}) == len(ranks) for name in ("host", "address"))
    )


def _has_rank(spec: Mapping[str, Any]) -> bool:
    """Whether its rank is one of its world's; a job that was never started has none yet."""
    rank = spec.get("rank")
    if not isinstance(rank, int) or isinstance(rank, bool):
        return not spec
    return 0 <= rank < _count_nodes(spec)


def _view(
    known: JobView,
    found: Sequence[tuple[Part, dict[str, Any]]],
    answered: Collection[str],
    told: list[str] | None,
) -> JobView:
    """Put a job together from its nodes' replies.

    Args:
        known: the job, without its spec and parts.
        found: the ranks of the nodes that replied, each with its spec.
        answered: the nodes that replied, whether they have the job or not.
        told: what the gang's head says of all ranks; None if every node replied.
    """
    specs = [spec for _part, spec in found if spec]
    spec = next((spec for spec in specs if "ranks" in spec), specs[0] if specs else {})
    parts: dict[int, Part] = {}
    for part, own in found:
        if own:
            parts.setdefault(own["rank"], part)
    ranks = {one["host"]: one["rank"] for one in spec.get("ranks", [])}
    for part, own in found:
        if not own:
            free = next(rank for rank in itertools.count() if rank not in parts)
            rank = ranks.get(part.host, free)
            parts[free if rank in parts else rank] = part
    for host, rank in ranks.items():
        state = "removed" if host in answered else told[rank] if told and rank < len(told) else "unknown"
        parts.setdefault(rank, Part(escape(host), state))
    if specs and "ranks" not in spec and len(parts) < _count_nodes(spec) <= MOST_RANKS:
        for rank in range(_count_nodes(spec)):
            parts.setdefault(rank, Part("", "removed" if told is None else "unknown"))
    view = replace(known, spec=spec, parts=dict(sorted(parts.items())))
    for rank, part in parts.items() if view.roster else ():
        if rank not in view.roster and part.state not in ("removed", "unknown", "lost"):
            part.state = SPARE if part.state == SPARE and view.state in GOING_ON else UNUSED
    return view


def choose_job(
    job: str,
    views: Sequence[JobView],
    errors: Mapping[str, NodeError],
    me: str = "",
    going_on: bool = False,
    hosts: Collection[str] | None = None,
) -> JobView:
    """Return the job of that id; of an empty one, the user's latest.

    Args:
        job: id, or "".
        views: the newest first.
        errors: nodes that did not answer.
        me: who asks, as ``job_identity.who`` says it.
        going_on: only jobs that have not ended are meant by "the latest"; one that may have is the last choice.
        hosts: only jobs with a part on one of them are meant by "the latest"; None means all.

    Raises:
        JobError: there is none, or only others'.
    """
    silent = "".join(f"; {error}" for error in errors.values())
    if job:
        for view in views:
            if view.id == job:
                return view
        raise JobError(f"no node has a job {job}; ansible-playbook status.yml lists them{silent}")
    meant = [view for view in views if (view.state in (*GOING_ON, "unknown") if going_on else view.spec)]
    if hosts is not None:
        meant = [view for view in meant if any(part.host in hosts for part in view.parts.values())]
    if going_on:
        meant.sort(key=lambda view: view.state == "unknown")
    for view in meant:
        if view.user == me:
            return view
    if meant:
        raise JobError(
            f"no job that {'runs' if going_on else 'is'} on these nodes was started by {me}; the latest is "
            f"{meant[0].id}, which {meant[0].user or 'somebody else'} started; if you mean that one, give -e "
            f"job={meant[0].id}{silent}"
        )
    if going_on:
        raise JobError(f"no job runs on these nodes; ansible-playbook status.yml lists those that have ended{silent}")
    raise JobError(f"no job is on these nodes; start one: ansible-playbook run.yml -e script=…{silent}")


def gang_of(view: JobView, cluster: NodeGroup) -> tuple[Gang, list[str]]:
    """Return the gang of a job that was started earlier, and notes on whom it leaves out.

    Left out are hosts that are not in the inventory, and those where the job lies no more.

    Raises:
        JobError: nobody is left.
    """
    known = {one.host: one for one in cluster.settings}
    addresses = {one["rank"]: one["address"] for one in view.spec.get("ranks", [])}
    nodes = []
    foreign = []
    for rank, part in view.parts.items():
        if part.host not in known:
            if part.state != "removed":
                foreign.append(part.host or f"the host of rank {rank}")
        elif part.state != "removed":
            nodes.append(Node(rank, known[part.host], addresses.get(rank, ""), "", is_spare(view.spec, rank)))
    notes = []
    if foreign:
        verb = "is" if len(foreign) == 1 else "are"
        notes = [
            f"job {view.id} names {join_names(foreign)}, which {verb} not in the inventory and left out; add with -i"
        ]
    if not nodes:
        raise JobError(f"no node in the inventory has a part of job {view.id}; name its nodes with -i")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    spec = {"start": now, "user": "", **view.spec}
    group = cluster.of([node.settings for node in nodes])
    return Gang(Identity(spec["start"], view.id, spec["user"]), group, Topology(nodes)), notes


def with_ranks(view: JobView, cluster: NodeGroup) -> JobView:
    """Return a job with its ranks' hosts and addresses, which in the list of all jobs only rank 0 has."""
    if "ranks" in view.spec:
        return view
    views, errors = list_jobs(cluster, only=view.id)
    return choose_job(view.id, views, errors)
