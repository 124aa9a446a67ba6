# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Decide, as the head of the gang, whether another attempt follows one that has ended, and what it goes on from.

Like ``gang_member``, this knows no socket, clock, file or process: what comes of it is in its attributes.
"""

from __future__ import annotations

import math
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import LONGEST_TEXT, shorten
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import FIND

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""The pause before an attempt doubles with each one in a row that left no newer checkpoint, up to this."""
MOST_UNPRODUCTIVE = 3
"""After so many attempts in a row that left no newer checkpoint there is no other."""
FIND_SECONDS = 600.0
"""How long the head's inspector may take to read its checkpoints, until one is whole."""
ASK_AGAIN_SECONDS = 2.0
"""When the inspector is asked again, if it was at another task."""


class NextAttempt:
    """The head's search for what follows an attempt. Times are seconds on a monotonic clock.

    Attributes:
        is_sought: an attempt has ended, and what follows it is not settled; whoever drives this sets it to False.
        is_due: the next attempt may begin.
        is_refused: there is none, for good.
        checkpoint: that it goes on from, relative to the working directory; "" for none, or the job's own.
        saved_at: when that was written; minus infinity without one.
        tasks: for the head's inspector; whoever drives this empties it.
        notices: sentences for whoever follows the job; whoever drives this empties it.
    """

    def __init__(self, retries: int) -> None:
        """Begin before any attempt has ended.

        Args:
            retries: how many attempts may follow the first.
        """
        self.is_sought = self.is_due = self.is_refused = False
        self.checkpoint = ""
        self.saved_at = -math.inf
        self.tasks: list[dict[str, Any]] = []
        self.notices: list[str] = []
        self._retries = retries
        self._step = -1  # the highest that an attempt went on from
        self._unproductive = 0  # attempts in a row
        self._attempt = 0
        self._cause = ""
        self._have_met = False
        self._finding: dict[str, Any] | None = None
        self._deadline = self._ask_at = self._begin_at = math.inf

    def seek(self, attempt: int, cause: str, have_met: bool, now: float) -> None:
        """Look for what may follow an attempt that has ended.

        Args:
            attempt: its number.
            cause: why it ended, a clause.
            have_met: its ranks have met, or may have, so that they may have trained.
            now: the time.
        """
        self.is_sought, self.is_due, self._finding = True, False, None
        self._attempt, self._cause, self._have_met = attempt, cause, have_met
        self._deadline, self._ask_at, self._begin_at = now + FIND_SECONDS, now, math.inf
        if attempt > self._retries:
            self.refuse(f"retries allows {attempt} attempts; for more: -e retries={2 * self._retries}")

    def take(self, finding: dict[str, Any]) -> None:
        """Take what the inspector has found: ``found``, as of its ``find``, and ``refusal``; or ``error``.

        Where there is an error, ``is_busy`` says that the inspector is at another task.
        """
        self._finding = finding

    def refuse(self, why: str) -> None:
        """Let no attempt follow, and say why."""
        if not self.is_refused:
            self.is_refused, self.is_due = True, False
            self._tell(f"the job is not tried again: {why}")

    def tell_of_spare(self, spare: str, lost: str) -> None:
        """Tell that a spare takes the place of a node in the attempt that begins now."""
        self.notices.append(f"attempt {self._attempt + 1} begins with {spare} in the place of {lost}")

    def tick(self, away: list[str], has_spare: bool, now: float) -> None:
        """Do what is due.

        Args:
            away: the names of nodes that are waited for, because they are lost.
            has_spare: whether a spare may take the place of one of these.
            now: the time.
        """
        if self.is_refused:
            return
        finding, self._finding = self._finding, None
        if finding and finding.get("is_busy") and now <= self._deadline:
            self._ask_at = now + ASK_AGAIN_SECONDS
        elif finding and "error" in finding:
            self.refuse(f"the search for its checkpoint failed: {finding['error']}")
        elif finding:
            self._settle(finding, away, has_spare, now)
        elif now > self._deadline + ASK_AGAIN_SECONDS:
            self.refuse(f"the search for its checkpoint took longer than {FIND_SECONDS:.0f} s")
        if now >= self._ask_at:
            self._ask_at = math.inf
            self.tasks.append({"task": FIND, "number": self._attempt})
        self.is_due = self.is_due or now >= self._begin_at

    def _settle(self, finding: dict[str, Any], away: list[str], has_spare: bool, now: float) -> None:
        """Settle what follows, now that the newest whole checkpoint is known."""
        path, step, age = finding["found"] or ("", -1, math.inf)
        self._unproductive = 0 if step > self._step else self._unproductive + 1
        if finding["refusal"]:
            return self.refuse(finding["refusal"])
        if not path and self._have_met:
            return self.refuse("the head has no whole checkpoint of it to go on from")
        if self._unproductive >= MOST_UNPRODUCTIVE:
            return self.refuse(f"{MOST_UNPRODUCTIVE} attempts in a row have left no newer checkpoint")
        pause = min(FIRST_PAUSE_SECONDS * 2**self._unproductive, LONGEST_PAUSE_SECONDS)
        start = f"goes on from {path}, step {step}," if path else "starts as the first did"
        when = f"once {join_names(away)} can be reached again" if away else f"in {pause:.0f} s"
        if away and has_spare:
            when += ", or with a spare as soon as no rank can be running there"
        self.checkpoint, self._step, self.saved_at = path, max(step, self._step), now - age
        self._deadline, self._begin_at = math.inf, now + pause
        self._tell(f"attempt {self._attempt + 1} {start} {when}")
        return None

    def _tell(self, what_follows: str) -> None:
        self.notices.append(shorten(f"attempt {self._attempt} ended: {self._cause}; {what_follows}", LONGEST_TEXT))
