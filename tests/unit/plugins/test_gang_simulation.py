# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulator's runs, and whether it finds mistakes of the kind that people make in such a protocol."""

import types
from pathlib import Path

import gang_simulator
import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import (
    authenticated_stream,
    gang_connections,
    gang_member,
    next_attempt,
    stall_examination,
)

SEEDS = 10_000
PARTS = 10
MOST = 2_000
"""Seeds in which a mistake has to be found."""


@pytest.mark.parametrize("part", range(PARTS))
def test_what_always_holds(part: int) -> None:
    kinds: set[str] = set()
    for seed in range(part, SEEDS, PARTS):
        kinds.update(gang_simulator.run(seed).severe)
    assert kinds == {"fault", "failure", "freeze", "kill", "partition", "power", "reboot", "stop", "two stops"}


def test_a_seed_is_always_the_same_run() -> None:
    assert gang_simulator.run(9).lines == gang_simulator.run(9).lines


MISTAKES = {
    "a head of an earlier term is obeyed": (
        gang_member,
        """            if term < self.term:
                self._send(rank, "outdated", verdict=self.verdict)
            elif term > self.term or rank == self.head:
""",
        "            if True:\n",
    ),
    "a member votes twice in a term": (gang_member, "elif term > self._voted and", "elif term >= self._voted and"),
    "a third of the votes is enough": (gang_member, "if 2 * len(self._votes)", "if 3 * len(self._votes)"),
    "a candidate leads without votes": (
        gang_member,
        "            self._ask_vote(rank)\n\n",
        "            self._become_head()\n\n",
    ),
    "a member votes though the head is well": (
        gang_member,
        "self.role != HEAD and self._is_head_quiet(now)",
        "self.role != HEAD",
    ),
    "who connects late is not told the verdict": (
        gang_member,
        "states=states, verdict=self.verdict, **about)",
        "states=states, verdict=None, **about)",
    ),
    "time in which it was frozen counts as others' silence": (
        gang_member,
        "        if was_frozen:",
        "        if False:",
    ),
    "a failure is not passed on": (
        gang_member,
        'elif state == "failed" and rank in self.roster and isinstance(why, str):',
        "elif False:",
    ),
    "a stop is not passed on": (gang_member, '"verdict": self.verdict}', '"verdict": None}'),
    "the head leaves before the others have ended": (gang_member, "is_done = all_ended and", "is_done = True and"),
    "a candidate leaves without a verdict": (
        gang_member,
        "is_alone = self.role == MEMBER and",
        "is_alone = self.role == CANDIDATE or",
    ),
    "a lost node is not noticed": (gang_member, "if now - other.heard > self._timeout:", "if False:"),
    "a dead supervisor is not noticed": (
        gang_member,
        "return since is not None and now - since > RECONNECT_SECONDS",
        "return False",
    ),
    "a connection is not made again": (
        gang_connections,
        "            if rank not in dialing and",
        "            if rank not in self._tried and rank not in dialing and",
    ),
    "a repeated message is taken": (authenticated_stream, "        self._numbers[from_dialer] += 1\n", ""),
    "a changed message is taken": (
        authenticated_stream,
        "if not hmac.compare_digest(",
        "if None is hmac.compare_digest(",
    ),
    "the end of a connection is not noticed": (
        gang_connections,
        "self.member.disconnected(connection.rank, now)",
        "pass",
    ),
    "a job that somebody works in is taken for one that stands still": (
        stall_examination,
        "if self._silence.rendezvous and rendezvous and not is_open:",
        "if self._silence.rendezvous and rendezvous:",
    ),
    "of a rank that did not answer, nothing is said": (
        stall_examination,
        "if rank not in self._activities",
        "if rank in self._activities",
    ),
    "a job that goes on meanwhile is ended": (
        stall_examination,
        "if self._progress != self._progress_then:",
        "if False:",
    ),
    "the head does not wait until all have answered": (
        stall_examination,
        "self._asked <= self._answers.keys()",
        "self._answers",
    ),
    "a step that nobody answers is never over": (stall_examination, "now > self._deadline or", ""),
    "a finding is told again and again": (
        stall_examination,
        '        step, answers = self._step, self._answers\n        self._step = ""\n',
        "        step, answers = self._step, self._answers\n",
    ),
    "a later verdict replaces the first": (
        gang_member,
        "        if self.verdict is not None:\n            return\n        self.verdict, self._verdict_at",
        "        self.verdict, self._verdict_at",
    ),
    "a start message that comes again begins anew": (
        gang_member,
        "        if self.members is None:\n            self.members, self._started_at",
        "        if True:\n            self.members, self._started_at",
    ),
    "an attempt begins before all ranks have ended": (
        gang_member,
        "is_trying = is_done and self._seek_next_attempt(now)",
        "is_trying = self._seek_next_attempt(now)",
    ),
    "a lost node is waited for for ever": (gang_member, "elif unmet or len(gone) > len(spares):", "elif unmet:"),
    "a lost node is not waited for": (
        gang_member,
        "now - other.heard > self._timeout + self._return_seconds",
        "now - other.heard > self._timeout",
    ),
    "an attempt begins without a node that is away": (
        gang_member,
        "if following.is_due and is_complete and not away:",
        "if following.is_due:",
    ),
    "one that is back has no time to end": (
        gang_member,
        "patient = min(waited, now - self._lost_at)",
        "patient = waited",
    ),
    "the loss of a node is no reason to try again": (
        gang_member,
        "self._first_loss = self._first_loss or loss",
        "pass",
    ),
    "what a rank reported of the attempt before counts for this one": (
        gang_member,
        "isinstance(attempt, int) and attempt < self.attempt:",
        "False:",
    ),
    "the end of a job that waits cannot be asked for": (gang_member, "if self._called_off:", "if False:"),
    "only the node that is asked knows of the end that is asked for": (
        gang_member,
        'self.call_off(str(message.get("called_off") or ""))',
        "pass",
    ),
    "who connects when an attempt ends already does not take part in it": (
        gang_member,
        "elif later and not self.over and",
        "elif later and not self.over and verdict is None and",
    ),
    "a member leaves while the job may be tried again": (
        gang_member,
        "elif not (partners and self._waits_for_head(patient, now)):",
        "else:",
    ),
    "the head leaves while a rank still ends": (gang_member, "if patient <= self._patience:", "if False:"),
    "the cause of one attempt ends the next": (
        gang_member,
        "self.verdict, self._verdict_at, self._ended_at = None, None, None",
        "self._ended_at = None",
    ),
    "who connects late is not told of the attempt": (
        gang_member,
        'about = {"attempt": self.attempt, "checkpoint": self.checkpoint, "roster": self.roster}',
        'about = {"attempt": 1, "checkpoint": ""}',
    ),
    "a member does not learn the checkpoint": (
        gang_member,
        'self._begin_attempt(later, str(message.get("checkpoint", "")), ',
        'self._begin_attempt(later, "", ',
    ),
    "a spare takes a place before the rank there must have ended": (
        gang_member,
        "self._is_refused(rank, now) or has_had_time",
        "True",
    ),
    "a node that another has replaced begins its part anew": (
        gang_member,
        "if later and not self.has_ended:",
        "if False:",
    ),
    "what was sent before a node froze counts when it thaws": (
        gang_member,
        "and not self._was_frozen(now):",
        "and True:",
    ),
    "the others do not learn who takes part": (
        gang_member,
        '"roster": self.roster}\n        self._send',
        "}\n        self._send",
    ),
    "a job is given up though a spare is there": (
        gang_member,
        "elif unmet or len(gone) > len(spares):",
        "elif unmet or gone:",
    ),
    "a spare that is lost ends the attempt": (
        gang_member,
        "loss = self._loss(rank, now) if self._nodes[rank].state == RUNNING else",
        "loss = self._loss(rank, now) if self._nodes[rank].state in (RUNNING, SPARE) else",
    ),
    "attempts are not counted": (next_attempt, "if attempt > self._retries:", "if False:"),
    "attempts that leave nothing new are not counted": (
        next_attempt,
        "if self._unproductive >= MOST_UNPRODUCTIVE:",
        "if False:",
    ),
    "a second fault is not looked into": (gang_member, "            following.is_sought = False\n", ""),
    "members do not do what the head asks": (gang_member, 'if kind == "task" else None', "if False else None"),
}


FOUND_BY = {
    "a head of an earlier term is obeyed": 317,
    "a third of the votes is enough": 836,
    "only the node that is asked knows of the end that is asked for": 923,
    "the end of a job that waits cannot be asked for": 923,
    "who connects when an attempt ends already does not take part in it": 535,
    "attempts that leave nothing new are not counted": 1063,
    "a node that another has replaced begins its part anew": 7655,
    "what was sent before a node froze counts when it thaws": 6093,
}
"""The first seed that finds a mistake, where it is a late one: it is tried first, which saves a minute."""


def broken(module: types.ModuleType, right: str, wrong: str) -> types.ModuleType:
    """Return a module with a mistake in it."""
    text = Path(str(module.__file__)).read_text()
    assert text.count(right) == 1, right
    copy = types.ModuleType(module.__name__)
    exec(compile(text.replace(right, wrong), "broken.py", "exec"), vars(copy))
    return copy


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right, wrong = MISTAKES[mistake]
    copy = broken(module, right, wrong)
    if module is authenticated_stream:
        for name in ("AuthenticatedStream", "ForgedMessage"):
            monkeypatch.setattr(authenticated_stream, name, getattr(copy, name))
        monkeypatch.setattr(gang_connections, "ForgedMessage", copy.ForgedMessage)
        stream = gang_simulator.recording(copy.AuthenticatedStream)
        monkeypatch.setattr(gang_connections, "AuthenticatedStream", stream)
    elif module is gang_connections:
        copy.AuthenticatedStream = gang_connections.AuthenticatedStream  # type: ignore[attr-defined]
        monkeypatch.setattr(gang_simulator, "gang_connections", copy)
    elif module is stall_examination:
        monkeypatch.setattr(gang_member, "Examination", copy.Examination)
    elif module is next_attempt:
        monkeypatch.setattr(next_attempt, "NextAttempt", copy.NextAttempt)
    else:
        monkeypatch.setattr(gang_simulator, "gang_member", copy)
    for seed in (FOUND_BY.get(mistake, 0), *range(MOST)):
        try:
            gang_simulator.run(seed)
        except gang_simulator.Broken:
            return
    pytest.fail(f"{MOST} seeds hold although {mistake}")
