# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the commands do: run a job, follow one again, stop one."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import checkpoints, roster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.attend import (
    Desk,
    come_back,
    result,
    see_through,
    with_others,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.command_line import without_values
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError, in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang, OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.history import (
    described_by_nodes,
    earlier_job,
    store_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order, described, make_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings

# -------------------------------------------------------------------------------------------------------------- running


def plan(order: Order, desk: Desk) -> tuple[Launch, checkpoints.Checkpoint | None, Gang | None]:
    """Check what the user asked for, and return what is to be launched, and what it is to go on from.

    Raises:
        JobError: bad input, or nothing to go on from.
    """
    order.check()
    earlier = dict(earlier_job(order.rerun, order.runs, desk.hosts))
    checkpoint, former = None, None
    if order.resume:
        views, errors = roster.look(desk.cluster, desk.open_channel, only=order.resume)
        view = roster.choose(order.resume, views, errors)
        if view.state in GOING_ON:
            raise JobError(
                f"job {view.id} still runs ({view.ranks}), so it cannot be gone on from; stop it first: "
                f"ansible-playbook stop.yml -e job={view.id}"
            )
        known = Record.read(order.runs, order.resume)
        earlier = earlier or {**described_by_nodes(view.spec), **(known.data if known else {})}
        former, notes = roster.gang_of(view, desk.cluster, desk.open_channel)
        for note in notes:
            desk.say(note)
        checkpoint = checkpoints.find(former)
    job = make_job(order, earlier, checkpoint.path if checkpoint else "")
    return Launch(job, desk.settings, desk.open_channel), checkpoint, former


def check(order: Order, desk: Desk) -> int:
    """Look whether the job could start now, and start nothing; return the world size."""
    launch, _checkpoint, _former = plan(order, desk)
    return launch.prepare(dry=True).world_size


def run(order: Order, desk: Desk) -> dict[str, Any]:
    """Start a job everywhere, follow it to its end, and bring home what it left.

    Returns:
        The job's id, its folder, world size and state.

    Raises:
        JobError: the job did not start, or did not end well on every rank. Its record is complete all the same.
        Interrupted: the user gave up before it was started; nothing was.
    """
    launch, checkpoint, former = plan(order, desk)
    gang = launch.gang
    record = Record(order.runs, gang.job_id)
    with desk.interrupts.raising():
        if checkpoint and former:  # before any node is held: it may take long
            file = checkpoints.fetch(former, checkpoint, order.runs / ".checkpoints" / checkpoint.sha256)
        topology = launch.prepare(say=desk.say)
        try:
            record.create(state="prepared", command=without_values(sys.argv), **described(launch.job, order))
            logs = _open_logs(record, gang)
            if checkpoint and former:
                checkpoints.distribute(gang, file, checkpoint, former.job_id)
                file.unlink()
                launch.notes += [*checkpoint.notes, _origin(checkpoint, former.job_id)]
        except OSError as error:
            launch.discard()
            sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
            raise JobError(sentence) from None
        except BaseException:
            launch.discard()
            raise
    for note in launch.notes:
        desk.say(note)
    head = topology.head
    desk.say(
        f"{gang.job_id}: {launch.job.script} on {topology.world_size} node{'s' if topology.world_size > 1 else ''}, "
        f"MASTER_ADDR {head.address}, MASTER_PORT {head.settings.master_port}"
    )
    try:
        launch.start()
    except JobError as error:
        record.note(desk.say, state="failed", cause=str(error))
        raise
    record.note(
        desk.say,
        state="running",
        versions={"ansible": ansible_version, "python": platform.python_version()},
        world_size=topology.world_size,
        master_addr=head.address,
        master_port=head.settings.master_port,
        ranks=gang.topology.ranks,
    )
    try:
        store_bundle(order.runs, launch.job.bundle)
    except OSError as error:
        desk.say(f"the job's code cannot be kept here for a rerun: {error}; free some space, or set job_runs_dir")
    if order.detach:
        desk.say(come_back(gang.job_id))
        return result(record)
    return see_through(order, desk, gang, record, logs, {})


def _origin(checkpoint: checkpoints.Checkpoint, job_id: str) -> str:
    return f"goes on from {job_id}, step {checkpoint.step}: {checkpoint.path}, which {checkpoint.host} had"


def _open_logs(record: Record, gang: Gang) -> dict[str, RankLog]:
    return {node.host: RankLog(record.log_path(node)) for node in gang.topology.nodes}


# ------------------------------------------------------------------------------------------------------------ following


def follow_again(order: Order, desk: Desk, job: str, offset: int | None) -> dict[str, Any]:
    """Follow a job that was started earlier to its end, and bring home what it left.

    Args:
        order: of its options only those count that say what is shown, what is collected, and how to stop.
        desk: the command's.
        job: id; "" means the latest.
        offset: bytes of the shown logs to leave out; None means what an earlier command brought home, or nothing if
            the job had ended by then.

    Raises:
        JobError: there is no such job, or it did not end well on every rank.
    """
    if offset is not None and offset < 0:
        raise JobError(f"offset is {offset}; set it to 0, the beginning of the logs, or more")
    views, errors = roster.look(desk.cluster, desk.open_channel, only=job or None)
    view = _whole(roster.choose(job, views, errors), desk.cluster, desk.open_channel)
    gang, notes = roster.gang_of(view, desk.cluster, desk.open_channel)
    for note in notes:
        desk.say(note)
    try:
        record = Record.read(order.runs, view.id)
        if record is None:
            record = Record(order.runs, view.id)
            record.create(**described_by_nodes(view.spec))
        if "ended" not in record.data:
            record.update(ranks=with_others(record, gang.topology.ranks))
        logs = _open_logs(record, gang)
    except OSError as error:
        sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
        raise JobError(sentence) from None
    goes_on = offset is None and "ended" not in record.data
    starts = {host: log.last_line_start() if goes_on else offset or 0 for host, log in logs.items()}
    desk.say(f"{view.id}: {view.spec.get('script', '')} on {len(view.parts)} nodes, {view.ranks}")
    return see_through(order, desk, gang, record, logs, starts)


def _whole(view: roster.JobView, cluster: Sequence[NodeSettings], open_channel: OpenChannel) -> roster.JobView:
    """Return a job with its ranks' hosts and addresses, which in the list of all jobs only rank 0 says."""
    if "ranks" in view.spec:
        return view
    views, errors = roster.look(cluster, open_channel, only=view.id)
    return roster.choose(view.id, views, errors)


# ------------------------------------------------------------------------------------------------------------- stopping


def stop(
    say: Callable[[str], None],
    cluster: Sequence[NodeSettings],
    open_channel: OpenChannel,
    job: str,
    runs: Path,
    grace_seconds: int,
) -> dict[str, Any]:
    """End a job on all its nodes, and make sure that no process of it is left.

    Args:
        say: shows text at once.
        cluster: settings of all hosts of the cluster, in inventory order.
        open_channel: gives a new channel to a host.
        job: id; "" means the latest that runs.
        runs: folder of the controller's records.
        grace_seconds: between TERM and KILL.

    Raises:
        JobError: there is none, a node did not answer, or a process could not be ended.
    """
    views, errors = roster.look(cluster, open_channel, only=job or None)
    view = _whole(roster.choose(job, views, errors, going_on=True), cluster, open_channel)
    gang, notes = roster.gang_of(view, cluster, open_channel)
    for note in notes:
        say(note)
    replies, failed = gang.stop(grace_seconds)
    left = {host: reply["left"] for host, (reply, _payload) in replies.items() if reply["left"]}
    stubborn = [
        NodeError(host, f"still runs processes of the job that cannot be ended: {', '.join(map(str, pids))}")
        for host, pids in left.items()
    ]
    if failed or stubborn:
        done = ", ".join(host for host in replies if host not in left) or "no node"
        consequence = f"Job {view.id} is stopped on {done}; run this again for the others."
        raise in_one([*failed.values(), *stubborn], consequence)
    record = Record.read(runs, view.id)
    if record and record.data.get("state") in GOING_ON:
        record.note(say, state="stopped")
    states = {host: reply["state"] for host, (reply, _payload) in replies.items()}
    return {"job": view.id, "states": states, "was_running": view.state in (*GOING_ON, "unknown")}
