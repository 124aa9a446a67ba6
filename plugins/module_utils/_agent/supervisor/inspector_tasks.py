# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The tasks that a head gives to the inspectors."""

from __future__ import annotations

from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_count, is_number

LOOK, CONNECT, EXPLAIN, FIND = "look", "connect", "explain", "find"
"""What an inspector does: see what its node's ranks do, try to connect to the other nodes, explain what was found, find
the checkpoint that another attempt goes on from."""
WORK_SECONDS = 10.0
"""For how long the work of ranks is measured where others may wait for them in the rendezvous, at most."""
CONNECT_SECONDS = 5.0
"""How long a small job's nodes try to connect to each other."""
SECONDS_PER_NODE = 0.05
"""Besides: a message reaches the last of hundreds of nodes some time after the first."""
LOWEST_PORT = 1024
"""An inspector listens at no port below this one."""


def read_task(value: object, size: int) -> dict[str, Any] | None:
    """Return the task for a member's inspector in a head's message, or None if it is none that a head gives."""
    if not isinstance(value, dict) or not is_count(value.get("number")) or not is_number(value.get("seconds")):
        return None
    task = {"task": value.get("task"), "number": value["number"]}
    seconds, ports = max(0, value["seconds"]), value.get("ports")
    if task["task"] == LOOK:
        return {**task, "seconds": min(seconds, WORK_SECONDS)}
    ranks = {str(rank) for rank in range(size)}
    if task["task"] != CONNECT or not isinstance(ports, dict) or not ports.keys() <= ranks:
        return None
    if not all(is_count(port) and LOWEST_PORT <= port < 2**16 for port in ports.values()):
        return None
    seconds = min(seconds, CONNECT_SECONDS + SECONDS_PER_NODE * size)
    return {**task, "seconds": seconds, "ports": ports, "master": value.get("master") is True}
