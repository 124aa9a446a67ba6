# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe how one rank ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import how_it_ended


@dataclass
class RankEnding:
    """How one rank's part of the job ended.

    Attributes:
        state: succeeded, failed, stopped, lost (its node or the supervisor there ended or does not
            reply, or nothing is known), or unused (it had no part in the last attempt).
        exit_code: the script's; 128 + signal if it was killed; None if not known.
        signal: number of the signal that ended it, or None.
        seconds: how long it ran, or None.
        ended: when, by its node's clock, in seconds since 1970, or None.
        note: what is known besides, a verb phrase, or "".
        because: why it was stopped; "" for a stop on request, or if it was not stopped.
        stopping: seconds after its start when it got the request to stop, or None.
        oom: how many processes its machine's kernel killed meanwhile because memory ran out.
        unknown: it is not known how it ended, or whether it did.
        arrived: when it ended, on the controller's monotonic clock, or when that was reported: the order of causes and
            victims. All ranks started at the same moment, so how long one ran gives the time best.
    """

    state: str
    exit_code: int | None = None
    signal: int | None = None
    seconds: float | None = None
    ended: float | None = None
    note: str = ""
    because: str = ""
    stopping: float | None = None
    oom: int = 0
    unknown: bool = False
    arrived: float = field(default_factory=time.monotonic)

    @property
    def how(self) -> str:
        """Its note, or "exited with code 1", or "was killed by SIGKILL"."""
        return self.note or how_it_ended(-self.signal if self.signal else self.exit_code or 0)
