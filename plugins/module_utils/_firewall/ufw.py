# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Translate the cluster's rules for ufw: those with its name as their comment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import NAME, Span, multiports

Differences = dict[str, list[dict[str, Any]]]
DEFAULTS = "/etc/default/ufw"
CHAIN = "ufw-user-input"
"""Of iptables: while it is there, ufw calls itself active."""
RULES = ("/etc/ufw/user.rules", "/etc/ufw/user6.rules", "/lib/ufw/user.rules", "/lib/ufw/user6.rules")
"""Where ufw keeps the rules that it was given, those of before version 0.36 in /lib."""
_RULE = re.compile(rf"ufw allow from (\S+) to any port (\S+) proto tcp( comment '{NAME}')?")


def is_named_in_files() -> bool:
    """Return whether ufw's files have rules of the cluster; its program would take a twelfth of a second."""
    comment = f"comment={NAME.encode().hex()}"
    return any(comment in Path(path).read_text("utf-8", "replace") for path in RULES if Path(path).is_file())


def has_ipv6(defaults: str) -> bool:
    """Return whether ufw takes IPv6 rules, by its DEFAULTS; without a word about it, it does."""
    values = re.findall(r"^\s*IPV6=[\"']?(\w+)", defaults, re.MULTILINE)
    return not values or values[-1].lower() == "yes"


def first_positions(numbered: str) -> dict[bool, int | None]:
    """Return the number of the first IPv4 rule (False) and of the first IPv6 rule (True), None where there is none.

    Args:
        numbered: what ``ufw status numbered`` prints, all IPv4 rules before all IPv6 rules.
    """
    six = [_is_six(line) for line in numbered.splitlines() if line.startswith("[")]
    return {False: None if all(six) else 1, True: six.index(True) + 1 if any(six) else None}


def _is_six(line: str) -> bool:
    """Return whether a numbered rule is of IPv6; ufw marks only those that name no address."""
    rule = line.partition("]")[2].partition("#")[0]
    return "(v6)" in rule or any(map(_is_network_of_six, rule.split()))


def _is_network_of_six(word: str) -> bool:
    try:
        return ipaddress.ip_network(word, strict=False).version == 6
    except ValueError:
        return False


def compare(added: str, numbered: str, networks: Iterable[str], ports: Sequence[Span]) -> Differences:
    """Return what is ``missing`` and what is ``stale``, lists of ``network`` and ``ports``.

    What is missing comes with its ``position``, above all rules of its family (None: there are none, add it), and IPv6
    comes first, so that none moves where the next belongs.

    ufw has no rule twice, whatever the comments: where the administrator has the very same one it counts as there,
    and stays theirs.

    Args:
        added: what ``ufw show added`` prints.
        numbered: what ``ufw status numbered`` prints.
        networks: to be let in.
        ports: to these ports.
    """
    matches = [match for line in added.splitlines() if (match := _RULE.fullmatch(line.strip()))]
    there = {(match[1], match[2]) for match in matches}
    ours = [(match[1], match[2]) for match in matches if match[3]]
    wanted = [(network, group) for network in networks for group in multiports(ports)]
    first = first_positions(numbered)
    missing = [
        {"network": network, "ports": group, "position": first[":" in network]}
        for network, group in wanted
        if (network, group) not in there
    ]
    return {
        "missing": sorted(missing, key=lambda rule: ":" not in rule["network"]),
        "stale": [{"network": network, "ports": group} for network, group in ours if (network, group) not in wanted],
    }
