# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Translate the cluster's rules for firewalld: rich rules of a priority that tells them from all others.

A negative priority also puts a rule before the zone's own denies. See firewalld.richlanguage(5); a rule is written here
as firewalld lists it, so that the two can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import Span, written

Differences = dict[str, list[dict[str, str]]]
PRIORITY = 'priority="-29500"'
OURS = f"rule {PRIORITY} "
ZONES = "/etc/firewalld/zones"
"""Where firewalld keeps what was changed of a zone, a file each."""


class Zone:
    """What a zone lists: whether an interface or a source is bound to it, and the cluster's rules in it."""

    def __init__(self, is_active: bool) -> None:
        self.is_active = is_active
        self.rules: list[str] = []


def is_named_in_files() -> bool:
    """Return whether firewalld's files have rules of the cluster; its program would take a fifth of a second."""
    files = (path for path in Path(ZONES).glob("*.xml") if path.is_file())
    return any(PRIORITY in path.read_text("utf-8", "replace") for path in files)


def rules(networks: Iterable[str], ports: Sequence[Span]) -> list[str]:
    """Return what lets these networks in."""
    return [
        f'{OURS}family="{"ipv6" if ":" in network else "ipv4"}" source address="{network}" '
        f'port port="{written(span, "-")}" protocol="tcp" accept'
        for network in networks
        for span in ports
    ]


def parse_zones(listing: str) -> dict[str, Zone]:
    """Return the zones of ``firewall-cmd --list-all-zones``."""
    zones: dict[str, Zone] = {}
    zone = Zone(False)
    for line in listing.splitlines():
        if match := re.match(r"(\S+)(?: \((.*)\))?$", line):
            zone = zones[match[1]] = Zone("active" in (match[2] or ""))
        elif line.strip().startswith(OURS):
            zone.rules.append(line.strip())
    return zones


def compare(runtime: dict[str, Zone], permanent: dict[str, Zone], default: str, wanted: Sequence[str]) -> Differences:
    """Return what is ``missing`` and what is ``stale``, lists of rules with their zones.

    Args:
        runtime: the zones as they are in force; none while firewalld does not run.
        permanent: as they will be after the next reload.
        default: the zone of whatever is bound to none.
        wanted: the rules, for the default zone and all active ones: any of these may see the peers.
    """
    there = {name: set(zone.rules) for name, zone in permanent.items()}
    now = {name: set(zone.rules) for name, zone in runtime.items()}
    seeing = [name for name, zone in runtime.items() if zone.is_active or name == default]
    return {
        "missing": [
            {"zone": zone, "rule": rule}
            for zone in seeing
            for rule in wanted
            if rule not in there.get(zone, set()) & now[zone]
        ],
        "stale": [
            {"zone": zone, "rule": rule}
            for zone in sorted(there.keys() | now.keys())
            for rule in sorted(there.get(zone, set()) | now.get(zone, set()))
            if zone not in seeing or rule not in wanted
        ],
    }
