# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Notice that no rank of a job prints anything any more."""

from __future__ import annotations

from typing import NamedTuple

LEFT_ALONE_SECONDS = 20
"""The cause of a silence of this length is searched for once ranks have ended: a rendezvous cannot complete then."""


class Silence(NamedTuple):
    """A job has printed nothing for too long.

    Attributes:
        seconds: for how long.
        stall: for the time that the user gave for a running job.
        rendezvous: for the time that the ranks may take to meet at the start, or while some have ended.
        ended: how many ranks have.
    """

    seconds: float
    stall: bool
    rendezvous: bool
    ended: int = 0


class StallDetector:
    """Notices when no rank prints anything, and none ends."""

    def __init__(
        self,
        stall_timeout_seconds: float,
        rendezvous_timeout_seconds: float,
        now: float,
    ) -> None:
        """Count the start as the first output.

        Args:
            stall_timeout_seconds: a silence of this length is reported once; 0: never.
            rendezvous_timeout_seconds: the same while the ranks may still be about to meet; 0: never. It is
                reported again when the job is twice as old as it was then: ranks may come late, and print nothing.
            now: the time, in seconds on any clock.
        """
        self._stall = stall_timeout_seconds or float("inf")
        self._rendezvous = rendezvous_timeout_seconds or float("inf")
        self._left_alone = LEFT_ALONE_SECONDS if rendezvous_timeout_seconds else float("inf")
        self._last_output = self._began = now
        self._known = (0, 0)
        self._reported = False
        self._reported_ended = 0
        self._report_again_at = 0.0  # age of the job

    def check(self, written: int, ended: int, now: float) -> Silence | None:
        """Return a silence that was not reported before, or None.

        Args:
            written: bytes that all ranks have printed so far.
            ended: how many ranks have ended.
            now: the time.
        """
        known = (written, ended)
        if known != self._known:
            self._known, self._last_output, self._reported = known, now, False
        silent = now - self._last_output
        stall = silent >= self._stall and not self._reported
        rendezvous = silent >= self._rendezvous and now - self._began >= self._report_again_at
        if ended and silent >= min(self._left_alone, self._rendezvous) and ended != self._reported_ended:
            rendezvous, self._reported_ended = True, ended
        self._reported = self._reported or stall
        if rendezvous:
            self._report_again_at = 2 * (now - self._began)
        return Silence(silent, stall, rendezvous, ended) if stall or rendezvous else None

    def skip(self, seconds: float) -> None:
        """Leave a time out in which this process, and perhaps the ranks too, were frozen."""
        self._last_output += seconds

    def past_rendezvous(self) -> None:
        """Report no rendezvous any more: all ranks have met."""
        self._rendezvous = float("inf")
