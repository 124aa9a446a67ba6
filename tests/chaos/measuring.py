# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each fault took to be noticed and to be over: one JSON object a line, for report.py."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from playbook import Playbook


@dataclass(frozen=True)
class Measurement:
    """One fault, once.

    Attributes:
        fault: what was done, in the words of the table.
        outcome: what Thunderhead said.
        detected_seconds: from the fault to the first word of it on the controller; None where nobody looked on.
        ended_seconds: from the fault to the end of the job, or of the command.
        repeat: the test, for `pytest tests/chaos -k`.
    """

    fault: str
    outcome: str
    detected_seconds: float | None
    ended_seconds: float | None
    repeat: str


class Timeline:
    """Takes the measurements of one test; those of its last time are forgotten."""

    def __init__(self, path: Path, repeat: str) -> None:
        self._path = path
        self._repeat = repeat
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(line for line in lines if json.loads(line)["repeat"] != repeat))

    def note(
        self, fault: str, outcome: str, detected_seconds: float | None = None, ended_seconds: float | None = None
    ) -> None:
        """Write down a measurement; seconds."""
        found = Measurement(fault, outcome, rounded(detected_seconds), rounded(ended_seconds), self._repeat)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")

    def note_end(self, fault: str, playbook: Playbook, at: float, word: str) -> None:
        """Write down the way from a fault at `at` over the first line with `word` to the playbook's end."""
        line = playbook.first(word, since=at)
        assert line, f"no line with {word!r} after the fault in:\n{playbook.text}"
        said = re.search(word, line.text)
        outcome = line.text[said.start() :] if said else line.text
        self.note(fault, plain(outcome), line.at - at, playbook.ended_at - at)


def rounded(seconds: float | None) -> float | None:
    """Return seconds as the table shows them."""
    return None if seconds is None else round(seconds, 1)


def plain(sentence: str) -> str:
    """Return a sentence without what differs from run to run, such as a path to a log."""
    return re.sub(r"[;.]? ?see \S+\.log.*", "", sentence).strip(" '\".")
