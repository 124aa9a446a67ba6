# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The cluster's rules in ufw: those with its name as their comment."""

from __future__ import annotations

import re

from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall.opening import NAME, multiports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall.opening import Span

Differences = dict[str, list[dict[str, str]]]
_RULE = re.compile(rf"ufw allow from (\S+) to any port (\S+) proto tcp( comment '{NAME}')?")


def compare(added: str, networks: Iterable[str], ports: Sequence[Span]) -> Differences:
    """Return what is ``missing`` and what is ``stale``, lists of ``network`` and ``ports``.

    ufw has no rule twice, whatever the comments: where the administrator has the very same one it counts as there,
    and stays theirs.

    Args:
        added: what ``ufw show added`` prints.
        networks: to be let in.
        ports: to these ports.
    """
    matches = [match for line in added.splitlines() if (match := _RULE.fullmatch(line.strip()))]
    there = {(match[1], match[2]) for match in matches}
    ours = [(match[1], match[2]) for match in matches if match[3]]
    wanted = [(network, group) for network in networks for group in multiports(ports)]
    return {
        "missing": [{"network": network, "ports": group} for network, group in wanted if (network, group) not in there],
        "stale": [{"network": network, "ports": group} for network, group in ours if (network, group) not in wanted],
    }
