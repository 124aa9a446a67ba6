# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask all nodes once and make all checks."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity, who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import (
    clocks,
    collective,
    hardware,
    inventory,
    names,
    reach,
    report,
    software,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    is_wanted,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import SLOWEST, Code, trial
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

LOOKING: Sequence[Any] = (inventory, names, software, hardware, clocks)
"""Groups that check the nodes' replies."""
TRYING: Sequence[Any] = (reach, collective)
"""Groups that have the nodes do something together, in this order: each knows what failed before."""
CHECKS: dict[str, str] = {
    name: about
    for group in (inventory, names, reach, collective, software, hardware, clocks)
    for name, about in group.CHECKS.items()
}
"""All checks in the order of the table, each with what it looks at."""
OPTIONS: dict[str, dict[str, Any]] = {
    name: about for group in (*LOOKING, *TRYING) for name, about in getattr(group, "OPTIONS", {}).items()
}
"""The thresholds, as an argument spec."""
ANSWER_SECONDS = 60
"""What asking may take besides trying the environment."""


def names_to_skip(given: Collection[str]) -> list[str]:
    """Return names of checks and groups without the spaces around them; raise JobError for any other name."""
    groups = dict.fromkeys(name.partition(".")[0] for name in CHECKS)
    names = [name.strip() for name in given if name.strip()]
    for name in names:
        if name not in CHECKS and name not in groups:
            raise JobError(
                f"skip has {name}, which is no check; the groups are {', '.join(groups)}, "
                f"the checks {', '.join(CHECKS)}"
            )
    return names


def run_checks(
    read: Callable[[], NodeGroup],
    members: Sequence[str],
    options: Mapping[str, Any],
    code: Code | None = None,
) -> list[Verdict]:
    """Make all checks, and return a verdict for each, in the order of the table.

    Args:
        read: gives the nodes that take part, in inventory order; may raise JobError.
        members: all hosts of the cluster, in inventory order.
        options: the action's arguments; ``skip`` has been checked.
        code: whose imports are tried; None for torch's alone.
    """
    try:
        nodes = read()
    except JobError as error:
        found = [Verdict("inventory.group", "failed", str(error))]
        return _completed(found, options["skip"], "the inventory cannot be used: see inventory.group")
    settings = nodes.settings
    found = [Verdict("inventory.group", "ok", f"{len(settings)} of {len(members)} hosts take part")]
    # Importing torch takes longer than all the rest.
    is_tried = any(is_wanted(check, options["skip"]) for check in software.CHECKS)
    facts, errors = _ask(nodes, options["import_timeout_seconds"], is_tried, code)
    found.append(inventory.reachable(errors, len(settings)))
    if facts:
        cluster = ClusterFacts(settings, facts, members, options, options["skip"], code=code)
        found += [verdict for group in LOOKING for verdict in group.checks(cluster)]
        together = replace(cluster, gang=_gang(cluster, nodes))
        for group in TRYING:
            found += group.checks(replace(together, failed=report.failed(found)))
    return _completed(found, options["skip"], "no node answered: see inventory.reachable")


def _ask(
    nodes: NodeGroup, seconds: float, is_tried: bool, code: Code | None
) -> tuple[dict[str, dict[str, Any]], dict[str, NodeError]]:
    settings = nodes.settings
    head = settings[0]
    content = code.bundle.content if code and is_tried else b""
    imports = trial(code) if is_tried else None

    def ask(one: NodeSettings) -> dict[str, Any]:
        variables = code.variables(one, settings) if code else one.env
        request = {
            "op": "preflight_facts",
            "directory": one.directory,
            "user": one.user,
            "address": one.address,
            "master_port": one.master_port if one is head else None,
            "variables": variables,
            "imports": imports,
            "seconds": seconds,
        }
        before = time.time()
        reply, _payload = nodes.open_channel(one.host).call(request, content)
        return {**reply, "clock": clocks.ahead(before, reply["clock"], time.time())}

    return fan_out({one.host: one for one in settings}, ask, seconds + ANSWER_SECONDS + len(content) / SLOWEST)


def _gang(cluster: ClusterFacts, group: NodeGroup) -> Gang | None:
    """Return the nodes that hold an address of their own, as a job's gang; None if there are none."""
    nodes: dict[str, Node] = {}
    for one in cluster.settings:
        place = cluster.facts.get(one.host, {}).get("address", {})
        if "address" in place:
            nodes.setdefault(place["address"], Node(len(nodes), one, place["address"], place["interface"]))
    if not nodes:
        return None
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    identity = Identity(now, f"preflight-{secrets.token_hex(4)}", who())
    return Gang(identity, group.of([node.settings for node in nodes.values()]), Topology(list(nodes.values())))


def _completed(found: Sequence[Verdict], skipped: Collection[str], otherwise: str) -> list[Verdict]:
    """Return a verdict for each check: those found, and why there is none of the others."""
    by_name = {verdict.check: verdict for verdict in found}
    return [
        by_name.get(name, Verdict(name, "skipped", otherwise))
        if is_wanted(name, skipped)
        else Verdict(name, "skipped", "on request")
        for name in CHECKS
    ]
