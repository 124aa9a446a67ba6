# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the verdicts, as a table or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.draw_table import laid_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict

COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "cyan"}


def as_table(verdicts: Sequence[Verdict], seconds: float, width: int | None) -> str:
    """Return a row for each check, and a line that sums them up.

    Args:
        verdicts: in the order to be shown.
        seconds: what it all took.
        width: columns of the terminal, where sentences are broken; None for no terminal, where each has one line.
    """
    rows = [(one.check, one.status, one.sentence) for one in verdicts]
    lines = laid_out(("CHECK", "STATUS", "FOUND"), rows, width, COLORS)
    return "\n".join([*lines, summarize(verdicts, seconds)])


def summarize(verdicts: Sequence[Verdict], seconds: float) -> str:
    """Return "27 checks in 4.2 s: 25 ok, 1 warning, 1 failed"."""
    counts: Counter[str] = Counter(one.status for one in verdicts)
    parts = [f"{counts[status]} {status}" for status in COLORS if counts[status]]
    return f"{pluralize(len(verdicts), 'check')} in {seconds:.1f} s: {', '.join(parts)}"


def as_data(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "ok": not failed(verdicts),
        "seconds": round(seconds, 2),
        "checks": [
            {"check": one.check, "status": one.status, "sentence": escape(one.sentence), "data": dict(one.data)}
            for one in verdicts
        ],
    }


def failed(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the names of the checks that failed."""
    return [one.check for one in verdicts if one.status == "failed"]
