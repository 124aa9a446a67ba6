# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the errors whose text the user reads."""

from __future__ import annotations

from collections.abc import Iterable


class JobError(Exception):
    """One sentence: subject and state, what was expected, where it is set, what to do.

    Attributes:
        not_shown: the part of it that the user has not read yet; "" means all.
    """

    def __init__(self, sentence: str, not_shown: str = "") -> None:
        super().__init__(sentence)
        self.not_shown = not_shown


class Stopped(JobError):
    """The job was stopped on request: it neither failed nor succeeded."""


def join_errors(errors: Iterable[Exception], consequence: str = "") -> JobError:
    """Join what went wrong on several nodes into one error, a line each, ending with what that means for the job."""
    # What this machine cannot do is the same for all nodes.
    lines = list(dict.fromkeys(getattr(error, "why", "") or str(error) for error in errors))
    if not consequence:
        return JobError("\n".join(lines))
    return JobError("\n".join([*lines, consequence]) if len(lines) > 1 else f"{lines[0]}. {consequence}")
