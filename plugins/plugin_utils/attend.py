# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A started job is seen through to its end: its output, what the user does meanwhile, how it ended, what it left."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils import (
    artifacts,
    diagnosis,
    housekeeping,
    missing_files,
    noticed,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError, Stopped
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.follow import Ending, Following
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted, Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.onlooker import Onlooker
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.screen import Screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown_lines

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


def see_through(
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
        try:
            screen = Screen(desk.terminal, gang.topology.world_size, [node.host for node in shown])
        except RuntimeError as error:
            raise JobError(f"this machine cannot follow the job: {error}. {come_back(gang.job_id)}") from None
        onlooker = Onlooker(
            gang,
            logs,
            screen,
            starts,
            record.path / "stacks",
            order.stall_timeout_seconds,
            order.rendezvous_timeout_seconds,
            record.data,
        )
        for node in shown:
            log = logs[node.host]
            for position in range(starts.get(node.host, log.size), log.size, PIECE_BYTES):
                while not screen.await_room(ROOM_SECONDS) and not interrupted():
                    pass  # what is here already is shown whole, however slow the terminal is
                screen.show(node.rank, node.host, log.read(position, PIECE_BYTES))
        following = Following(gang, logs, SHOWN[order.logs], onlooker, order.node_timeout_seconds, order.grace_seconds)
        try:
            endings = following.run(interrupted, stop=stopped)
        except JobError as error:
            if interrupts.came:  # and nobody will show it
                interrupts.say(shown_lines(str(error)))
            raise
        finally:
            screen.close(SCREEN_SECONDS)
        if endings is not None:
            break
        if not _wants_stop(order, interrupts, gang.job_id):
            interrupts.say(come_back(gang.job_id))
            raise Interrupted
        starts, stopped = {}, True
    for log in logs.values():
        log.close()
    try:
        return _finish(order, desk.say, gang, record, logs, endings, onlooker)
    except JobError as error:
        if interrupts.came:  # and nobody will show it
            interrupts.say(shown_lines(str(error)))
        raise


def _wants_stop(order: Order, interrupts: Interrupts, job_id: str) -> bool:
    if order.on_interrupt != "stop":
        if interrupts.came == "gone":
            return False
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
    onlooker: Onlooker,
) -> dict[str, Any]:
    """Write down how the job ended, collect, clean up, and say it."""
    topology, verdict = gang.topology, onlooker.verdict
    onlooker.tell_of_checkpoint()  # a short job ends before anybody looks
    explanation = diagnosis.explain(topology, endings, logs, lambda reason: missing_files.of_job(reason, record))
    # Ranks that all ended well in spite of a verdict that they stand still have proved it wrong.
    state = ("failed" if verdict else explanation.state) if explanation else "succeeded"
    cause = (verdict or explanation.sentence) if explanation else None
    if _is_news(record, topology.nodes, endings):
        seen = dict(onlooker.parts)
        ranks = with_others(
            record, [_rank(node, endings[node.host], logs[node.host], seen[node.host]) for node in topology.nodes]
        )
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        ended = record.data.get("ended", now)
        parts = [(str(rank["host"]), rank) for rank in ranks]
        met = noticed.met(record.data, parts)
        record.note(
            say,
            ended=ended,
            nodes=len(ranks),
            world_size=noticed.world_size(len(ranks), record.data.get("gang", True), met),
            met=met,
            checkpoint_read=noticed.checkpoint_read(parts),
            state=state,
            cause=cause,
            warning=noticed.warning(record.data, parts, ended=True) if state == "succeeded" else "",
            ranks=ranks,
        )
    else:
        state, cause = record.data["state"], record.data.get("cause")
    lost = {host for host, ending in endings.items() if ending.state == "lost"}
    if explanation and state == "failed" and lost:  # at once: what a lost node wrote is waited for in vain
        say(f"{cause}")
    notes = artifacts.collect(gang, order.collect, record, order.node_timeout_seconds, lost)
    if order.keep is not None:
        notes += housekeeping.keep_newest(gang, order.keep, lost)
    record.note(say, notes=notes)
    for note in notes:
        say(note)
    if record.data.get("warning"):
        say(f"warning: {record.data['warning']}")
    say(f"logs: {record.path / 'logs'}")
    if order.collect != "none":
        say(f"artifacts: {record.path / 'artifacts'}")
    if state == "stopped":
        raise Stopped(f"job {gang.job_id} was stopped: {cause}")
    if state != "succeeded":
        tail = "".join(f"\n  | {line}" for line in explanation.tail) if explanation and not verdict else ""
        raise JobError(f"{cause}{tail}", unsaid=f"the job has failed, as said above{tail}" if lost else "")
    return result(record)


def _is_news(record: Record, nodes: Sequence[Node], endings: Mapping[str, Ending]) -> bool:
    """Whether these endings say more than the record of a job that has ended."""
    known = {rank["rank"]: rank.get("state") for rank in record.data.get("ranks", [])}
    return "ended" not in record.data or any(
        endings[node.host].state not in ("lost", known.get(node.rank)) for node in nodes
    )


def _rank(node: Node, ending: Ending, log: RankLog, seen: Mapping[str, Any]) -> dict[str, Any]:
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
        "met": seen.get("met"),
        "checkpoint_read": seen.get("checkpoint_read"),
        "log": str(log.path),
    }


def with_others(record: Record, ranks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what is known of these ranks, and what the record says of those whose nodes have the job no more."""
    known = {rank["rank"]: rank for rank in [*record.data.get("ranks", []), *ranks]}
    return [known[rank] for rank in sorted(known)]


def come_back(job_id: str) -> str:
    """Return how to find a job again."""
    return (
        f"{job_id} runs on. Its output again: ansible-playbook logs.yml -e job={job_id} - all jobs: ansible-playbook "
        f"status.yml - to stop it: ansible-playbook stop.yml -e job={job_id}"
    )


def result(record: Record) -> dict[str, Any]:
    """Return what a command says of its job."""
    names = ("nodes", "world_size", "state", "warning")
    return {"job": record.data["id"], "path": str(record.path), **{name: record.data.get(name) for name in names}}
