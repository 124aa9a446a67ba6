# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the commands do: run a job, follow one again, stop one."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import (
    artifacts,
    checkpoints,
    diagnosis,
    housekeeping,
    roster,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError, in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.follow import Ending, Following
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang, OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted, Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.onlooker import Onlooker
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import (
    Order,
    described,
    described_by_nodes,
    earlier_job,
    make_job,
    store_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.screen import Screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node

SCREEN_SECONDS = 10
"""How long the end of a job waits for a slow terminal."""

PIECE_BYTES = 2**20
"""How much of a log that is here already is shown at a time."""

ROOM_SECONDS = 0.2

SHOWN: Mapping[str, Callable[[Node], bool]] = {
    "all": lambda node: True,
    "head": lambda node: node.rank == 0,
    "none": lambda node: False,
}
"""Whose output is shown live, by the option's value."""

HARMLESS = re.compile(
    r"[\w./-]+\.ya?ml|-[CDbv]+|--(check|diff|become|verbose|extra-vars|inventory|limit|forks|tags|skip-tags)|-[eilft]"
    r"|--(inventory|limit|forks|tags|skip-tags)=\S*"
    r"|(-e|--extra-vars=)?(script|project_dir|logs|launcher|devices|resume|rerun|detach|on_interrupt|wait|collect|keep"
    r"|job_\w+_(mb|seconds|dir))=\S*"
)
"""Words of a command line that hold no secret. Of an option's abbreviation nothing is known, nor of other variables."""
WITH_HARMLESS_VALUE = re.compile(r"-[ilft]|--(inventory|limit|forks|tags|skip-tags)")
"""Options whose next word holds none."""


class Stopped(JobError):
    """The job was stopped on request: it neither failed nor succeeded."""


@dataclass(frozen=True)
class Desk:
    """What every command works with.

    Attributes:
        say: shows text at once.
        interrupts: what the user did to the playbook meanwhile.
        cluster: settings of all hosts of the cluster, in inventory order.
        hosts: those that take part.
        open_channel: gives a new channel to a host.
    """

    say: Callable[[str], None]
    interrupts: Interrupts
    cluster: Sequence[NodeSettings]
    hosts: Sequence[str]
    open_channel: OpenChannel

    @property
    def settings(self) -> list[NodeSettings]:
        """Of the hosts that take part."""
        hosts = set(self.hosts)
        return [one for one in self.cluster if one.host in hosts]


# -------------------------------------------------------------------------------------------------------------- running


def plan(order: Order, desk: Desk) -> tuple[Launch, checkpoints.Checkpoint | None, Gang | None]:
    """Check what the user asked for, and return what is to be launched, and what it is to go on from.

    Raises:
        JobError: bad input, or nothing to go on from.
    """
    order.check()
    earlier = dict(earlier_job(order, desk.hosts))
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
            record.create(state="prepared", command=_without_values(sys.argv), **described(launch.job, order))
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
        _write(record, desk.say, state="failed", cause=str(error))
        raise
    _write(
        *(record, desk.say),
        state="running",
        versions={"ansible": ansible_version, "python": platform.python_version()},
        world_size=topology.world_size,
        master_addr=head.address,
        master_port=head.settings.master_port,
        ranks=_ranks(gang),
    )
    try:
        store_bundle(order.runs, launch.job.bundle)
    except OSError as error:
        desk.say(f"the job's code cannot be kept here for a rerun: {error}; free some space, or set job_runs_dir")
    if order.detach:
        desk.say(come_back(gang.job_id))
        return _result(record)
    return _see_through(order, desk, gang, record, logs, {})


def _origin(checkpoint: checkpoints.Checkpoint, job_id: str) -> str:
    return f"goes on from {job_id}, step {checkpoint.step}: {checkpoint.path}, which {checkpoint.host} had"


def come_back(job_id: str) -> str:
    """Return how to find a job again."""
    return (
        f"{job_id} runs on. Its output again: ansible-playbook logs.yml -e job={job_id} - all jobs: ansible-playbook "
        f"status.yml - to stop it: ansible-playbook stop.yml -e job={job_id}"
    )


def _write(record: Record, say: Callable[[str], None], **data: Any) -> None:
    """Write down what is known of a started job: the job goes on even if that cannot be."""
    try:
        record.update(**data)
    except OSError as error:
        say(f"the job's record cannot be written: {error}; free some space, or set job_runs_dir")


def _result(record: Record) -> dict[str, Any]:
    data = record.data
    return {"job": data["id"], "path": str(record.path), "world_size": data["world_size"], "state": data["state"]}


def _ranks(gang: Gang) -> list[dict[str, Any]]:
    return [{"rank": node.rank, "host": node.host, "address": node.address} for node in gang.topology.nodes]


def _open_logs(record: Record, gang: Gang) -> dict[str, RankLog]:
    return {node.host: RankLog(record.log_path(node.rank, node.host)) for node in gang.topology.nodes}


def _without_values(words: Sequence[str]) -> list[str]:
    """Return a command line with only those words that are known to hold no secret."""
    before = ["", *words]
    return [
        word if HARMLESS.fullmatch(word) or WITH_HARMLESS_VALUE.fullmatch(last) or not last else "…"
        for last, word in zip(before, words, strict=False)
    ]


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
            record.update(ranks=_with_others(record, _ranks(gang)))
        logs = _open_logs(record, gang)
    except OSError as error:
        sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
        raise JobError(sentence) from None
    goes_on = offset is None and "ended" not in record.data
    starts = {host: log.last_line_start() if goes_on else offset or 0 for host, log in logs.items()}
    desk.say(f"{view.id}: {view.spec.get('script', '')} on {len(view.parts)} nodes, {view.ranks}")
    return _see_through(order, desk, gang, record, logs, starts)


def _whole(view: roster.JobView, cluster: Sequence[NodeSettings], open_channel: OpenChannel) -> roster.JobView:
    """Return a job with its ranks' hosts and addresses, which in the list of all jobs only rank 0 says."""
    if "ranks" in view.spec:
        return view
    views, errors = roster.look(cluster, open_channel, only=view.id)
    return roster.choose(view.id, views, errors)


def _with_others(record: Record, ranks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what is known of these ranks, and what the record says of those whose nodes have the job no more."""
    known = {rank["rank"]: rank for rank in [*record.data.get("ranks", []), *ranks]}
    return [known[rank] for rank in sorted(known)]


def _see_through(
    order: Order,
    desk: Desk,
    gang: Gang,
    record: Record,
    logs: Mapping[str, RankLog],
    starts: Mapping[str, int],
) -> dict[str, Any]:
    """Follow a started job; ``starts`` says from which byte on a shown log that is here already is shown again."""
    interrupts = desk.interrupts
    stopped = False

    def interrupted() -> bool:
        return not stopped and bool(interrupts.came)

    while True:
        shown = [node for node in gang.topology.nodes if SHOWN[order.logs](node)]
        screen = Screen(desk.say, gang.topology.world_size, [node.host for node in shown])
        onlooker = Onlooker(
            gang,
            logs,
            screen,
            starts,
            record.path / "stacks",
            order.stall_timeout_seconds,
            order.rendezvous_timeout_seconds,
        )
        for node in shown:
            log = logs[node.host]
            for position in range(starts.get(node.host, log.size), log.size, PIECE_BYTES):
                while not screen.await_room(ROOM_SECONDS) and not interrupted():
                    pass  # what is here already is shown whole, however slow the terminal is
                screen.show(node.rank, node.host, log.read(position, PIECE_BYTES))
        following = Following(gang, logs, SHOWN[order.logs], onlooker, order.node_timeout_seconds, order.grace_seconds)
        endings = following.run(interrupted)
        screen.close(SCREEN_SECONDS)
        if endings is not None:
            break
        if interrupts.came == "gone" or not _wants_stop(order, interrupts, gang.job_id):
            interrupts.say(come_back(gang.job_id))
            raise Interrupted
        gang.stop(order.grace_seconds)
        starts, stopped = {}, True
    for log in logs.values():
        log.close()
    try:
        return _finish(order, desk.say, gang, record, logs, endings, onlooker.verdict)
    except JobError as error:
        if interrupts.came:  # and nobody will show it
            interrupts.say(str(error))
        raise


def _wants_stop(order: Order, interrupts: Interrupts, job_id: str) -> bool:
    if order.on_interrupt != "stop":
        interrupts.say(f"\n{job_id} runs on; press Ctrl-C once more to stop it")
        if not interrupts.again():
            return False
    interrupts.say(f"stopping {job_id}")
    return True


def _finish(
    order: Order,
    say: Callable[[str], None],
    gang: Gang,
    record: Record,
    logs: Mapping[str, RankLog],
    endings: Mapping[str, Ending],
    verdict: str,
) -> dict[str, Any]:
    """Write down how the job ended, collect, clean up, and say it."""
    topology = gang.topology
    explanation = diagnosis.explain(topology, endings, logs)
    state = explanation.state if explanation else "succeeded"
    cause = (verdict or explanation.sentence) if explanation else None
    if verdict:
        state = "failed"
    if _is_news(record, topology.nodes, endings):
        ranks = _with_others(record, [_rank(node, endings[node.host], logs[node.host]) for node in topology.nodes])
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        ended = record.data.get("ended", now)
        _write(record, say, ended=ended, world_size=len(ranks), state=state, cause=cause, ranks=ranks)
    else:
        state, cause = record.data["state"], record.data.get("cause")
    lost = {host for host, ending in endings.items() if ending.state == "lost"}
    if explanation and state == "failed" and lost:  # at once: what a lost node wrote is waited for in vain
        say(f"{cause}")
    notes = artifacts.collect(gang, order.collect, record, order.node_timeout_seconds, lost)
    if order.keep is not None:
        notes += housekeeping.keep_newest(gang, order.keep, lost)
    _write(record, say, notes=notes)
    for note in notes:
        say(note)
    if state == "stopped":
        raise Stopped(f"job {gang.job_id} was stopped: {cause}")
    if state != "succeeded":
        tail = "".join(f"\n  | {line}" for line in explanation.tail) if explanation and not verdict else ""
        raise JobError(f"{cause}{tail}")
    say(f"logs: {record.path / 'logs'}")
    if order.collect != "none":
        say(f"artifacts: {record.path / 'artifacts'}")
    return _result(record)


def _is_news(record: Record, nodes: Sequence[Node], endings: Mapping[str, Ending]) -> bool:
    """Whether these endings say more than the record of a job that has ended."""
    known = {rank["rank"]: rank.get("state") for rank in record.data.get("ranks", [])}
    return "ended" not in record.data or any(
        endings[node.host].state not in ("lost", known.get(node.rank)) for node in nodes
    )


def _rank(node: Node, ending: Ending, log: RankLog) -> dict[str, Any]:
    return {
        "rank": node.rank,
        "host": node.host,
        "address": node.address,
        "state": ending.state,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "seconds": ending.seconds,
        "note": ending.note,
        "because": ending.because,
        "log": str(log.path),
    }


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
        _write(record, say, state="stopped")
    states = {host: reply["state"] for host, (reply, _payload) in replies.items()}
    return {"job": view.id, "states": states, "was_running": view.state in (*GOING_ON, "unknown")}
