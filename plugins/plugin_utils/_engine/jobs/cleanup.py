# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove old jobs, their code and unused environments from the nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    escape,
    format_bytes,
    pluralize,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

GO_SECONDS = 10
"""How long a node removes before it answers, to be asked again if there is more."""
MOST_ROUNDS = 1000
"""A node that has more to remove after being asked this often does not come to an end."""
TIMEOUT_SECONDS = 60
"""After this long without an answer a node counts as unreachable."""
MOST_NOTES = 5
"""Of more things that could not be removed than this only the first are named."""

Cleaned = dict[str, Any]
"""What one node removed: jobs, bundles and envs (names), bytes, and left (``[[path, why]]``, what it could not)."""


def remove_old_jobs(
    nodes: NodeGroup, keep: int, owner: str | None, dry: bool = False
) -> tuple[dict[str, Cleaned], dict[str, NodeError]]:
    """Remove from each node all but the newest ended jobs, and the code and environments that nothing uses any more.

    Args:
        nodes: whom to ask.
        keep: how many ended jobs stay on each node.
        owner: whose jobs count and go, as ``job_identity.who`` says it; None means everybody's.
        dry: change nothing, only say what would go.

    Returns:
        What each node removed, and why a node could not be asked, by host.

    Raises:
        JobError: ``keep`` is negative.
    """
    if keep < 0:
        raise JobError(f"keep is {keep}; set it to 0 or more")

    def ask(one: NodeSettings) -> Cleaned:
        request = {"op": "clean", "directory": one.directory, "keep": keep, "owner": owner, "dry": dry}
        return nodes.open_channel(one.host).call({**request, "seconds": GO_SECONDS})[0]

    cleaned: dict[str, Cleaned] = {}
    errors: dict[str, NodeError] = {}
    asked = {one.host: one for one in nodes.settings}
    for _round in range(MOST_ROUNDS):
        replies, failed = fan_out(asked, ask, TIMEOUT_SECONDS)
        errors.update(failed)
        asked = {host: asked[host] for host, reply in replies.items() if reply.pop("more")}
        for host, reply in replies.items():
            known = cleaned.setdefault(host, reply)
            if known is not reply:  # lists and bytes; what could not be removed could not either time
                cleaned[host] = {name: reply[name] if name == "left" else known[name] + reply[name] for name in reply}
        if not asked:
            break
    return cleaned, errors


def keep_newest(gang: Gang, keep: int, lost: Collection[str] = ()) -> list[str]:
    """Remove all but the user's newest ``keep`` ended jobs from the nodes of a job that has ended.

    Args:
        gang: the job's nodes.
        keep: how many.
        lost: hosts that do not answer, and are not asked.

    Returns:
        What the user should know, a sentence each: what was removed, if anything was, and what could not be.
    """
    cleaned, errors = remove_old_jobs(gang.nodes.only(gang.settings.keys() - lost), keep, who())
    summary = [summarize(cleaned)] if removed_anything(cleaned) else []
    return [
        *summary,
        *describe_leftovers(cleaned),
        *(f"{error}; what is old may still lie there" for error in errors.values()),
    ]


def removed_anything(cleaned: Mapping[str, Cleaned]) -> bool:
    """Whether any node removed anything."""
    return any(reply["jobs"] or reply["bundles"] or reply["envs"] or reply["bytes"] for reply in cleaned.values())


def summarize(cleaned: Mapping[str, Cleaned], dry: bool = False) -> str:
    """Return what was removed from all nodes together; a job counts once, on however many nodes it was."""
    if not removed_anything(cleaned):
        return "nothing to remove"
    nouns = {"jobs": "job", "bundles": "bundle", "envs": "environment"}
    numbers = [
        pluralize(len({name for reply in cleaned.values() for name in reply[kind]}), nouns[kind]) for kind in nouns
    ]
    size = format_bytes(sum(reply["bytes"] for reply in cleaned.values()))
    nodes = pluralize(len(cleaned), "node")
    return f"{'would remove' if dry else 'removed'} {numbers[0]}, {numbers[1]} and {numbers[2]} ({size}) from {nodes}"


def describe_leftovers(cleaned: Mapping[str, Cleaned]) -> list[str]:
    """Return what could not be removed, a sentence each."""
    notes = [
        f"{host} could not remove {escape(path)}: {escape(why)}"
        for host, reply in cleaned.items()
        for path, why in reply["left"]
    ]
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{pluralize(more, 'more thing')} could not be removed"] if more > 0 else notes
