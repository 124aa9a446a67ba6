# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each fault took to be noticed and to be over: one JSON object a line, for report.py."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from playbook import Playbook

MEASUREMENT = "measurement"
"""Name of such a property."""


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
    """Takes the measurements of one test, as properties of its report."""

    def __init__(self, item: pytest.Item) -> None:
        self._properties = item.user_properties
        self._repeat = item.name

    def note(
        self, fault: str, outcome: str, detected_seconds: float | None = None, ended_seconds: float | None = None
    ) -> None:
        """Take a measurement; seconds."""
        found = Measurement(fault, outcome, rounded(detected_seconds), rounded(ended_seconds), self._repeat)
        self._properties.append((MEASUREMENT, asdict(found)))

    def note_end(self, fault: str, playbook: Playbook, at: float, word: str) -> None:
        """Take the way from a fault at `at` over the first line with `word` to the playbook's end."""
        line = playbook.first(word, since=at)
        assert line, f"no line with {word!r} after the fault in:\n{playbook.text}"
        said = re.search(word, line.text)
        outcome = line.text[said.start() :] if said else line.text
        self.note(fault, plain(outcome), line.at - at, playbook.ended_at - at)


class Measurements:
    """Writes down what tests have measured, in the order of the tests, whichever process ran them: a plugin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Replace what the test measured the last time."""
        if report.when != "call":
            return
        file, line, name = report.location
        found = [{**value, "place": [file, line]} for key, value in report.user_properties if key == MEASUREMENT]
        lines = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []
        kept = [one for one in lines if one["repeat"] != name]
        lines = sorted([*kept, *found], key=lambda one: one.get("place", []))
        self._path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))


def rounded(seconds: float | None) -> float | None:
    """Return seconds as the table shows them."""
    return None if seconds is None else round(seconds, 1)


def plain(sentence: str) -> str:
    """Return a sentence without what differs from run to run, such as a path to a log."""
    return re.sub(r"[;.]? ?see \S+\.log.*", "", sentence).strip(" '\".")
