# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *time*: the nodes' clocks agree."""

from __future__ import annotations

from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import all_nodes, describe_hosts

CHECKS = {"time.clocks": "the nodes' clocks, less what asking took, agree to within `preflight_clock_max_seconds`"}
OPTIONS: dict[str, dict[str, Any]] = {"clock_max_seconds": {"type": "float", "default": 2.0}}


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Judge the clocks."""
    return make_checks(cluster, {"time.clocks": clocks})


def ahead(before: float, shown: tuple[float, float], after: float) -> tuple[float, float]:
    """Return by how many seconds a node's clock is ahead of the controller's, at least and at most.

    Args:
        before: when the node was asked, seconds since 1970 on the controller's clock.
        shown: the node's clock when it began to answer, and at its end.
        after: when the answer was there.
    """
    return shown[1] - after, shown[0] - before


def clocks(cluster: ClusterFacts) -> Verdict:
    """Compare each clock with the middle one: of many, it is seldom the one that is wrong. The controller's counts too.

    What asking took counts in favour of a clock, so a small difference may go unseen, but none is made up.
    """
    readings = {host: facts["clock"] for host, facts in cluster.facts.items()}
    leasts, mosts = zip((0.0, 0.0), *readings.values(), strict=True)
    at_least, at_most = (sorted(bounds)[(len(bounds) - 1) // 2] for bounds in (leasts, mosts))
    apart = {host: max(0.0, least - at_most) or min(0.0, most - at_least) for host, (least, most) in readings.items()}
    limit = cluster.options["clock_max_seconds"]
    spread = max(apart.values()) - min(apart.values())
    data = {"seconds_apart": {host: round(seconds, 3) for host, seconds in apart.items()}}
    if spread <= limit:
        return Verdict("time.clocks", "ok", f"the clocks of {all_nodes(readings)} agree to within {limit:g} s", data)
    wrong = {host: _describe_difference(seconds) for host, seconds in apart.items() if abs(seconds) > limit / 2}
    return Verdict(
        "time.clocks",
        "failed",
        f"{describe_hosts(wrong)}, but {limit:g} s are allowed; start a time service there (chrony, or "
        "systemd-timesyncd: timedatectl set-ntp true)",
        data,
    )


def _describe_difference(seconds: float) -> str:
    size = abs(seconds)
    amount = f"{size:.1f} s" if size < 120 else f"{size / 60:.0f} min" if size < 7200 else f"{size / 3600:.1f} h"
    return f"has a clock that is {amount} {'ahead of' if seconds > 0 else 'behind'} the others"
