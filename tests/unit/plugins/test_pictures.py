# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's pictures show what the commands print now."""

import difflib
import html
import re
import xml.etree.ElementTree as ET

import pytest
from local_nodes import starts_jobs
from terminal import COMMANDS, HOME, PICTURES, Desk, draw, drawn


def lines(picture: str) -> list[str]:
    """Return what a picture says, line by line."""
    rows: dict[float, list[str]] = {}
    for y, text in re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>([^<]*)</text>', picture):
        rows.setdefault(float(y), []).append(html.unescape(text).replace("\xa0", " "))
    return ["".join(row).strip() for _y, row in sorted(rows.items())]


@starts_jobs
def test_they_are_current() -> None:
    for name, picture in draw().items():
        shown = (PICTURES / f"{name}.svg").read_text()
        if picture != shown:
            diff = difflib.unified_diff(lines(shown), lines(picture), "shown", "printed", lineterm="")
            change = "\n".join(diff) or "colours, or how it is drawn"
            pytest.fail(f"docs/images/{name}.svg is out of date; make it anew: make pictures\n{change}", pytrace=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_they_are_small_and_load_nothing(name: str) -> None:
    picture = (PICTURES / f"{name}.svg").read_text()
    assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(picture) < 60_000
    assert re.findall(r"https?://[^\"' )]+", picture) == ["http://www.w3.org/2000/svg"]
    assert lines(picture)[0] == f"$ {COMMANDS[name][0]}"


def test_a_line_that_is_too_long_is_broken_as_on_a_terminal() -> None:
    assert lines(drawn("long", "true", "\x1b[31mabc def\x1b[0m", 6)) == ["$ true", "abc de", "f"]


def test_what_is_another_each_time_is_not_shown(tmp_path_factory: pytest.TempPathFactory) -> None:
    desk = object.__new__(Desk)  # no node is needed
    desk.home, desk.seen = tmp_path_factory.getbasetemp(), {}
    first, second = "20270101-010203-train-abcd", "20270101-010204-train-ef01"
    assert desk.fixed(f"{desk.home}/runs/{first}, MASTER_PORT 123, after 12 s") == (
        f"{HOME}/runs/20261122-173005-train-1a2b, MASTER_PORT 29500, after 1 s"
    )
    assert desk.fixed(f"{second} {first}") == "20261122-173142-train-3c4d 20261122-173005-train-1a2b"
