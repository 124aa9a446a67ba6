# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the checks that cost a run nothing: from the replies to preparing a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import (
    clocks,
    hardware,
    inventory,
    software,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)

CHECKS: dict[str, Callable[[ClusterFacts], Verdict]] = {
    "inventory.ranks": inventory.ranks,
    "software.versions": software.versions,
    "software.packages": software.packages,
    "hardware.shm": hardware.shm,
    "hardware.nofile": hardware.nofile,
    "time.clocks": clocks.clocks,
}
HARD = ("software.versions",)
"""Checks whose failure stops every job. A script may not need what the others check, so they only warn."""
OPTIONS: dict[str, dict[str, Any]] = {
    name: (clocks.OPTIONS | hardware.OPTIONS)[name] for name in ("clock_max_seconds", "shm_min_mb", "nofile_min")
}
"""The thresholds of these checks, as an argument spec."""
DEFAULTS: dict[str, Any] = {name: about["default"] for name, about in OPTIONS.items()} | {"skip": []}


def check_prepared_nodes(
    settings: Sequence[NodeSettings],
    facts: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    members: Sequence[str] = (),
) -> list[str]:
    """Return what the user should know of the nodes, a line each.

    Args:
        settings: of the nodes, in rank order.
        facts: what the agent's ``prepare`` said on each, ``clock`` as in ClusterFacts.
        options: some of DEFAULTS.
        members: all hosts of the cluster, in inventory order, for what setup wrote down; none if that is not judged.

    Raises:
        JobError: the job would fail.
    """
    known = {**DEFAULTS, **options}
    verdicts = make_checks(ClusterFacts(settings, facts, members, options=known, skipped=known["skip"]), CHECKS)
    found = [verdict for verdict in verdicts if verdict.status in ("warning", "failed")]
    hard = [escape(verdict.sentence) for verdict in found if verdict.check in HARD]
    if hard:
        raise JobError(f"{'; '.join(hard)}. Nothing was started on any node.")
    return [f"{verdict.check}: {escape(verdict.sentence)}" for verdict in found]
