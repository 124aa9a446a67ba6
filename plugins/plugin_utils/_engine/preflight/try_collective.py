# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the all-reduce program on all nodes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import environment_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node, Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.explain_failure import is_victims
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import SETUP
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import describe_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError

PROGRAM = Path(__file__).parent / "on_node" / "all_reduce.py"
STEPS = ("", "torch", "meet", "connect", "gloo", "nccl", "done")
"""The steps that the program reports, in their order; "" is before the first."""
ANSWER_SECONDS = 30
"""What asking may take besides the steps."""
LONGEST_ERROR = 300

_DOING = {
    "": "starting the environment's Python",
    "torch": "importing torch",
    "meet": "meeting the others at the head",
    "connect": "connecting to all others through gloo",
    "gloo": "reducing through gloo",
    "nccl": "reducing through NCCL",
}
_REMEDIES = {
    "": SETUP,
    "torch": SETUP,
    "meet": "see reach.ephemeral, and look at the load of the nodes that did not come",
    "connect": "see reach.ephemeral and names.hostname",
    "gloo": "see reach.mtu",
    "nccl": "see hardware; with NCCL_DEBUG=INFO in job_env of the inventory, a job's log says more",
}
_SLOW_REMEDY = "look at the load and the disk there, or give it more time with preflight_collective_timeout_seconds"


@dataclass(frozen=True)
class NodeOutcome:
    """What one node reported of the all-reduce.

    Attributes:
        step: the last one that it reached.
        error: why it reached no later one, a verb phrase, or "".
        late: whether it was ended because a step took too long.
        gpus: how many torch sees.
        took: by backend, how many seconds an all-reduce of how many bytes took.
        speeds: by backend, by rank, how many bytes a second it exchanged with a peer: with its fastest and its slowest
            ones, where pairs were tried.
    """

    step: str
    error: str
    late: bool
    gpus: int
    took: Mapping[str, Mapping[int, float]]
    speeds: Mapping[str, Mapping[int, float]]

    @classmethod
    def read(cls, reply: Mapping[str, Any], seconds: float) -> NodeOutcome:
        """Read a node's reply, whose messages may hold anything; a step had so many ``seconds``."""
        step, error, gpus = "", str(reply["error"]), 0
        took: dict[str, dict[int, float]] = {}
        speeds: dict[str, dict[int, float]] = {}
        for message in reply["messages"]:
            backend = str(message.get("backend"))
            step = message["step"] if message.get("step") in STEPS else step
            error = str(message.get("error", error))
            gpus = message["gpus"] if isinstance(message.get("gpus"), int) else gpus
            if _is_number(message.get("bytes")) and _is_number(message.get("took")):
                took.setdefault(backend, {})[message["bytes"]] = message["took"]
            if isinstance(message.get("peer"), int) and _is_number(message.get("speed")):
                speeds.setdefault(backend, {})[message["peer"]] = message["speed"]
        if reply["late"]:
            error = f"did not finish {_DOING.get(step, 'its end')} within {seconds} s"
        elif error:
            error = f"failed at {_DOING.get(step, 'its end')}: {error[:LONGEST_ERROR]}"
        return cls(step, error, reply["late"], gpus, took, speeds)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


@dataclass(frozen=True)
class AllReduceRun:
    """What all nodes reported of the all-reduce.

    Attributes:
        topology: the nodes.
        outcomes: by host.
        errors: by host, where nothing was run.
    """

    topology: Topology
    outcomes: Mapping[str, NodeOutcome]
    errors: Mapping[str, NodeError]

    def obstacle(self, goal: str) -> str:
        """Return which nodes kept all from reaching a step, and the remedy; "" if all reached it."""
        if self.errors:
            return "; ".join(map(str, self.errors.values()))
        behind = {host: one for host, one in self.outcomes.items() if _place(one.step) < _place(goal)}
        if not behind:
            return ""
        step = min((one.step for one in behind.values()), key=_place)
        last = {host: one.error or f"ended at {_DOING[step]}" for host, one in behind.items() if one.step == step}
        # Who lost its peer does not know why.
        guilty = {host: error for host, error in last.items() if not is_victims(error)} or last
        waited = ""
        if len(guilty) < len(self.outcomes):
            waited = f", and the others waited for {'it' if len(guilty) == 1 else 'them'}"
        slow = step in ("", "torch") and all(self.outcomes[host].late for host in guilty)
        return f"{describe_hosts(guilty)}{waited}; {_SLOW_REMEDY if slow else _REMEDIES[step]}"

    def bandwidths(self, backend: str) -> dict[int, float]:
        """Return by size of the message, in bytes and growing, the bus bandwidth in bytes a second.

        As nccl-tests defines it (its doc/PERFORMANCE.md): what each of n nodes sends, 2 (n-1)/n of the message.
        """
        count = self.topology.world_size
        took = self.outcomes[self.topology.head.host].took.get(backend, {})
        return {size: 2 * (count - 1) / count * size / took[size] for size in sorted(took)}


def _place(step: str) -> int:
    return STEPS.index(step)


def run_all_reduce(gang: Gang, port: int, seconds: float, fraction: float) -> AllReduceRun:
    """Have all nodes reduce together.

    Args:
        gang: whose topology is known.
        port: where they meet on the head.
        seconds: the most that a step may take.
        fraction: pairs of nodes are tried too if the all-reduce has this much of the fastest pair's bandwidth, or less.
    """
    topology = gang.topology
    nodes = {node.host: node for node in topology.nodes}
    address, head = topology.head.address, topology.head.host
    program = PROGRAM.read_bytes()

    def ask(port: int) -> tuple[Replies, dict[str, NodeError]]:
        arguments = {"address": address, "port": port, "world_size": topology.world_size, "seconds": seconds}
        return gang.ask(
            "try_program",
            len(STEPS) * seconds + ANSWER_SECONDS,
            payload=program,
            variables=lambda host: _variables(topology, nodes[host]),
            arguments=lambda host: {**arguments, "rank": nodes[host].rank, "fraction": fraction},
            seconds=seconds,
            listen=lambda host: [address, port] if host == head else None,
        )

    replies, errors = ask(port)
    other = errors[head].facts.get("taken") if head in errors else None
    if other:
        replies, errors = ask(other)
    return AllReduceRun(
        topology, {host: NodeOutcome.read(reply, seconds) for host, (reply, _payload) in replies.items()}, errors
    )


def _variables(topology: Topology, node: Node) -> dict[str, str]:
    """Return what a job's environment on a node would hold."""
    return environment_variables.variables(topology.place_of(node), node.settings.env)
