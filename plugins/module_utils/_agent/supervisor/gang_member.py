# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Decide together with the job's other supervisors when the job ends, and why; docs/gang.md has the protocol.

Nothing here opens a socket, reads a clock or writes a file: what happens comes in as a call with the time, and what is
to be sent goes out through ``outbox``. So a simulator can run many of these against each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    GANG_RANK,
    LONGEST_TEXT,
    NO_ANSWER,
    REFUSED,
    SPARE,
    is_roster,
    node_name,
    shorten,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import Message
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import (
    FIND,
    read_task,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member, read_members
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.stall_examination import Examination

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.next_attempt import NextAttempt

HEAD, CANDIDATE, MEMBER = "head", "candidate", "member"
RUNNING = "running"
STATES = (RUNNING, SPARE, "succeeded", "failed", "stopped")
"""Of a rank."""
OBSERVED = ("met", "checkpoint_read")
"""What a script may be seen to do: to take part in the rendezvous, to read its checkpoint."""
UNKNOWN = "unknown"
"""Of one that the head has never met, or a spare that is lost."""
RECONNECT_SECONDS = 5.0
"""A supervisor at whose port nobody listens any more counts as dead after this long."""
REDIAL_SECONDS = 1.0
"""A member whose connection to the head is gone waits this long for the head to make a new one, then makes one."""
ELECTION_SECONDS = 3.0
"""How long a candidate waits for votes, and one that has voted for the new head."""
LEFTOVER_SECONDS = 6.0
"""How long a supervisor takes at most to end what a rank that was killed has left."""
TURN_SECONDS = 0.5
"""How long a member waits for each one before it that may become the head."""
MOST_TURNS = 10
"""After so many turns all that are left stand for election: of hundreds, the first ones may all be gone."""
LEAVE_SECONDS = 3.0
"""How long a supervisor whose rank has ended stays for others that it has never met, or after it knows the verdict."""
REACH_SECONDS = 2.0
"""How long the head tries to reach a member before it counts as not reached: it is started over SSH then."""
MOST_ENDED_ATTEMPTS = 100
"""Of so many attempts that have ended the head keeps how they went, of the latest."""
LONGEST_REASON = 3000
"""Bytes of a verdict as JSON: one is part of state.json, which has a fixed size."""


def cut_reason(why: str) -> str:
    """Return as much of a reason as state.json has room for."""
    while len(json.dumps(why)) > LONGEST_REASON:
        why = why[: len(why) * 9 // 10]
    return why


class Other:
    """What a supervisor knows of another, or of itself.

    Attributes:
        name: what messages call its node, such as ``rank 1 (gpu-2)``.
        connected: whether there is a connection that has proven to belong to the job.
        heard: when the last message came, or would have come while this process was frozen; None if none ever came.
        apart_since: since when there is no connection.
        refused_since: since when nobody listens at its port though its machine answers; None if that is not so.
        has_started: it has the start message, as far as the head knows.
        has_verdict: it knows that the job has to end.
        state: its rank's in this attempt, one of ``STATES``, as far as is known; ``SPARE`` if it has no part in it.
        attempt: the one of which it has reported last; 0 if it never has.
        has_fault: its rank was ended by something for which the job may be tried again.
        written: bytes that its rank has printed, as far as is known.
        observed: what its script was seen to do, by the names in state.json, and not to do after a while.
        why_apart: why no connection could be made to it last, as in ``contract``.
    """

    def __init__(self, now: float) -> None:
        """Begin without a connection."""
        self.name = ""
        self.connected = False
        self.heard: float | None = None
        self.apart_since = now
        self.refused_since: float | None = None
        self.has_started = False
        self.written = 0
        self.why_apart = NO_ANSWER
        self.attempt = 0

    def begin_attempt(self, state: str) -> None:
        """Know nothing yet of an attempt that begins, but whether it has a part in it."""
        self.has_verdict = False
        self.state = state
        self.has_fault = False
        self.observed: dict[str, bool | None] = {}


class GangMember:
    """One supervisor's part in the gang. Times are seconds on a monotonic clock of this node.

    What is called rank here is the place of a supervisor's node among all of the job's: its NODE_RANK, but for spares,
    which come last. A spare that replaces a node has the NODE_RANK of that one, which is its place in ``roster``.

    Attributes:
        role: ``HEAD``, ``CANDIDATE`` or ``MEMBER``.
        term: grows with each election; a head of an earlier term is not obeyed.
        head: the rank that leads in this term.
        members: the job's nodes, in rank order; None until the start message has come.
        roster: who takes part in this attempt, in the order of NODE_RANK.
        attempt: which one of the job's attempts runs, or has ended last, from 1 on.
        checkpoint: that a later attempt goes on from, relative to the working directory; "" for none, or the job's own.
        verdict: why this attempt has to end; None as long as it need not, "" for a stop on request.
        outbox: ``(rank, message)`` to be sent; whoever drives this empties it.
        tasks: what this node's inspector is to do; whoever drives this empties it.
        over: nothing is left to say or to hear.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timeout_seconds: float,
        now: float,
        stall_seconds: float = 0,
        rendezvous_seconds: float = 0,
        retries: int = 0,
        return_seconds: float = 0,
        grace_seconds: float = 0,
        spares: int = 0,
    ) -> None:
        """Begin in the first term, in which rank 0 is the head, and wait for the start message.

        Args:
            rank: this supervisor's.
            size: how many nodes the job has, spares too.
            timeout_seconds: a supervisor that is silent for longer is lost.
            now: the time.
            stall_seconds: a job that prints nothing for so long is looked into; 0: none is.
            rendezvous_seconds: the same while its ranks may still be about to meet.
            retries: how many attempts may follow the first.
            return_seconds: how long a job that may be tried again waits for a node that is lost to be there again.
            grace_seconds: how long a rank may take to end when it is told to.
            spares: how many of these are spares, the last ones.
        """
        self.role = HEAD if rank == 0 else MEMBER
        self.term = 1
        self.head = 0
        self.members: list[Member] | None = None
        self.roster = list(range(size - spares))
        self.attempt = 1
        self.checkpoint = ""
        self.verdict: str | None = None
        self.outbox: list[tuple[int, Message]] = []
        self.tasks: list[dict[str, Any]] = []
        self.over = False
        self._rank = rank
        self._timeout = timeout_seconds
        self._heartbeat_seconds = min(timeout_seconds / 5, 5.0)
        self._nodes = [Other(now) for _rank in range(size)]
        for one, node in enumerate(self._nodes):
            node.begin_attempt(RUNNING if one in self.roster else SPARE)
        self._own = self._nodes[rank]
        self._others = [other for other in range(size) if other != rank]
        self._why_failed = ""
        self._retries = retries
        self._return_seconds = return_seconds
        self._first_loss = ""  # why the head has lost a node in this attempt
        self._next_attempt: NextAttempt | None = None  # of the first head, once an attempt has ended
        self._ended_attempts: list[dict[str, Any]] = []  # of the first head
        self._called_off = ""  # why there must be no other attempt
        self._lost_at = -math.inf  # when another node, or this one, was away last
        self._grace = grace_seconds
        self._patience = timeout_seconds + grace_seconds  # for ranks that end
        self._news: set[int] = set()  # ranks whose state the head has still to tell the others
        self._next_heartbeat = now
        self._last_tick = now
        self._started_at = self._begun_at = 0.0  # the job, this attempt
        self._examination: Examination | None = None  # of the first head
        self._limits = (stall_seconds, rendezvous_seconds)
        self._ended_at: float | None = None
        self._verdict_at: float | None = None
        self._suspicion = ""  # why the head counts as lost
        self._deadline = 0.0  # of the wait for one's turn, or for votes
        self._voted = 1  # the latest term in which this supervisor has given its vote
        self._votes: set[int] = set()

    @property
    def has_ended(self) -> bool:
        """Whether this node's rank has ended in this attempt, or was not started in it."""
        return self._own.state != RUNNING

    @property
    def name(self) -> str:
        """What messages call this node, in this attempt."""
        return self._own.name

    @property
    def is_spare(self) -> bool:
        """Whether this node has no part in this attempt."""
        return self._own.state == SPARE

    def start(self, members: list[Member], now: float) -> None:
        """Take note of the job's nodes, unless they are known; the head connects to all others then."""
        if self.members is None:
            self.members, self._started_at, self._begun_at = members, now, now
            if self.role == HEAD:
                self._examination = Examination(self._rank, self.roster, *self._limits, now)
            self._name_nodes()

    def _name_nodes(self) -> None:
        node_ranks = {rank: node_rank for node_rank, rank in enumerate(self.roster)}
        for rank, member in enumerate(self.members or ()):
            self._nodes[rank].name = node_name(node_ranks.get(rank), member.host)

    def unreached(self, now: float) -> list[int] | None:
        """Return the ranks that the head has not reached; None as long as it still tries to."""
        apart = [rank for rank in self._others if not self._nodes[rank].has_started]
        return apart if not apart or now - self._started_at > REACH_SECONDS else None

    def summary(self) -> dict[str, Any] | None:
        """Return what the head knows of the gang, for gang.json; None from any other."""
        if self.role != HEAD or self.members is None:
            return None
        met = [node.heard is not None or rank == self._rank for rank, node in enumerate(self._nodes)]
        spares = [rank for rank, node in enumerate(self._nodes) if node.state == SPARE]
        lost = [rank for rank in spares if self._loss(rank, self._last_tick)]
        return {
            "ranks": [
                {"state": node.state if has_met and rank not in lost else UNKNOWN, **node.observed}
                for rank, (node, has_met) in enumerate(zip(self._nodes, met))
            ],
            "roster": self.roster,
            "attempt": self.attempt,
            "ended_attempts": self._ended_attempts,
            "ending": self.verdict is not None,
            "notices": self._examination.notices if self._examination else [],
        }

    # ------------------------------------------------------------------------------------------------------ connections

    def wanted(self) -> list[int]:
        """Return the ranks to which a connection is to be made."""
        apart = [rank for rank in self._others if not self._nodes[rank].connected]
        if self.over or self.members is None:
            return []
        if self.role == MEMBER:
            late = self._last_tick - REDIAL_SECONDS
            return [rank for rank in apart if rank == self.head and self._nodes[rank].apart_since < late]
        return apart

    def connected(self, rank: int, now: float) -> None:
        """Take note of a connection to a rank, which has proven that it belongs to the job."""
        other = self._nodes[rank]
        self._hear(rank, now)
        other.connected, other.refused_since = True, None
        if self.role == HEAD:
            self._lead(rank)
        elif self.role == CANDIDATE:
            self._ask_vote(rank)
        elif rank == self.head:
            self._report()

    def disconnected(self, rank: int, now: float) -> None:
        """Take note that there is no connection to a rank any more."""
        self._nodes[rank].connected, self._nodes[rank].apart_since = False, now

    def not_reached(self, rank: int, why: str, now: float) -> None:
        """Take note that no connection could be made; ``REFUSED``: its machine answers, and nobody listens there."""
        other = self._nodes[rank]
        other.why_apart = why
        if why != REFUSED:
            other.refused_since = None
        elif other.refused_since is None:
            other.refused_since = now

    # ----------------------------------------------------------------------------------------- what happens on the node

    def script_ended(self, state: str, why: str, now: float, has_fault: bool = False) -> None:
        """Take note that this node's rank has ended.

        Args:
            state: one of ``STATES``.
            why: if it failed, how, a clause with the rank's name.
            now: the time.
            has_fault: the job may be tried again because of that.
        """
        self._own.state = SPARE if self.is_spare else state
        self._why_failed, self._ended_at = why, now
        self._own.has_fault = has_fault
        self._report()

    def printed(self, written: int) -> None:
        """Take note of how many bytes this node's rank has printed."""
        self._own.written = written

    def observed(self, news: dict[str, bool | None]) -> None:
        """Take note of what this node's script was seen to do, or not to do."""
        self._own.observed.update(news)
        self._report()

    def task_done(self, result: dict[str, Any]) -> None:
        """Take what this node's inspector has found: the task, its number and the result."""
        if self.role == HEAD and result["task"] == FIND:
            if self._next_attempt:
                self._next_attempt.take(result["result"])
        elif self.role == HEAD:
            self._take_finding(self._rank, result)
        else:
            self._report()  # what the rank has printed meanwhile counts
            self._send(self.head, "finding", finding=result)

    def end(self, why: str) -> None:
        """End the job on all nodes for this reason, unless there is one already; "" for a stop on request."""
        if self.verdict is not None and self.has_ended:
            self.call_off(why or "its end was asked for")
        self._decide(why)
        self._report()

    def withdraw(self) -> None:
        """Leave without a word, where the job may go on without this node: its machine goes down."""
        self.over = True

    def call_off(self, why: str) -> None:
        """Let no other attempt follow, for this reason, a clause."""
        self._called_off = self._called_off or cut_reason(why)

    # --------------------------------------------------------------------------------------------------------- messages

    def received(self, rank: int, message: Message, now: float) -> None:
        """Take a message of another supervisor; one that makes no sense is passed over."""
        kind, term = message.get("kind"), message.get("term")
        if not isinstance(term, int):
            return
        self._hear(rank, now)
        if kind == "ask_vote":
            self._answer_vote_request(rank, term, now)
        elif kind in ("lead", "verdict", "alive", "over", "task"):
            if term < self.term:
                self._send(rank, "outdated", verdict=self.verdict)
            elif term > self.term or rank == self.head:
                self._obey(rank, kind, message, now)
        elif kind == "outdated" and term > self.term:
            self._follow_later_term(term, message.get("verdict"))
        elif kind == "report" and self.role == HEAD:
            self._take_report(rank, message)
        elif kind == "finding" and self.role == HEAD:
            self._take_finding(rank, message.get("finding"))
        elif kind == "vote" and self.role == CANDIDATE and term == self._voted:
            self._votes.add(rank)
            if 2 * len(self._votes) > len(self._nodes):
                self._become_head()

    def _hear(self, rank: int, now: float) -> None:
        """Take note that another is there; one that counted as lost has time to end its rank from now on."""
        if self._loss(rank, now):
            self._lost_at = now
        self._nodes[rank].heard = now

    def _obey(self, rank: int, kind: str, message: Message, now: float) -> None:
        """Do what the head of this term, or of a later one, says."""
        members = read_members(message.get("members"), len(self._nodes))
        if members:
            self.start(members, now)
        is_new = rank != self.head or message["term"] > self.term or self.role != MEMBER
        self.term, self.head, self.role, self._suspicion = message["term"], rank, MEMBER, ""
        states, verdict, attempt = message.get("states"), message.get("verdict"), message.get("attempt")
        later = attempt if kind == "lead" and isinstance(attempt, int) and attempt > self.attempt else None
        if later and not self.has_ended:  # it was away for so long that another has its place
            self._decide(f"a spare has taken the place of {self._own.name}, which could not be reached")
            verdict = states = None
        elif later and not self.over and not self._was_frozen(now):  # else that may be long past
            self._begin_attempt(later, str(message.get("checkpoint", "")), self._read_roster(message.get("roster")))
            is_new = True
            if isinstance(verdict, str) and not self.is_spare:  # it has to end already, so nothing is started here
                self._own.state, self._ended_at = "stopped", now
        if isinstance(states, dict):
            for other in self._others:
                state = states.get(str(other))
                self._nodes[other].state = state if state in STATES else self._nodes[other].state
        if isinstance(verdict, str):
            self._nodes[rank].has_verdict = True
            self._decide(verdict)
        if kind == "over" and self.has_ended:
            self.over = True
        task = read_task(message.get("task"), len(self._nodes)) if kind == "task" else None
        if task:
            self.tasks.append(task)
        if is_new or kind in ("lead", "verdict"):
            self._report()

    def _read_roster(self, value: object) -> list[int]:
        """Return who takes part in an attempt, by a message of the head's; as before if it does not say so."""
        if isinstance(value, list) and len(value) == len(self.roster) and is_roster(value, len(self._nodes)):
            return value
        return self.roster

    def _take_report(self, rank: int, message: Message) -> None:
        state, why, verdict = message.get("state"), message.get("why"), message.get("verdict")
        attempt, other = message.get("attempt"), self._nodes[rank]
        other.attempt = attempt if isinstance(attempt, int) else other.attempt
        if self.term == 1 and isinstance(attempt, int) and attempt < self.attempt:
            if state != RUNNING:  # it has not heard of this one yet, or not believed what may be old
                self._lead(rank)
            return
        other.has_started = other.has_started or message.get("started") is True
        written, observed = message.get("written"), message.get("observed")
        other.written = written if isinstance(written, int) else other.written
        if isinstance(observed, dict):
            other.observed = {
                name: value for name, value in observed.items() if name in OBSERVED and GANG_RANK[name](value)
            }
        if state in STATES and state not in (SPARE, other.state) and other.state == RUNNING:
            other.state = state
            other.has_fault = message.get("fault") is True
            self._news.add(rank)
        self.call_off(str(message.get("called_off") or ""))
        # A spare that was away may not know better; but a request to stop is one, wherever it arrives.
        if isinstance(verdict, str) and (rank in self.roster or not verdict):
            other.has_verdict = True
            self._decide(verdict)
        elif state == "failed" and rank in self.roster and isinstance(why, str):
            self._decide(why)

    def _report(self) -> None:
        """Tell the head of this rank; the head takes its own report itself."""
        started = self.members is not None
        report = {"started": started, "state": self._own.state, "why": self._why_failed, "verdict": self.verdict}
        report.update({"written": self._own.written, "observed": dict(self._own.observed)})
        report.update({"fault": self._own.has_fault, "called_off": self._called_off, "attempt": self.attempt})
        if self.role == HEAD:
            self._news.add(self._rank)
            self._take_report(self._rank, report)
        elif self.head != self._rank:
            self._send(self.head, "report", **report)

    def _decide(self, why: str) -> None:
        """Take a verdict, unless there is one, and pass it on to all if this supervisor is the head."""
        if self.verdict is not None:
            return
        self.verdict, self._verdict_at = cut_reason(why), self._last_tick
        if self.role == HEAD:
            for rank in self._others:
                self._send(rank, "verdict", verdict=self.verdict)

    # ------------------------------------------------------------------------------------------------------------- time

    def tick(self, now: float) -> None:
        """Do what is due; to be called several times a heartbeat, when all that has arrived was taken."""
        paused, was_frozen = now - self._last_tick, self._was_frozen(now)
        self._last_tick = now
        if was_frozen:  # and has heard nobody meanwhile
            self._lost_at = now
            for other in self._nodes:
                other.heard = None if other.heard is None else min(other.heard + paused, now)
            if self._examination:
                self._examination.skip(paused)
        if self.members is None:
            return
        if self.role == HEAD:
            self._judge_members(now)
            self._examine(now)
        elif self.role == MEMBER:
            self._judge_head(now)
        elif now > self._deadline:
            self._end_alone()
        self._leave(now)
        if now >= self._next_heartbeat and not self.over:
            self._next_heartbeat = now + self._heartbeat_seconds
            if self.role == HEAD:
                news, self._news = self._states(self._news), set()
                for rank in self._others:
                    self._send(rank, "alive", states=news)
            else:
                self._report()

    def _was_frozen(self, now: float) -> bool:
        """Return whether this process has stood still since the last tick."""
        return now - self._last_tick > 2 * self._heartbeat_seconds

    def _loss(self, rank: int, now: float) -> str:
        """Return why a rank's supervisor counts as lost, a clause with its name; "" if it does not."""
        other = self._nodes[rank]
        if other.heard is None:  # never met: the script may need no network
            return ""
        role = ", the head," if rank == self.head else ""
        if now - other.heard > self._timeout:
            return f"the node of {other.name}{role} sent no heartbeat for {now - other.heard:.0f} s"
        return f"{other.name}{role} lost its supervisor process" if self._is_refused(rank, now) else ""

    def _is_refused(self, rank: int, now: float) -> bool:
        other = self._nodes[rank]
        since = None if other.connected else other.refused_since
        return since is not None and now - since > RECONNECT_SECONDS

    def _judge_members(self, now: float) -> None:
        for rank in self._others:
            loss = self._loss(rank, now) if self._nodes[rank].state == RUNNING else ""
            if loss:
                self._first_loss = self._first_loss or loss  # another rank may have failed because of it, and earlier
                self._decide(loss)

    def _examine(self, now: float) -> None:
        """Look into a job that prints nothing; end one whose ranks wait in a rendezvous that cannot complete."""
        one = self._examination
        if one is None or self.verdict is not None:
            return
        nodes = {rank: self._nodes[rank] for rank in self.roster}
        ended = sum(node.state != RUNNING for node in nodes.values())
        connected = [rank for rank, node in nodes.items() if node.connected or rank == self._rank]
        unreached = {rank: node.why_apart for rank, node in nodes.items() if rank != self._rank and node.heard is None}
        if ended < len(nodes):
            one.tick(sum(node.written for node in nodes.values()), ended, connected, unreached, now)
        requests, one.requests = one.requests, []
        for ranks, task in requests:
            for rank in ranks:
                if rank == self._rank:
                    self.tasks.append(task)
                else:
                    self._send(rank, "task", task=task)
        if one.verdict is not None:
            self._decide(one.verdict)

    def _take_finding(self, rank: int, finding: object) -> None:
        if self._examination and isinstance(finding, dict):
            self._examination.take(rank, finding.get("task"), finding.get("number"), finding.get("result"))

    def _judge_head(self, now: float) -> None:
        """Become a candidate in the head's place, once it is lost and it is this supervisor's turn.

        A spare stands for no election, and waits for the head: the job may well go on without this node.
        """
        loss = self._loss(self.head, now) if self.head != self._rank else ""
        if self.is_spare:
            if loss and self._is_gone(self.head, now):
                self._decide(loss)
        elif not loss:
            self._suspicion = ""
        elif not self._suspicion:
            self._suspicion = loss
            before = self._rank - (self.head < self._rank)
            self._deadline = now + min(before, MOST_TURNS) * TURN_SECONDS
        if self._suspicion and len(self._nodes) == 2:  # of two, one is not more than half
            self._end_alone()
        elif self._suspicion and now >= self._deadline:
            self._start_election(now)

    # -------------------------------------------------------------------------------------------------------- elections

    def _start_election(self, now: float) -> None:
        """Ask all others for their vote in a new term; this supervisor is in it only once it is elected."""
        self.role = CANDIDATE
        self._voted = max(self.term, self._voted) + 1
        self._votes = {self._rank}
        self._deadline = now + ELECTION_SECONDS
        for rank in self._others:
            self._ask_vote(rank)

    def _ask_vote(self, rank: int) -> None:
        self._send(rank, "ask_vote", term=self._voted)

    def _answer_vote_request(self, rank: int, term: int, now: float) -> None:
        """Vote once in a term, and only where the head is quiet here too."""
        if term <= self.term:
            self._send(rank, "outdated", verdict=self.verdict)
        elif term > self._voted and self.role != HEAD and self._is_head_quiet(now):
            self._voted, self.role = term, MEMBER
            self._deadline = now + ELECTION_SECONDS  # if it counts the head as lost, too
            self._send(rank, "vote", term=term)

    def _is_head_quiet(self, now: float) -> bool:
        other = self._nodes[self.head]
        is_refused = not other.connected and other.refused_since is not None
        return other.heard is None or is_refused or now - other.heard > self._timeout / 2

    def _become_head(self) -> None:
        """Lead from now on; the job ends, because its head is lost."""
        self.role, self.head, self.term = HEAD, self._rank, self._voted
        self._decide(self._suspicion)  # before others follow it: a head without a verdict may begin an attempt
        for rank in self._others:
            self._lead(rank)
        self._report()

    def _follow_later_term(self, term: int, verdict: object) -> None:
        """Stop leading, or standing for election, because others have a later head; its verdict counts here too."""
        was_head = self.role == HEAD
        self.role, self._voted = MEMBER, max(self._voted, term)
        if was_head:
            self._decide(verdict if isinstance(verdict, str) else f"{self._own.name} was cut off from the other nodes")

    def _end_alone(self) -> None:
        """End this node's part: it can neither lead more than half of the gang nor hear its head."""
        self.role, self._deadline = MEMBER, math.inf
        self._decide(self._suspicion)

    # ---------------------------------------------------------------------------------------------------------- leaving

    def _leave(self, now: float) -> None:
        """Be done once this rank has ended and nobody needs this supervisor any more."""
        if self._ended_at is None or self.over:
            return
        met = [rank for rank in self._others if self._nodes[rank].heard is not None]
        partners = met if self.role == HEAD else [rank for rank in met if rank == self.head]
        # One that is cut off for the moment has still to hear the verdict, or to be counted as lost.
        unsure = [
            rank
            for rank in partners
            if self._nodes[rank].state == RUNNING and not self._nodes[rank].has_verdict and not self._loss(rank, now)
        ]
        waited = now - max(self._ended_at, self._verdict_at or 0)
        is_late = waited > (self._timeout if unsure else LEAVE_SECONDS)
        away = [rank for rank in partners if self._nodes[rank].state == RUNNING and self._loss(rank, now)]
        if not all(self._has_left(rank, now) for rank in away):
            self._lost_at = now
        patient = min(waited, now - self._lost_at)  # one that is back has time to end
        if self.role == HEAD:
            all_ended = all(self._nodes[rank].state != RUNNING or self._loss(rank, now) for rank in met)
            is_done = all_ended and (len(met) == len(self._others) or is_late)
            is_trying = is_done and self._seek_next_attempt(now)
            is_waiting = not is_done and self._waits_for_ranks(met, patient, now)
            self.over = not is_trying and (is_done or (is_late and self.verdict is not None and not is_waiting))
            for rank in self._others if self.over else []:
                self._send(rank, "over")
        elif not (partners and self._waits_for_head(patient, now)):
            is_alone = self.role == MEMBER and self.head not in met
            self.over = is_late and (self.verdict is not None or is_alone)

    def _waits_for_ranks(self, met: list[int], patient: float, now: float) -> bool:
        """Return whether the head waits for ranks that end, because another attempt may follow then."""
        if not self._retries or self.term > 1 or not self.verdict or self._called_off:
            return False
        if patient <= self._patience:
            return True
        left = [self._nodes[rank].name for rank in met if self._nodes[rank].state == RUNNING]  # nobody can end it
        if self._has_fault and left:
            following = self._sought(now)
            following.refuse(f"{left[0]} has not ended")
            self._pass_on(following)
        return False

    def _waits_for_head(self, patient: float, now: float) -> bool:
        """Return whether a member stays because the head may begin another attempt."""
        if not self._retries or not self.verdict or self._called_off or self._is_gone(self.head, now):
            return False
        return self._nodes[self.head].state != RUNNING or patient <= self._patience

    # --------------------------------------------------------------------------------------------------------- attempts

    def _seek_next_attempt(self, now: float) -> bool:
        """Return whether another attempt follows, or may follow, now that all ranks have ended; begin one that is due.

        Only the first head begins one, and only with all nodes: so no two can.
        """
        if not self._retries or self.term > 1 or not self.verdict or not self._has_fault:
            return False
        following = self._sought(now)
        roster, spares = self._next_roster(now)
        others = [rank for rank in roster if rank != self._rank]
        unmet = [self._nodes[rank].name for rank in others if self._nodes[rank].heard is None]
        gone = [self._loss(rank, now) for rank in others if self._is_gone(rank, now)]
        away = [self._nodes[rank].name for rank in others if self._loss(rank, now)]
        if self._called_off:
            following.refuse(self._called_off)
        elif unmet or len(gone) > len(spares):
            following.refuse(f"{unmet[0]} never met the head" if unmet else gone[0])
        following.tick(away, bool(spares), now)
        is_complete = all(self._nodes[rank].connected for rank in others)
        if following.is_due and is_complete and not away:
            following.is_sought = False
            for spare, rank in zip(roster, self.roster):
                if spare != rank:
                    following.tell_of_spare(self._nodes[spare].name, self._nodes[rank].name)
            self._note_ended_attempt(following, now)
            self._begin_attempt(self.attempt + 1, following.checkpoint, roster)
            if self._examination:
                self._examination.begin_attempt(self.attempt, roster, now)
            for rank in self._others:
                self._lead(rank)
        self._pass_on(following)
        return not following.is_refused

    def _next_roster(self, now: float) -> tuple[list[int], list[int]]:
        """Return who is to take part in the next attempt, and the spares that are left.

        A spare is there, has no part in this attempt, and has reported of it. One that is connected goes first.
        """
        spares = [
            rank
            for rank, node in enumerate(self._nodes)
            if rank not in self.roster and node.attempt == self.attempt and not self._loss(rank, now)
        ]
        spares.sort(key=lambda rank: not self._nodes[rank].connected)
        return [spares.pop(0) if spares and self._has_left(rank, now) else rank for rank in self.roster], spares

    def _has_left(self, rank: int, now: float) -> bool:
        """Return whether a lost node has ended its rank, as far as can be known.

        By its own report, because nobody listens at its port, or because it had the time to: what the head does not
        hear does not hear the head either, or is told to end. A machine that stands still as a whole may not have.
        """
        if rank == self._rank or not self._loss(rank, now):
            return False
        other = self._nodes[rank]
        # A connection that confirms nothing is closed after a third of the time-out: so long it may carry one way.
        last_heard = max(self._heartbeat_seconds, self._timeout / 3)
        election = min(rank, MOST_TURNS) * TURN_SECONDS + ELECTION_SECONDS
        silent = 0.0 if other.heard is None else now - other.heard
        has_had_time = silent > last_heard + self._timeout + election + self._grace + LEFTOVER_SECONDS
        return other.state != RUNNING or self._is_refused(rank, now) or has_had_time

    def _note_ended_attempt(self, following: NextAttempt, now: float) -> None:
        """Keep how the attempt has gone that another one follows now, and what of its time was of no use."""
        ended = now if self._verdict_at is None else self._verdict_at
        seconds = ended - self._begun_at
        about = {
            "attempt": self.attempt,
            "roster": self.roster,
            "cause": shorten(self._first_loss or self.verdict or "", LONGEST_TEXT),
            "checkpoint": following.checkpoint,
            "seconds": seconds,
            "repeated_seconds": max(0.0, min(seconds, ended - following.saved_at)),
            "down_seconds": now - ended,
        }
        self._ended_attempts = [*self._ended_attempts, about][-MOST_ENDED_ATTEMPTS:]
        self._begun_at = now

    @property
    def _has_fault(self) -> bool:
        """Whether this attempt has ended by something for which the job may be tried again."""
        return bool(self._first_loss) or any(node.has_fault for node in self._nodes)

    def _sought(self, now: float) -> NextAttempt:
        """Return the search for what follows this attempt; it begins, unless it has."""
        if self._next_attempt is None:
            from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.next_attempt import (
                NextAttempt,
            )

            self._next_attempt = NextAttempt(self._retries)
        if not self._next_attempt.is_sought:
            nodes = [self._nodes[rank] for rank in self.roster]
            have_met = len(nodes) == 1 or any(node.observed.get("met") is not False for node in nodes)
            self._next_attempt.seek(self.attempt, self._first_loss or self.verdict or "", have_met, now)
        return self._next_attempt

    def _pass_on(self, following: NextAttempt) -> None:
        """Pass on what the search for the next attempt wants done, and told."""
        self.tasks += following.tasks
        if self._examination:
            for sentence in following.notices:
                self._examination.notice(sentence)
        following.tasks, following.notices = [], []

    def _is_gone(self, rank: int, now: float) -> bool:
        """Return whether a supervisor that is lost is waited for no longer: it has ended, or was away for too long."""
        other = self._nodes[rank]
        is_silent = other.heard is not None and now - other.heard > self._timeout + self._return_seconds
        return is_silent or self._is_refused(rank, now)

    def _begin_attempt(self, attempt: int, checkpoint: str, roster: list[int]) -> None:
        """Forget how the attempt before has gone; whoever drives this starts the script again, if it takes part."""
        self._first_loss = ""
        self.attempt, self.checkpoint, self.roster = attempt, checkpoint, roster
        self.verdict, self._verdict_at, self._ended_at = None, None, None
        self._why_failed, self._news = "", set()
        for rank, node in enumerate(self._nodes):
            node.begin_attempt(RUNNING if rank in roster else SPARE)
        if self.is_spare:  # it has nothing to end, and nothing to call off
            self._ended_at, self._called_off = self._last_tick, ""
        self._name_nodes()

    # ---------------------------------------------------------------------------------------------------------- sending

    def _lead(self, rank: int) -> None:
        """Tell a member who leads, the job's nodes, who takes part, and all that is known."""
        states = self._states(range(len(self._nodes)))
        about = {"attempt": self.attempt, "checkpoint": self.checkpoint, "roster": self.roster}
        self._send(rank, "lead", members=self.members, states=states, verdict=self.verdict, **about)

    def _states(self, ranks: Iterable[int]) -> dict[str, str]:
        return {str(rank): self._nodes[rank].state for rank in ranks}

    def _send(self, rank: int, kind: str, **fields: Any) -> None:
        """Send a message of this term, or of the one that is given, if there is a connection."""
        if self._nodes[rank].connected:
            self.outbox.append((rank, {"kind": kind, "term": self.term, **fields}))
