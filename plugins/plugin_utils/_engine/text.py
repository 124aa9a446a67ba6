# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Format moments, lists of hosts, and text of several lines, for the user."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import ACTING, join_names

MOST_GROUPS = 4
"""How many groups of hosts a sentence names."""


def escape_lines(text: str) -> str:
    """Return a text of several lines, which stay lines, with what would act upon a terminal escaped."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def format_moment(seconds: float | None) -> str:
    """Return seconds since 1970 as "11-30 03:12:05", by this machine's time zone; "-" for what is no moment."""
    try:
        return datetime.datetime.fromtimestamp(seconds).strftime("%m-%d %H:%M:%S") if seconds else "-"
    except (ValueError, OverflowError, OSError):  # a job's user can write any number
        return "-"


def utc_time(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 has it, such as "2026-11-30T03:12:05+00:00"; "" for what is no moment."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # a job's user can write any number
        return ""


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
