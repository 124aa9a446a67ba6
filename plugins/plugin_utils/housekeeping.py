# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Old jobs, their code and unused environments are removed from the nodes. What the controller has of them stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang, OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import amount, counted, shown

TIMEOUT_SECONDS = 600
"""What removing may take on a node: of many small files some 10,000 a second."""
MOST_NOTES = 5
"""Of more things that could not be removed than this only the first are named."""

Cleaned = dict[str, Any]
"""What one node removed: jobs, bundles and envs (names), bytes, and left (``[[path, why]]``, what it could not)."""


def clean(
    settings: Sequence[NodeSettings], open_channel: OpenChannel, keep: int, dry: bool = False
) -> tuple[dict[str, Cleaned], dict[str, NodeError]]:
    """Remove from each node all but its newest ended jobs, and the code and environments that nothing uses any more.

    Args:
        settings: of the nodes.
        open_channel: gives a channel to a host.
        keep: how many ended jobs stay on each node.
        dry: change nothing, only say what would go.

    Returns:
        What each node removed, and why a node could not be asked, by host.

    Raises:
        JobError: ``keep`` is negative.
    """
    if keep < 0:
        raise JobError(f"keep is {keep}; set it to 0 or more")

    def ask(one: NodeSettings) -> Cleaned:
        request = {"op": "clean", "directory": one.directory, "keep": keep, "dry": dry}
        return open_channel(one.host).call(request)[0]

    return fan_out({one.host: one for one in settings}, ask, TIMEOUT_SECONDS)


def keep_newest(gang: Gang, keep: int) -> list[str]:
    """Remove all but the newest ``keep`` ended jobs from the nodes of a job that has ended.

    Returns:
        What the user should know, a sentence each: what was removed, if anything was, and what could not be.
    """
    cleaned, errors = clean(list(gang.settings.values()), gang.open, keep)
    summary = [summed_up(cleaned)] if removes(cleaned) else []
    return [*summary, *left_over(cleaned), *(f"{error}; nothing was removed there" for error in errors.values())]


def removes(cleaned: Mapping[str, Cleaned]) -> bool:
    """Whether any node removed anything."""
    return any(reply["jobs"] or reply["bundles"] or reply["envs"] or reply["bytes"] for reply in cleaned.values())


def summed_up(cleaned: Mapping[str, Cleaned], dry: bool = False) -> str:
    """Return what was removed from all nodes together; a job counts once, on however many nodes it was."""
    if not removes(cleaned):
        return "nothing to remove"
    nouns = {"jobs": "job", "bundles": "bundle", "envs": "environment"}
    numbers = [
        counted(len({name for reply in cleaned.values() for name in reply[kind]}), nouns[kind]) for kind in nouns
    ]
    size = amount(sum(reply["bytes"] for reply in cleaned.values()))
    nodes = counted(len(cleaned), "node")
    return f"{'would remove' if dry else 'removed'} {numbers[0]}, {numbers[1]} and {numbers[2]} ({size}) from {nodes}"


def left_over(cleaned: Mapping[str, Cleaned]) -> list[str]:
    """Return what could not be removed, a sentence each."""
    notes = [
        f"{host} could not remove {shown(path)}: {shown(why)}"
        for host, reply in cleaned.items()
        for path, why in reply["left"]
    ]
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{counted(more, 'more thing')} could not be removed"] if more > 0 else notes
