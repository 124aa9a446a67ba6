# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that hang, as test data: what agents on three nodes said of real ones (torch 2.13, Lightning 2.6, gloo)."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import Process
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology, rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)

FOLDER = Path(__file__).parent / "stacks"
Answer = tuple[dict[str, Any], bytes] | NodeError


def topology_of(count: int) -> Topology:
    names = [f"node{rank}" for rank in range(count)]
    settings = [NodeSettings(name, None, "/", 29500, "", {}) for name in names]
    located = {name: {"address": f"198.18.0.{rank + 1}", "interface": "eth0"} for rank, name in enumerate(names)}
    return rank_nodes(settings, located)


def reply_of(case: str, host: str) -> tuple[dict[str, Any], bytes]:
    """What the agent on ``host`` replied."""
    reply, _newline, payload = (FOLDER / case / f"{host}.txt").read_bytes().partition(b"\n")
    found = ast.literal_eval(reply.decode())
    processes = [{"cpu": 0.0, "io": 0, **one} for one in found["processes"]]
    return {"seconds": 0.0, **found, "processes": processes}, payload


def processes_of(case: str, host: str) -> list[Process]:
    """Return the processes of a job that an agent on ``host`` once saw."""
    reply, payload = reply_of(case, host)
    processes, offset = [], 0
    for one in reply["processes"]:
        text = payload[offset : offset + one["bytes"]]
        offset += one["bytes"]
        fields = {name: one[name] for name in ("pid", "parent", "local_rank", "state", "python", "cpu", "io")}
        processes.append(Process(**fields, text="\n".join(map(printable, text.split(b"\n")))))
    return processes


def log_of(case: str, host: str) -> bytes:
    return (FOLDER / case / f"{host}.log").read_bytes()


class FakeGang:
    """A gang whose nodes answer as they are told to, and that knows what it was asked."""

    job_id = "job-1"

    def __init__(self, topology: Topology, **answers: Callable[[str, Mapping[str, Any]], Answer]) -> None:
        self.topology = topology
        self.answers = answers
        self.asked: list[tuple[str, dict[str, dict[str, Any]]]] = []

    def ask(
        self, op: str, timeout_seconds: float, hosts: Any = None, payload: bytes = b"", **more: Any
    ) -> tuple[dict[str, Any], dict[str, NodeError]]:
        requests = {
            node.host: {name: value(node.host) if callable(value) else value for name, value in more.items()}
            for node in self.topology.nodes
            if hosts is None or node.host in hosts
        }
        self.asked.append((op, requests))
        answers = {host: self.answers[op](host, request) for host, request in requests.items()}
        return (
            {host: answer for host, answer in answers.items() if not isinstance(answer, NodeError)},
            {host: answer for host, answer in answers.items() if isinstance(answer, NodeError)},
        )


def unreachable(host: str) -> Unreachable:
    return Unreachable(host, "is unreachable: Connection timed out")
