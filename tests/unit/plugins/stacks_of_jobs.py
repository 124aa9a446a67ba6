# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that hang, as test data: what agents on three nodes said of real ones (torch 2.13, Lightning 2.6, gloo)."""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology, rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_reader import printable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)

FOLDER = Path(__file__).parent / "stacks"
Answer = tuple[dict[str, Any], bytes] | NodeError


class Log:
    """As much of a RankLog as is read."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def tail(self) -> list[str]:
        return [printable(line) for line in self.text.split(b"\n")]


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


def log_of(case: str, host: str) -> Log:
    return Log((FOLDER / case / f"{host}.log").read_bytes())


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
