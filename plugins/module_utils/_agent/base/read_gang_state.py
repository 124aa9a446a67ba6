# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read what the head of a job's gang has written down; the file is the job's user's to change."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import gang_state_path
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    ENDED_ATTEMPT,
    GANG_RANK,
    is_count,
    is_flag,
    is_notice,
    is_roster,
)

MOST_BYTES = 2**18


def read_unreached(job_dir: str) -> list[int] | None:
    """Return the ranks that the head could not reach, or None as long as it has not said so."""
    found = (read_json(gang_state_path(job_dir), MOST_BYTES) or {}).get("unreached")
    return found if isinstance(found, list) and all(map(is_count, found)) else None


def read_gang_state(job_dir: str) -> dict[str, Any] | None:
    """Return what the head knows of the gang; None where there is nothing of that kind.

    ``ranks``, of each the state, and met and checkpoint_read as far as known; ``roster``, the places in this list of
    those that take part, in the order of NODE_RANK: the others are spares; ``attempt``, which one it is;
    ``ended_attempts``, of each before, its number, roster, cause, the checkpoint that the next one went on from, how
    many seconds it ran, how many of these were repeated, and how many passed until the next; ``ending``, whether the
    attempt has to end; ``notices``, what whoever follows the job is to be told: ``[when it was found out, seconds since
    1970, sentence]``.
    """
    return valid_gang_state(read_json(gang_state_path(job_dir), MOST_BYTES) or {})


def valid_gang_state(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the file holds that is of the kinds that are expected; None if a part is not."""
    ranks, ending, notices = (found.get(name) for name in ("ranks", "ending", "notices"))
    attempt = found.get("attempt", 1)  # there was one only, before there could be more
    if not (isinstance(ranks, list) and all(map(is_rank, ranks)) and is_flag(ending)):
        return None
    roster = found.get("roster", list(range(len(ranks))))
    if not is_roster(roster, len(ranks)):
        return None
    if not is_count(attempt) or attempt < 1:
        return None
    if not (isinstance(notices, list) and all(map(is_notice, notices))):
        return None
    ended = found.get("ended_attempts", [])
    if not (isinstance(ended, list) and all(map(is_ended_attempt, ended))):
        return None
    about = {"ranks": ranks, "roster": roster, "attempt": attempt, "ended_attempts": ended}
    return {**about, "ending": ending, "notices": notices}


def is_ended_attempt(value: object) -> bool:
    """Return whether it is what is known of an attempt that another has followed."""
    return (
        isinstance(value, dict)
        and value.keys() == ENDED_ATTEMPT.keys()
        and all(check(value[name]) for name, check in ENDED_ATTEMPT.items())
    )


def is_rank(value: object) -> bool:
    """Return whether it is what is known of a rank."""
    return (
        isinstance(value, dict)
        and "state" in value
        and all(name in GANG_RANK and GANG_RANK[name](value[name]) for name in value)
    )


def when_changed(job_dir: str) -> int:
    """Return when the head wrote last, in nanoseconds; 0 for never."""
    try:
        return os.stat(gang_state_path(job_dir)).st_mtime_ns
    except OSError:
        return 0
