# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a running job to its end: fetch every rank's log and state, and stop the job when one rank fails.

How a rank ended is what its node's reply says, or what the other nodes say of it, whose supervisors watch each other. A
request without a reply, for whatever reason, says nothing about the job: it is sent again.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    GOING_ON,
    UNUSED,
    node_name,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import STOP_SECONDS, Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError

CHUNK_BYTES = 2**22
"""The most of a log that one reply carries: what the controller holds per node."""
ALL_CHUNKS_BYTES = 2**24
"""The most that the replies of all nodes carry together, if a megabyte for each is not more."""
POLL_SECONDS = 10
"""How long a node without news may hold a poll: its heartbeat."""
LINGER_SECONDS = 0.2
"""How long a node gathers output before it answers a poll."""
PACE_SECONDS = 4
"""How far apart the replies are of a node that prints all the time: each costs it some 40 ms of a core."""
FIRST_PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 10
"""A node that gave no reply is asked again after the first pause, then after twice the last one, up to this: so few
new connections are let in by a firewall that counts them."""
NO_REPLY_SECONDS = 120
NO_REPLY_TIMES = 4
"""With no reply from any rank for so long, or so many times the nodes' own time-out if that is longer, the job is not
followed any more."""
GANG_SECONDS = 10
"""How long the gang has to end a job of which a rank has ended badly; after that this machine stops what still runs."""
REST_SECONDS = 60
"""How long a rank that is not shown live is not asked, at most, while the gang's head says that it runs."""
QUIET_SECONDS = 1
"""A rank whose output is not shown live is first asked after this long: right after the start, nodes are busy."""
CHECK_SECONDS = 0.2
"""How often an interrupt and silent nodes are checked for."""
STILL_RUNS = "The job still runs, as far as is known"
MAY_STILL_RUN = "It is not known whether the job still runs"


class Observer(Protocol):
    """Takes what happens to a job that is followed; all but ``report_state`` is called from any thread."""

    def output(self, node: Node) -> None:
        """Take note that a shown rank's log has grown, from the thread that follows it; must not block."""

    def update_state(self, node: Node, state: Mapping[str, Any]) -> None:
        """Take a rank's state from its node's reply, in the thread that follows it."""

    def report_state(self) -> None:
        """Report what is new of all ranks together; called every so often as long as none has ended."""

    def say(self, text: str) -> None:
        """Show a sentence about the job, from any thread."""


@dataclass
class _Rank:
    """A rank, or a spare, that is followed.

    Attributes:
        name: what it is called in a sentence, in this attempt.
        last_reply: when its node replied last, on the monotonic clock.
        error: why it has not replied since, a clause; "" if that is not known.
        gone: the node's reply if it does not have the job any more, a verb phrase; else "".
        reported_silent: the user knows that it does not reply.
        stop_error: why the request to stop failed on its node, a clause; "" if it did not.
        wake: is set when the rank is to be asked now, though it rests.
        rests: it is not asked for a while, because the gang's head says that it runs.
    """

    node: Node
    name: str
    log: RankLog
    offset: int
    last_reply: float = field(default_factory=time.monotonic)
    error: str = ""
    gone: str = ""
    reported_silent: bool = False
    stop_error: str = ""
    wake: threading.Event = field(default_factory=threading.Event)
    rests: bool = False

    def silent(self) -> float:
        """Seconds since its node replied last; 0 as long as it is not asked."""
        return 0.0 if self.rests else time.monotonic() - self.last_reply


class JobFollower:
    """Follow all ranks of one job, and stop it where one has failed and the others do not know."""

    def __init__(
        self,
        gang: Gang,
        logs: Mapping[str, RankLog],
        shown: Callable[[Node], bool],
        observer: Observer,
        node_timeout_seconds: int,
        grace_seconds: int,
    ) -> None:
        """Keep what ``run`` needs; no node is asked yet.

        Args:
            gang: the job's nodes.
            logs: where all output of each host goes; what is there already is not fetched again.
            shown: whether a node's output is wanted live.
            observer: takes what happens.
            node_timeout_seconds: after so long without a heartbeat the nodes count each other as lost.
            grace_seconds: between TERM and KILL, when the job has to be stopped.
        """
        self._gang = gang
        self._ranks = {
            node.host: _Rank(node, node.name, logs[node.host], logs[node.host].size) for node in gang.topology.nodes
        }
        self._head = next((rank for rank in self._ranks.values() if rank.node.rank == 0), None)
        self._has_spares = any(node.is_spare for node in gang.topology.nodes)
        self._left_out = frozenset(node.rank for node in gang.topology.nodes if node.is_spare)
        self._shown = shown
        self._observer = observer
        self._node_timeout = node_timeout_seconds
        self._no_reply_seconds = max(NO_REPLY_SECONDS, NO_REPLY_TIMES * node_timeout_seconds)
        self._grace = grace_seconds
        self._began = time.monotonic() - gang.identity.age
        self._news: queue.SimpleQueue[tuple[str, RankEnding | BaseException]] = queue.SimpleQueue()
        self._endings: dict[str, RankEnding] = {}
        self._idle = list(self._ranks.values())  # whose thread is still to be started
        self._stopping = False
        self._stop_sent_at: float | None = None  # when all nodes had replied to the request to stop, or failed
        self._given_up = threading.Event()
        self._running: frozenset[int] = frozenset()  # the ranks that run, as the head says
        self._head_spoke = -math.inf  # when it said so
        self._unmet: frozenset[int] = frozenset()  # the ranks that the head has never met
        self._head_ended: float | None = None  # when that was first seen
        self._bad_since: float | None = None  # when a rank was first known to have ended badly
        self._chunk = min(CHUNK_BYTES, max(2**20, ALL_CHUNKS_BYTES // len(self._ranks)))

    def run(self, interrupted: Callable[[], bool], stop: bool = False) -> dict[str, RankEnding] | None:
        """Follow every rank to its end; the first that fails stops the others.

        Args:
            interrupted: whether to give up; the job goes on then.
            stop: end the job, on request.

        Returns:
            Every host's ending, in rank order; None if interrupted.

        Raises:
            JobError: it cannot be followed any more; it is not known how the job ends, or whether it is stopped.
        """
        try:
            return self._run(interrupted, "" if stop else None)
        finally:
            self._given_up.set()  # what is not shown any more must not get into the log: it would not be shown later
            self._wake_all()

    def _run(self, interrupted: Callable[[], bool], because: str | None) -> dict[str, RankEnding] | None:
        endings = self._endings
        while len(endings) < len(self._ranks):
            self._start_asking()
            if because is not None and not self._stopping:
                self._begin_stop(because)
            self._gather()
            if interrupted():
                return None
            self._check_silence()
            bad = next((host for host, ending in endings.items() if self._is_bad(host, ending)), None)
            self._bad_since = None if bad is None else self._bad_since
            if because is None and bad is not None and self._must_stop():
                because = self._cause(bad, endings[bad])
            if all(self._ranks[host].node.rank in self._left_out for host in endings):
                self._observer.report_state()
        left = [self._ranks[host] for host, ending in endings.items() if ending.unknown]
        if left and all(ending.unknown or ending.state in ("succeeded", UNUSED) for ending in endings.values()):
            lines = [f"{rank.name} {endings[rank.node.host].note}" for rank in left]
            raise self._broken_off("\n".join(lines), MAY_STILL_RUN, "to stop it: {stop}")
        return {host: endings[host] for host in self._ranks}

    def _is_bad(self, host: str, ending: RankEnding) -> bool:
        """Return whether a rank has ended badly, and not one that the attempt does without."""
        is_left_out = self._ranks[host].node.rank in self._left_out
        return ending.state not in ("succeeded", UNUSED) and (ending.unknown or not is_left_out)

    def _must_stop(self) -> bool:
        """Return whether this machine has to stop the ranks that still run, though one has ended badly.

        The gang does that, or goes on with a spare; but it cannot where a node has never met the head.
        """
        if self._bad_since is None:
            self._bad_since = time.monotonic()
            self._wake_all()
        is_left_to_gang = self._has_spares and self._hears_head()
        return bool(self._unmet) or (time.monotonic() - self._bad_since > GANG_SECONDS and not is_left_to_gang)

    def _hears_head(self) -> bool:
        """Return whether the head goes on, and has said so lately."""
        head = self._head
        return head is not None and head.node.host not in self._endings and head.silent() <= self._node_timeout

    def _start_asking(self) -> None:
        """Start the threads that follow a rank each, as many as this machine allows now."""
        while self._idle:
            rank = self._idle[-1]
            try:
                threading.Thread(target=self._follow_one, args=(rank,), name=rank.node.host, daemon=True).start()
            except RuntimeError as error:
                rank.error = _own_error(error)
                return
            self._idle.pop()

    def _gather(self) -> None:
        """Wait a moment for news, and take all there is."""
        timeout: float = CHECK_SECONDS
        while True:
            try:
                host, item = self._news.get(timeout=timeout)
            except queue.Empty:
                return
            if isinstance(item, BaseException):
                raise item
            self._endings.setdefault(host, item)
            timeout = 0

    def _check_silence(self) -> None:
        """Report ranks that do not reply; end those that the other nodes count as lost, or whose stop failed.

        Raises:
            JobError: no rank replies; the job is not stopped because of that.
        """
        for rank in self._unfinished():
            if rank.silent() > self._node_timeout and (ending := self._ending_by_the_others(rank)):
                self._endings[rank.node.host] = ending
        self._end_left_out()
        unfinished = self._unfinished()
        if not unfinished:
            return
        quiet = [rank for rank in unfinished if rank.silent() > self._node_timeout]
        if self._stopping:
            sent = self._stop_sent_at
            overdue = sent is not None and time.monotonic() > sent + STOP_SECONDS
            for rank in unfinished if overdue else quiet:
                if sent is not None:
                    self._endings[rank.node.host] = self._ending_by_the_others(rank) or self._unknown(rank)
            return
        if self._bad_since is not None:
            return
        if len(quiet) == len(unfinished):
            if all(rank.gone for rank in unfinished):
                self._endings.update({rank.node.host: RankEnding("lost", note=rank.gone) for rank in unfinished})
                return
            if all(rank.silent() > self._no_reply_seconds for rank in unfinished):
                known = MAY_STILL_RUN if len(quiet) == 1 else STILL_RUNS
                raise self._broken_off(self._no_reply_sentence(quiet), known)
        unreported = [rank for rank in quiet if not rank.reported_silent]
        if unreported:
            self._observer.say(f"{self._no_reply_sentence(unreported)}. {STILL_RUNS}; this machine asks again")
        for rank in unreported:
            rank.reported_silent = True

    def _unfinished(self) -> list[_Rank]:
        return [rank for host, rank in self._ranks.items() if host not in self._endings]

    def _end_left_out(self) -> None:
        """End those without a part in the last attempt, once the head has ended: nobody waits for what hangs there."""
        if self._head is None or self._head.node.host not in self._endings:
            return
        self._head_ended = time.monotonic() if self._head_ended is None else self._head_ended
        is_late = time.monotonic() - self._head_ended > GANG_SECONDS
        for rank in self._unfinished():
            if rank.node.rank in self._left_out and (rank.error or is_late):
                note = f"gave no reply for {rank.silent():.0f} s" if rank.error else "has not ended"
                self._endings[rank.node.host] = RankEnding(UNUSED, note=note)

    def _no_reply_sentence(self, ranks: list[_Rank]) -> str:
        names = join_names([rank.name for rank in ranks])
        silent = min(rank.silent() for rank in ranks)
        error = next((f": {rank.error}" for rank in ranks if rank.error), "")
        return f"this machine got no reply from {names} for {silent:.0f} s{error}"

    def _ending_by_the_others(self, rank: _Rank) -> RankEnding | None:
        """Return how a silent rank ended, if the node of a stopped rank names it as the reason of that stop."""
        for ending in self._endings.values():
            reason = ending.because.removeprefix("the node of ")
            if reason.startswith(rank.name):
                how = reason.removeprefix(rank.name).removeprefix(", the head,").strip()
                return RankEnding("lost", note=how, arrived=rank.last_reply)
        return None

    def _unknown(self, rank: _Rank) -> RankEnding:
        if rank.stop_error:
            note = f"could not be stopped ({rank.stop_error}), and may still run there"
        elif rank.silent() > self._node_timeout:
            error = f" ({rank.error})" if rank.error else ""
            note = f"gave no reply for {rank.silent():.0f} s{error}, and may still run there"
        else:
            note = "was asked to stop, and may still run there"
        return RankEnding("lost", note=note, unknown=True)

    def _broken_off(self, why: str, known: str = "The job still runs", more: str = "") -> JobError:
        follow = f"ansible-playbook logs.yml -e job={self._gang.job_id}"
        stop = f"ansible-playbook stop.yml -e job={self._gang.job_id}"
        remedy = more.format(stop=stop) or f"to follow it again: {follow}"
        return JobError(f"{why}. {known}; {remedy}")

    def _cause(self, host: str, ending: RankEnding) -> str:
        if ending.state == "stopped":
            return ending.because
        return f"{self._ranks[host].name} {ending.how}"

    # ------------------------------------------------------------------------------------------------------- a stop

    def _begin_stop(self, because: str) -> None:
        try:
            threading.Thread(target=self._stop, args=(because,), daemon=True).start()
        except RuntimeError:  # no thread can be started; the next round tries again
            return
        self._stopping = True
        self._wake_all()

    def _stop(self, because: str) -> None:
        """Stop the job on its nodes; where that fails, report it to the user and try again."""
        began, pause = time.monotonic(), 0.0
        while True:
            why, self._stop_sent_at = self._send_stop(because), time.monotonic()
            if not why or time.monotonic() - began > self._no_reply_seconds:
                return
            if not pause:
                self._observer.say(f"{'; '.join(why)}; this machine tries again")
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            if self._given_up.wait(pause):
                return
            self._stop_sent_at = None

    def _send_stop(self, because: str) -> list[str]:
        """Send the request to stop; return the nodes where it failed, or that still run processes, a clause each."""
        try:
            _replies, errors = self._gang.stop(self._grace, because)
        except Exception as failure:  # no thread, no memory
            why = f"was not asked: {_own_error(failure)}"
            errors = {host: NodeError(host, why) for host in self._ranks}
        found = []
        for host, rank in self._ranks.items():
            error = errors.get(host)
            if error and "left" in error.facts:
                rank.stop_error = ""
                found.append(str(error))
                continue
            rank.stop_error = str(error or "")
            if error and host not in self._endings:
                found.append(f"{rank.name} could not be stopped: {rank.stop_error}")
        return found

    # ----------------------------------------------------------------------------------------------------- asking

    def _follow_one(self, rank: _Rank) -> None:
        host = rank.node.host
        try:
            self._news.put((host, self._follow_to_end(rank)))
        except OSError as error:  # a full disk here: no reason to stop what runs there
            self._news.put((host, self._broken_off(f"the log of {rank.name} cannot be written: {error}")))
        except BaseException as error:  # a defect: to be seen
            self._news.put((host, error))
        if rank.node.rank == 0:  # nobody says any more that the others run
            self._running = frozenset()
            self._wake_all()

    def _hear_head(self, gang: Mapping[str, Any]) -> None:
        """Take what the head says of all ranks; those that run need not be asked for a while."""
        self._head_spoke = time.monotonic()
        running = {rank for rank, one in enumerate(gang["ranks"]) if one["state"] == "running" and not gang["ending"]}
        ended, self._running = self._running - running, frozenset(running)
        roster = {before: rank for rank, before in enumerate(gang["roster"])}
        self._left_out = frozenset(rank for rank in range(len(gang["ranks"])) if rank not in roster)
        self._unmet = frozenset(rank for rank in roster if gang["ranks"][rank]["state"] == "unknown")
        for rank in self._ranks.values():
            if rank.node.rank >= len(gang["ranks"]):
                continue
            rank.name = node_name(roster.get(rank.node.rank), rank.node.host)
            if rank.rests:
                self._observer.update_state(rank.node, gang["ranks"][rank.node.rank])
            if rank.node.rank in ended:
                rank.wake.set()

    def _may_rest(self, rank: _Rank) -> bool:
        if not rank.node.rank:  # the head, whose word counts
            return False
        is_known = time.monotonic() - self._head_spoke < max(self._node_timeout, 2 * POLL_SECONDS)
        goes_on = self._bad_since is None and not self._stopping and not self._given_up.is_set()
        return is_known and goes_on and (rank.node.rank in self._running or rank.node.rank in self._left_out)

    def _rest(self, rank: _Rank) -> None:
        """Wait before a rank is asked again; not all at the same moment."""
        rank.rests = True
        rank.wake.wait(REST_SECONDS * (0.5 + 0.5 * (rank.node.rank + 1) / len(self._ranks)))
        rank.wake.clear()
        if self._bad_since is None:  # else it counts how long the node of a rank has been silent that the gang has lost
            rank.last_reply = time.monotonic()
        rank.rests = False

    def _wake_all(self) -> None:
        for rank in self._ranks.values():
            rank.wake.set()

    def _follow_to_end(self, rank: _Rank) -> RankEnding:
        channel: Channel | None = None
        live = self._shown(rank.node)
        pace = pause = 0.0
        gang_changed = 0
        reported = False
        if not live:
            time.sleep(QUIET_SECONDS)
        while not self._given_up.is_set():
            request = self._gang.request(
                "follow",
                rank.node.host,
                offset=rank.offset,
                wait_seconds=0 if not live and self._may_rest(rank) else min(POLL_SECONDS, self._node_timeout / 3),
                linger_seconds=LINGER_SECONDS,
                pace_seconds=max(pace, pause),  # a connection that just came back gets no more than it takes
                max_bytes=self._chunk,
                quiet=not live,
                gang_changed=gang_changed,
            )
            try:
                channel = channel or self._gang.open(rank.node.host)
                reply, data = channel.call(request)
            except Exception as error:  # whatever it is, it says nothing about the job
                rank.error = str(error) if isinstance(error, NodeError) else _own_error(error)
                is_gone = isinstance(error, NodeError) and error.facts.get("gone", False)
                rank.gone = rank.error.removeprefix(f"{rank.node.host} ") if is_gone else ""
                pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                channel = None
                self._given_up.wait(pause)
                continue
            if self._given_up.is_set():
                break
            rank.last_reply, rank.error, rank.gone = time.monotonic(), "", ""
            self._observer.update_state(rank.node, reply)
            if rank.reported_silent:
                rank.reported_silent = False
                self._observer.say(f"{rank.name} replies again")
            pause = pause / 2 if pause > 1 else 0
            pace = PACE_SECONDS if data else 0
            if data:
                rank.log.write(data, rank.offset)
                if live:
                    self._observer.output(rank.node)
            rank.offset = reply["offset"]
            if "trouble" in reply and not reported:
                reported = True
                self._observer.say(f"{rank.name} {escape(reply['trouble'])}")
            if rank.node.rank == 0:
                gang_changed = reply.get("gang_changed", gang_changed)
            if rank.node.rank == 0 and "gang" in reply:
                self._hear_head(reply["gang"])
            if reply["state"] not in GOING_ON and not (reply["more"] and data):
                return self._ending(reply)
            if not live and not reply["more"] and self._may_rest(rank):
                self._rest(rank)
        return RankEnding("lost", unknown=True)

    def _ending(self, reply: Mapping[str, Any]) -> RankEnding:
        started, ended = reply.get("started"), reply.get("ended")
        seconds = ended - started if started and ended else None
        return RankEnding(
            state=reply["state"],
            exit_code=reply.get("exit_code"),
            signal=reply.get("signal"),
            seconds=seconds,
            ended=ended,
            note=reply.get("error") or ("lost its supervisor process" if reply["state"] == "lost" else ""),
            because=reply.get("because", ""),
            stopping=reply.get("stopping"),
            oom=reply.get("oom", 0),
            arrived=time.monotonic() if seconds is None else self._began + seconds,
        )


def _own_error(error: Exception) -> str:
    """Return why this machine cannot ask a node; an unexpected error is given with its type."""
    text = error_text(error) if isinstance(error, (OSError, RuntimeError)) else repr(error)
    return f"this machine cannot ask it: {text}"
