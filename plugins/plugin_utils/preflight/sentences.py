# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the checks' sentences have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import listed

MOST_GROUPS = 4
SETUP = "run: ansible-playbook setup.yml"
REBUILD = f"remove envs in the cluster_dir there, and {SETUP}"
"""Setup leaves an environment alone that it once completed."""


def divided(values: Mapping[str, str]) -> str:
    """Return "2.13.0 (node0, node1), 2.12.1 (node2)": who has what, the commonest first."""
    groups: dict[str, list[str]] = {}
    for host, value in values.items():
        groups.setdefault(value, []).append(host)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return listed([f"{value} ({listed(hosts)})" for value, hosts in ordered], MOST_GROUPS)


def each(problems: Mapping[str, str]) -> str:
    """Return "node0 has no X; each of node1, node2 has no Y"."""
    groups: dict[str, list[str]] = {}
    for host, problem in problems.items():
        groups.setdefault(problem, []).append(host)
    found = [f"{'each of ' if len(hosts) > 1 else ''}{listed(hosts)} {problem}" for problem, hosts in groups.items()]
    more = len(found) - MOST_GROUPS
    return "; ".join(found[:MOST_GROUPS]) + (f"; and so on for {more} more" if more > 0 else "")


def every(hosts: Sequence[str] | Mapping[str, object]) -> str:
    """Return "all 3 nodes", "both nodes" or "the node"."""
    return {1: "the node", 2: "both nodes"}.get(len(hosts), f"all {len(hosts)} nodes")
