#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the measurements of the last `make chaos` into the table of docs/reliability.md, between its markers.

report.py [--check]     with --check nothing is written: say which faults of the table were not measured
"""

import argparse
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"
MEASUREMENTS = REPOSITORY / ".cache" / "chaos" / "measurements.jsonl"
BEGIN, END = "<!-- faults: made by tests/chaos/report.py -->\n", "<!-- end of faults -->\n"


def table(measurements: list[dict[str, str | float | None]]) -> str:
    """Return the measurements as a table of Markdown."""
    rows = [
        "| fault | what happens | noticed after | over after | repeat it: `make chaos ONLY=…` |",
        "|---|---|---|---|---|",
    ]
    for one in measurements:
        seconds = ["" if one[name] is None else f"{one[name]:.1f} s" for name in ("detected_seconds", "ended_seconds")]
        cells = [str(one["fault"]), str(one["outcome"]), *seconds, f"`'{one['repeat']}'`"]
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if not MEASUREMENTS.exists():
        sys.exit(f"there is no {MEASUREMENTS}; run: make chaos")
    measurements = [json.loads(line) for line in MEASUREMENTS.read_text().splitlines()]
    page = PAGE.read_text()
    before, begin, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{PAGE} has no place for the table, a line {BEGIN.strip()} and a line {END.strip()}; put them back")
    if options.check:
        known = {one["fault"] for one in measurements}
        missing = [row for row in old.splitlines()[2:] if row.split(" | ")[0].removeprefix("| ") not in known]
        sys.exit("not measured this time:\n" + "\n".join(missing) if missing else 0)
    PAGE.write_text(before + begin + table(measurements) + end + after)


if __name__ == "__main__":
    main()
