# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define what the checks read: the inventory, each node's facts, the options.

Each group of checks is a module of this package with

    CHECKS   its checks' names in full, in the order of the table, each with what it looks at
    OPTIONS  its thresholds, a part of the action's argument spec
    checks   a function of a Cluster that returns one Verdict for each check that is wanted
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import Code


@dataclass(frozen=True)
class ClusterFacts:
    """The cluster as it is.

    Attributes:
        settings: of the hosts that take part, in inventory order.
        facts: what each host that answered said of itself, as the agent's ``preflight_facts`` documents it, but
            ``clock``: by how many seconds its clock is ahead of the controller's, at least and at most.
        members: all hosts of the cluster, in inventory order, those that do not take part too.
        options: the action's arguments, with their defaults.
        skipped: groups and names of checks that are not wanted.
        failed: names of the checks that failed before.
        gang: the nodes that can be asked for more, all of which hold the address that their peers know; None as long
            as it is not known which they are.
        code: what a job would run, if that was named.
    """

    settings: Sequence[NodeSettings]
    facts: Mapping[str, Mapping[str, Any]]
    members: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    skipped: Collection[str] = ()
    failed: Collection[str] = ()
    gang: Gang | None = None
    code: Code | None = None

    @property
    def nodes(self) -> Gang:
        """The nodes, to be asked for more."""
        if self.gang is None:
            raise AssertionError("only the inventory is known yet")
        return self.gang

    @property
    def topology(self) -> Topology:
        """Their ranks and addresses."""
        return self.nodes.topology

    def wants(self, check: str) -> bool:
        """Whether a check is wanted, by its name in full."""
        return is_wanted(check, self.skipped)


def is_wanted(check: str, skipped: Collection[str]) -> bool:
    """Whether neither a check nor its group is among the skipped."""
    return check not in skipped and check.partition(".")[0] not in skipped


def make_checks(cluster: ClusterFacts, judges: Mapping[str, Callable[[ClusterFacts], Verdict]]) -> list[Verdict]:
    """Have each check that is wanted judge the cluster."""
    return [judge(cluster) for check, judge in judges.items() if cluster.wants(check)]
