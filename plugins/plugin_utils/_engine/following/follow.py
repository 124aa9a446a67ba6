# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow a running job to its end: fetch every rank's log and state, and stop the job when one rank fails.

How a rank ended is what its node's reply says, or what the other nodes say of it, whose supervisors watch each other. A
question without an answer, whatever kept it away, says nothing of the job: it is asked again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import STOP_SECONDS, Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.stall import StallReport
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape, join_names
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
"""How far apart the answers are of a node that prints all the time: each costs it some 40 ms of a core."""
FIRST_PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 10
"""A node that gave no answer is asked again after the first pause, then after twice the last one, up to this: so few
new connections are let in by a firewall that counts them."""
PATIENCE_SECONDS = 120
PATIENCE_TIMES = 4
"""Nothing may be heard of any rank for so long, or so many times the nodes' own time-out if that is longer, before the
job is not followed any more."""
QUIET_SECONDS = 1
"""A rank whose output is not shown live is first looked at after this long: right after the start, nodes are busy."""
LOOK_SECONDS = 0.2
"""How often whoever follows looks up: for an interrupt, for a silent node."""


class Observer(Protocol):
    """Who is told what comes while a job is followed; ``output``, ``hear`` and ``say`` are called from any thread."""

    def output(self, node: Node) -> None:
        """Take note that a shown rank's log has grown, from the thread that follows it; must not block."""

    def hear(self, node: Node, state: Mapping[str, Any]) -> None:
        """Take what a node says of its rank's state, from the thread that follows it."""

    def look(self, written: Mapping[str, int], endings: Mapping[str, RankEnding]) -> StallReport | None:
        """Look at it all every so often: bytes of log by host, and who has ended.

        Returns:
            What was found of a job that stalls, once; else None.
        """

    def say(self, text: str) -> None:
        """Show a sentence about the job, from any thread."""


@dataclass
class _Rank:
    """A rank that is followed.

    Attributes:
        heard: when its node replied last, on the monotonic clock.
        trouble: why it has not replied since, a clause; "" if that is not known.
        gone: what its node says if it has the job no more, a verb phrase; else "".
        missed: the user was told that nothing is heard of it.
        deaf: why its node could not be told to stop, a clause; "" if it was.
    """

    node: Node
    log: RankLog
    offset: int
    heard: float = field(default_factory=time.monotonic)
    trouble: str = ""
    gone: str = ""
    missed: bool = False
    deaf: str = ""

    def silent(self) -> float:
        """Seconds since its node replied last."""
        return time.monotonic() - self.heard


class JobFollower:
    """Follow all ranks of one job, and decide when it has to end.

    Attributes:
        verdict: why the job has to end because it stalls; "" if it need not.
    """

    def __init__(
        self,
        gang: Gang,
        logs: Mapping[str, RankLog],
        shown: Callable[[Node], bool],
        observer: Observer,
        node_timeout_seconds: int,
        grace_seconds: int,
    ) -> None:
        """Begin nothing yet.

        Args:
            gang: the job's nodes.
            logs: where each host's output goes, whole; what is there already is not fetched again.
            shown: whether a node's output is wanted live.
            observer: is told.
            node_timeout_seconds: after so long a silence the nodes give each other up.
            grace_seconds: between TERM and KILL, when the job has to be stopped.
        """
        self._gang = gang
        self._ranks = {node.host: _Rank(node, logs[node.host], logs[node.host].size) for node in gang.topology.nodes}
        self._shown = shown
        self._observer = observer
        self._node_timeout = node_timeout_seconds
        self._patience = max(PATIENCE_SECONDS, PATIENCE_TIMES * node_timeout_seconds)
        self._grace = grace_seconds
        self._began = time.monotonic() - gang.identity.age
        self._news: queue.SimpleQueue[tuple[str, RankEnding | BaseException]] = queue.SimpleQueue()
        self._endings: dict[str, RankEnding] = {}
        self._idle = list(self._ranks.values())  # whose thread is still to be started
        self.verdict = ""
        self._stopping = False
        self._told_at: float | None = None  # when all nodes had answered to the stop, or could not
        self._given_up = threading.Event()
        self._chunk = min(CHUNK_BYTES, max(2**20, ALL_CHUNKS_BYTES // len(self._ranks)))

    def run(self, interrupted: Callable[[], bool], stop: bool = False) -> dict[str, RankEnding] | None:
        """Follow every rank to its end; the first that ends badly ends the others.

        Args:
            interrupted: whether to give up; the job goes on then.
            stop: end the job, on request.

        Returns:
            Every host's ending, in rank order; None if interrupted.

        Raises:
            JobError: it cannot be followed any more; how the job ends, or that it is stopped, is not known.
        """
        try:
            return self._run(interrupted, "" if stop else None)
        finally:
            self._given_up.set()  # what nobody is shown any more must not get into the log: it would seem seen

    def _run(self, interrupted: Callable[[], bool], because: str | None) -> dict[str, RankEnding] | None:
        endings = self._endings
        while len(endings) < len(self._ranks):
            self._start_asking()
            if because is not None and not self._stopping:
                self._begin_stop(because)
            self._gather()
            if interrupted():
                return None
            self._judge()
            self._judge_stall(self._observer.look({host: rank.offset for host, rank in self._ranks.items()}, endings))
            bad = next((host for host, ending in endings.items() if ending.state != "succeeded"), None)
            if because is None:
                because = self.verdict or (None if bad is None else self._words(bad, endings[bad]))
        left = [self._ranks[host] for host, ending in endings.items() if ending.unknown]
        if left and all(ending.unknown or ending.state == "succeeded" for ending in endings.values()):
            lines = [f"{rank.node.name} {endings[rank.node.host].note}" for rank in left]
            raise self._broken_off("\n".join(lines), "whether the job runs on is not known", "to stop it: {stop}")
        return {host: endings[host] for host in self._ranks}

    def _start_asking(self) -> None:
        """Start the threads that follow a rank each, as many as this machine allows now."""
        while self._idle:
            rank = self._idle[-1]
            try:
                threading.Thread(target=self._follow_one, args=(rank,), name=rank.node.host, daemon=True).start()
            except RuntimeError as error:
                rank.trouble = _own_trouble(error)
                return
            self._idle.pop()

    def _gather(self) -> None:
        """Wait a moment for news, and take all there is."""
        timeout: float = LOOK_SECONDS
        while True:
            try:
                host, item = self._news.get(timeout=timeout)
            except queue.Empty:
                return
            if isinstance(item, BaseException):
                raise item
            self._endings.setdefault(host, item)
            timeout = 0

    def _judge(self) -> None:
        """Say of whom nothing is heard; end what the other nodes have given up, or what is waited for in vain.

        Raises:
            JobError: nothing is heard of any rank; the job is not stopped for that.
        """
        unfinished = [rank for host, rank in self._ranks.items() if host not in self._endings]
        if not unfinished:
            return
        quiet = [rank for rank in unfinished if rank.silent() > self._node_timeout]
        if self._stopping:
            told = self._told_at
            overdue = told is not None and time.monotonic() > told + STOP_SECONDS
            for rank in unfinished if overdue else quiet:
                ending = self._ending_by_the_others(rank) or (self._unknown(rank) if told is not None else None)
                if ending:
                    self._endings[rank.node.host] = ending
            return
        if len(quiet) == len(unfinished):
            if all(rank.gone for rank in unfinished):
                self._endings.update({rank.node.host: RankEnding("lost", note=rank.gone) for rank in unfinished})
                return
            if all(rank.silent() > self._patience for rank in unfinished):
                is_one = len(quiet) == 1
                known = "whether the job runs on is not known" if is_one else "the job runs on, as far as is known"
                raise self._broken_off(self._no_news_sentence(quiet), known)
        missed = [rank for rank in quiet if not rank.missed]
        if missed:
            self._observer.say(
                f"{self._no_news_sentence(missed)}. The job runs on, as far as is known; it is tried again"
            )
        for rank in missed:
            rank.missed = True

    def _judge_stall(self, report: StallReport | None) -> None:
        """End a job whose ranks wait for each other in vain; of any other stall the user is told."""
        if report and report.hopeless:
            self.verdict = self.verdict or report.sentence
        elif report:
            self._observer.say(report.sentence)

    def _no_news_sentence(self, ranks: list[_Rank]) -> str:
        names = join_names([rank.node.name for rank in ranks])
        silent = min(rank.silent() for rank in ranks)
        why = next((rank.trouble for rank in ranks if rank.trouble), "no answer comes")
        return f"this machine has heard nothing of {names} for {silent:.0f} s: {why}"

    def _ending_by_the_others(self, rank: _Rank) -> RankEnding | None:
        """Return how a silent rank ended, if that is why another was stopped: the nodes' own verdict."""
        for ending in self._endings.values():
            words = ending.because.removeprefix("the node of ")
            if words.startswith(rank.node.name):
                how = words.removeprefix(rank.node.name).removeprefix(", the head,").strip()
                return RankEnding("lost", note=how, arrived=rank.heard)
        return None

    def _unknown(self, rank: _Rank) -> RankEnding:
        if rank.deaf:
            note = f"could not be told to stop ({rank.deaf}), and may be running there still"
        elif rank.silent() > self._node_timeout:
            why = rank.trouble or "no answer comes"
            note = f"was not heard of for {rank.silent():.0f} s ({why}), and may be running there still"
        else:
            note = "was told to stop, and may be running there still"
        return RankEnding("lost", note=note, unknown=True)

    def _broken_off(self, why: str, known: str = "the job runs on", more: str = "") -> JobError:
        follow = f"ansible-playbook logs.yml -e job={self._gang.job_id}"
        stop = f"ansible-playbook stop.yml -e job={self._gang.job_id}"
        remedy = more.format(stop=stop) or f"to follow it again: {follow}"
        return JobError(f"{why}. {known[0].upper()}{known[1:]}; {remedy}")

    def _words(self, host: str, ending: RankEnding) -> str:
        if ending.state == "stopped":
            return ending.because
        return f"{self._ranks[host].node.name} {ending.how}"

    # ------------------------------------------------------------------------------------------------------- a stop

    def _begin_stop(self, because: str) -> None:
        try:
            threading.Thread(target=self._stop, args=(because,), daemon=True).start()
        except RuntimeError:  # no thread is to be had; a moment later, perhaps
            return
        self._stopping = True

    def _stop(self, because: str) -> None:
        """Have the nodes stop the job; those that could not be told are told again, and the user hears of it."""
        began, pause = time.monotonic(), 0.0
        while True:
            why, self._told_at = self._tell_to_stop(because), time.monotonic()
            if not why or time.monotonic() - began > self._patience:
                return
            if not pause:
                self._observer.say(f"{'; '.join(why)}; it is tried again")
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            if self._given_up.wait(pause):
                return
            self._told_at = None

    def _tell_to_stop(self, because: str) -> list[str]:
        """Return who could not be told, or still runs processes of the job, and why, a clause each."""
        try:
            _replies, errors = self._gang.stop(self._grace, because)
        except Exception as trouble:  # no thread, no memory
            why = f"was not asked: {_own_trouble(trouble)}"
            errors = {host: NodeError(host, why) for host in self._ranks}
        found = []
        for host, rank in self._ranks.items():
            error = errors.get(host)
            if error and "left" in error.facts:
                rank.deaf = ""
                found.append(str(error))
                continue
            rank.deaf = str(error or "")
            if error and host not in self._endings:
                found.append(f"{rank.node.name} could not be told to stop: {rank.deaf}")
        return found

    # ----------------------------------------------------------------------------------------------------- asking

    def _follow_one(self, rank: _Rank) -> None:
        host = rank.node.host
        try:
            self._news.put((host, self._follow_to_end(rank)))
        except OSError as error:  # a full disk here: no reason to stop what runs there
            self._news.put((host, self._broken_off(f"the log of {rank.node.name} cannot be written: {error}")))
        except BaseException as error:  # a defect: to be seen
            self._news.put((host, error))

    def _follow_to_end(self, rank: _Rank) -> RankEnding:
        channel: Channel | None = None
        live = self._shown(rank.node)
        pace = pause = 0.0
        told = False
        if not live:
            time.sleep(QUIET_SECONDS)
        while not self._given_up.is_set():
            request = self._gang.request(
                "follow",
                rank.node.host,
                offset=rank.offset,
                wait_seconds=min(POLL_SECONDS, self._node_timeout / 3),
                linger_seconds=LINGER_SECONDS,
                pace_seconds=max(pace, pause),  # a line that was just mended is not used more often than it takes
                max_bytes=self._chunk,
                quiet=not live,
            )
            try:
                channel = channel or self._gang.open(rank.node.host)
                reply, data = channel.call(request)
            except Exception as error:  # whatever it is, it says nothing of the job
                rank.trouble = str(error) if isinstance(error, NodeError) else _own_trouble(error)
                is_gone = isinstance(error, NodeError) and error.facts.get("gone", False)
                rank.gone = rank.trouble.removeprefix(f"{rank.node.host} ") if is_gone else ""
                pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                channel = None
                self._given_up.wait(pause)
                continue
            if self._given_up.is_set():
                break
            rank.heard, rank.trouble, rank.gone = time.monotonic(), "", ""
            self._observer.hear(rank.node, reply)
            if rank.missed:
                rank.missed = False
                self._observer.say(f"{rank.node.name} is heard of again")
            pause = pause / 2 if pause > 1 else 0
            pace = PACE_SECONDS if data else 0
            if data:
                rank.log.write(data, rank.offset)
                if live:
                    self._observer.output(rank.node)
            rank.offset = reply["offset"]
            if "trouble" in reply and not told:
                told = True
                self._observer.say(f"{rank.node.name} {escape(reply['trouble'])}")
            if reply["state"] not in GOING_ON and not (reply["more"] and data):
                return self._ending(reply)
        return RankEnding("lost", unknown=True)

    def _ending(self, reply: Mapping[str, Any]) -> RankEnding:
        started, ended = reply.get("started"), reply.get("ended")
        seconds = ended - started if started and ended else None
        return RankEnding(
            state=reply["state"],
            exit_code=reply.get("exit_code"),
            signal=reply.get("signal"),
            seconds=seconds,
            note=reply.get("error") or ("lost its supervisor process" if reply["state"] == "lost" else ""),
            because=reply.get("because", ""),
            stopping=reply.get("stopping"),
            oom=reply.get("oom", 0),
            arrived=time.monotonic() if seconds is None else self._began + seconds,
        )


def _own_trouble(error: Exception) -> str:
    """Return what keeps this machine from asking a node; the words of what may be a defect say what it is."""
    words = error_text(error) if isinstance(error, (OSError, RuntimeError)) else repr(error)
    return f"this machine cannot ask it: {words}"
