# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Format amounts, lists and untrusted text for the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MOST_GROUPS = 4
"""How many groups of hosts a sentence names."""
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would act upon a terminal, or what it could not take: all control characters but the tab and the newline, those
of Unicode that turn the direction of what follows or break the line, and halves of characters."""


def format_bytes(count: float) -> str:
    """Return a number of bytes as "312 B", "4.7 MB" or "12.3 GB", a thousand of one unit being the next."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def pluralize(number: int, noun: str) -> str:
    """Return "1 job", "2 jobs", "3 processes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def escape(name: str) -> str:
    """Return untrusted text in one line, with what would act upon a terminal escaped."""
    if name.isprintable():
        return name
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def escape_lines(text: str) -> str:
    """Return a text of several lines, which stay lines, with what would act upon a terminal escaped."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Return "a, b and 3 more", ready to be shown."""
    text = ", ".join(map(escape, names[:most]))
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def hosts_by_value(values: Mapping[str, str]) -> str:
    """Return "2.13.0 (node0, node1), 2.12.1 (node2)": who has what, the commonest first."""
    groups: dict[str, list[str]] = {}
    for host, value in values.items():
        groups.setdefault(value, []).append(host)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return join_names([f"{value} ({join_names(hosts)})" for value, hosts in ordered], MOST_GROUPS)


def describe_hosts(problems: Mapping[str, str]) -> str:
    """Return "node0 has no X; each of node1, node2 has no Y"."""
    groups: dict[str, list[str]] = {}
    for host, problem in problems.items():
        groups.setdefault(problem, []).append(host)
    found = [
        f"{'each of ' if len(hosts) > 1 else ''}{join_names(hosts)} {problem}" for problem, hosts in groups.items()
    ]
    more = len(found) - MOST_GROUPS
    return "; ".join(found[:MOST_GROUPS]) + (f"; and so on for {more} more" if more > 0 else "")


def all_nodes(hosts: Sequence[str] | Mapping[str, object]) -> str:
    """Return "all 3 nodes", "both nodes" or "the node"."""
    return {1: "the node", 2: "both nodes"}.get(len(hosts), f"all {len(hosts)} nodes")
