# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a started job to its end, handle interrupts, and collect what it left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, pluralize
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import STANDSTILL, UNUSED
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import (
    SECOND_SECONDS,
    Interrupted,
    Interrupts,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import explain_failure, job_warnings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, Stopped
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.fetch_stacks import fetch_stacks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_ranks import JobFollower
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.observer import JobObserver
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import artifacts, cleanup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import BUNDLES
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import FollowOptions
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import (
    Record,
    command_result,
    merge_ranks,
    still_running_message,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import Screen, ShownLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project import missing_files
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines, utc_time

SCREEN_SECONDS = 10
"""How long the end of a job waits for a slow terminal."""

SHOWN_SECONDS = 0.2
"""How often an interrupt is checked for while the terminal shows what is here already."""

STACKS = "stacks"
"""Folder in a job's record with what its ranks were doing."""

SHOWN: Mapping[str, Callable[[Node], bool]] = {
    "all": lambda node: True,
    "head": lambda node: node.rank == 0,
    "none": lambda node: False,
}
"""Whose output is shown live, by the option's value."""


def follow_job(
    options: FollowOptions,
    context: CommandContext,
    gang: Gang,
    record: Record,
    logs: Mapping[str, RankLog],
    starts: Mapping[str, int],
) -> dict[str, Any]:
    """Follow a started job; ``starts`` says from which byte on a shown log that is here already is shown again."""
    interrupts = context.interrupts
    stopped = False

    def interrupted() -> bool:
        return not stopped and bool(interrupts.came)

    def shown_log(node: Node) -> ShownLog:
        log = logs[node.host]
        return ShownLog(node.node_rank, node.host, log, starts.get(node.host, log.size), log.size)

    while True:
        shown = [node for node in gang.topology.nodes if SHOWN[options.logs](node)]
        try:
            screen = Screen(context.terminal, gang.topology.world_size, map(shown_log, shown))
        except RuntimeError as error:
            raise JobError(
                f"this machine cannot follow the job: {error}. {still_running_message(gang.job_id)}"
            ) from None
        observer = JobObserver(
            gang,
            logs,
            screen,
            record.path / STACKS,
            record.data,
        )
        while not screen.await_shown(SHOWN_SECONDS) and not interrupted():
            pass  # all that is here already is shown, however slow the terminal is
        following = JobFollower(
            gang, logs, SHOWN[options.logs], observer, options.node_timeout_seconds, options.stop_grace_seconds
        )
        try:
            endings = following.run(interrupted, stop=stopped)
            observer.finish()
        except JobError as error:
            if interrupts.came:  # and it is not shown elsewhere
                interrupts.say(escape_lines(str(error)))
            raise
        finally:
            screen.close(SCREEN_SECONDS)
        if endings is not None:
            break
        if not _wants_stop(options, interrupts, gang.job_id):
            interrupts.say(still_running_message(gang.job_id))
            raise Interrupted
        starts, stopped = {}, True
    for log in logs.values():
        log.close()
    try:
        return _finish(options, context.say, gang, record, logs, endings, observer)
    except JobError as error:
        if interrupts.came:  # and it is not shown elsewhere
            interrupts.say(escape_lines(str(error)))
        raise


def _wants_stop(options: FollowOptions, interrupts: Interrupts, job_id: str) -> bool:
    if options.on_interrupt != "stop":
        if interrupts.came == "gone":
            return False
        interrupts.say(f"\n{job_id} still runs; press Ctrl-C once more within {SECOND_SECONDS} s to stop it")
        if not interrupts.again():
            return False
    interrupts.say(f"stopping {job_id}")
    return True


def _finish(
    options: FollowOptions,
    say: Callable[[str], None],
    gang: Gang,
    record: Record,
    logs: Mapping[str, RankLog],
    endings: Mapping[str, RankEnding],
    observer: JobObserver,
) -> dict[str, Any]:
    """Write down how the job ended, collect artifacts, clean up, and show the result."""
    ended_attempts = [_ended_attempt(one, gang.topology) for one in observer.ended_attempts]
    topology = gang.topology.of_attempt(observer.roster)
    gang = gang.ranked(topology)
    observer.report_checkpoint()  # a short job ends before it is checked
    explanation = explain_failure.explain(
        topology, endings, logs, lambda reason: missing_files.of_job(reason, record.data, record.path.parent / BUNDLES)
    )
    state = explanation.state if explanation else "succeeded"
    cause = explanation.sentence if explanation else None
    if cause and cause.startswith(STANDSTILL) and any(part.get("has_stacks") for _host, part in observer.parts):
        folder = fetch_stacks(gang, record.path / STACKS)
        cause = f"{cause}; what every rank was doing: {folder}" if folder else cause
    if _is_news(record, topology.nodes, endings):
        seen = dict(observer.parts)
        ranks = merge_ranks(
            record,
            [_rank(node, endings[node.host], logs[node.host], seen.get(node.host, {})) for node in topology.nodes],
        )
        now = time.time()
        last = min(now, max((ending.ended for ending in endings.values() if ending.ended), default=now))
        ended = record.data.get("ended") or utc_time(last) or utc_time(now)  # a node may say anything
        parts = [(str(rank["host"]), rank) for rank in ranks if rank["rank"] is not None]
        # To have connected to MASTER_PORT is not enough where the rendezvous does not complete.
        met = False if (cause or "").startswith(STANDSTILL) else job_warnings.met(record.data, parts)
        record.note(
            say,
            ended=ended,
            notices=observer.notices,
            attempts=observer.attempt,
            ended_attempts=ended_attempts,
            nodes=len(parts),
            world_size=job_warnings.world_size(len(parts), record.data.get("gang", True), met),
            met=met,
            checkpoint_read=job_warnings.checkpoint_read(parts),
            state=state,
            cause=cause,
            warning=job_warnings.warning(record.data, parts, ended=True) if state == "succeeded" else "",
            ranks=ranks,
        )
    else:
        state, cause = record.data["state"], record.data.get("cause")
    lost = {host for host, one in endings.items() if one.state == "lost" or (one.state == UNUSED and one.note)}
    is_shown = bool(explanation and state == "failed" and lost)
    if is_shown:  # at once: a lost node's artifacts are waited for until a time-out
        say(f"{cause}")
    notes = artifacts.collect(gang, options.collect, record, options.node_timeout_seconds, lost)
    if options.keep is not None:
        notes += cleanup.keep_newest(gang, options.keep, lost)
    record.note(say, notes=notes)
    for note in notes:
        say(note)
    if record.data.get("warning"):
        say(f"warning: {record.data['warning']}")
    if record.data.get("ended_attempts"):
        say(_lost_time(record))
    say(f"logs: {record.path / 'logs'}")
    if options.collect != "none":
        say(f"artifacts: {record.path / 'artifacts'}")
    if state == "stopped":
        raise Stopped(f"job {gang.job_id} was stopped: {cause}")
    if state != "succeeded":
        tail = "".join(f"\n  | {line}" for line in explanation.tail) if explanation else ""
        raise JobError(
            f"{cause}{tail}", not_shown=f"the job has failed, for the reason shown above{tail}" if is_shown else ""
        )
    return command_result(record)


def _ended_attempt(about: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """Return what job.json says of an attempt that another has followed."""
    return {
        **{name: about[name] for name in ("attempt", "seconds", "repeated_seconds", "down_seconds")},
        **{name: escape(about[name]) for name in ("cause", "checkpoint")},
        "hosts": [node.host for node in topology.of_attempt(about["roster"]).taking_part],
    }


def _lost_time(record: Record) -> str:
    """Return a sentence about what attempts that have ended took of the job's time."""
    ended = record.data.get("ended_attempts", [])
    down, repeated = (sum(one[f"{name}_seconds"] for one in ended) for name in ("down", "repeated"))
    return (
        f"{pluralize(len(ended) + 1, 'attempt')}: {down:.0f} s passed between them, and {repeated:.0f} s of training "
        "was repeated"
    )


def _is_news(record: Record, nodes: Sequence[Node], endings: Mapping[str, RankEnding]) -> bool:
    """Return whether these endings add to the record of a job that has ended."""
    known = {rank["host"]: rank.get("state") for rank in record.data.get("ranks", [])}
    return "ended" not in record.data or any(
        endings[node.host].state not in ("lost", known.get(node.host)) for node in nodes
    )


def _rank(node: Node, ending: RankEnding, log: RankLog, seen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rank": node.node_rank,
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
