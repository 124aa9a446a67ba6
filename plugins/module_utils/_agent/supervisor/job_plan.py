# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Describe what a supervisor starts, once it is told which nodes take part.

All but the members comes with the request to prepare, over SSH: a user's variables and arguments may be secrets, and
the start message comes from the head's supervisor, in the clear.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import companion_path


class Plan(NamedTuple):
    """What a node runs, but for what it or the other nodes know; the fields of ``plan`` in a request to prepare.

    In ``launcher_arguments`` and in the values of ``variables``, ``{job_dir}``, ``{attempt}``, ``{rank}``,
    ``{devices}``, ``{interface}`` and ``{master_addr}`` stand for what the node puts in.

    Attributes:
        rank: the node's place among all of the job's, spares last: its NODE_RANK, until a spare takes a node's place.
        world_size: how many nodes take part in an attempt.
        spares: how many more there are, each of which may take the place of one that is lost.
        gang_key: what proves that a supervisor belongs to the job, in hexadecimal digits.
        node_timeout_seconds: a node silent for this long is lost.
        stall_timeout_seconds: a job that prints nothing for so long is looked into; 0: none is.
        rendezvous_timeout_seconds: the same while its ranks may still be about to meet.
        grace_seconds: between TERM and KILL.
        launcher: what starts the script's processes, such as torchrun.
        gang: whether the nodes work together.
        devices: ranks per node under torchrun; None for as many as there are GPUs, or one.
        checkpoint: that the job goes on from, absolute or relative to its working directory; "" if there is none.
        checkpoint_variables: environment variables that hold the path of the checkpoint, where there is one.
        retries: how many attempts may follow the first.
        return_seconds: how long another attempt waits for a node that is lost to be there again.
        retries_any: one may also follow where the script failed by itself, not only where it was killed.
        companion: files that the job's own Python is to find, paths below a folder to their texts.
        master_port: TCP port of the rendezvous.
        launcher_arguments: of Python, before the script's.
        arguments: the script, or ``-m`` and the module, and its arguments; the node replaces $NAME in them.
        variables: the job's environment variables.
        given: those of the user, which win.
        spec: what spec.json says besides of the job.
    """

    rank: int
    world_size: int
    spares: int
    gang_key: str
    node_timeout_seconds: float
    stall_timeout_seconds: float
    rendezvous_timeout_seconds: float
    grace_seconds: float
    launcher: str
    gang: bool
    devices: int | None
    checkpoint: str
    checkpoint_variables: list[str]
    retries: int
    return_seconds: float
    retries_any: bool
    companion: dict[str, str]
    master_port: int
    launcher_arguments: list[str]
    arguments: list[str]
    variables: dict[str, str]
    given: dict[str, str]
    spec: dict[str, Any]

    @property
    def node_count(self) -> int:
        """How many nodes the job has, spares too."""
        return self.world_size + self.spares


class NodeFacts(NamedTuple):
    """What a node knows of itself.

    Attributes:
        job_dir: the job's folder.
        python: path of the environment's interpreter.
        interface: that holds the node's address on the cluster's network.
        gpus: how many there are.
    """

    job_dir: str
    python: str
    interface: str
    gpus: int


class Member(NamedTuple):
    """A node of the job, spares last.

    Attributes:
        host: its name in the inventory.
        address: on the cluster's network.
        gang_port: where its supervisor listens; 0 if it is the only node.
    """

    host: str
    address: str
    gang_port: int


def read_members(value: object, count: int) -> list[Member] | None:
    """Return the members of a start message, or None if it is not one of so many nodes."""
    if not isinstance(value, list) or len(value) != count:
        return None
    members = []
    for one in value:
        if not isinstance(one, list) or [type(part) for part in one] != [str, str, int]:
            return None
        if not 0 <= one[2] < 2**16:
            return None
        members.append(Member(*one))
    return members


def fill_in(
    plan: Plan, facts: NodeFacts, members: list[Member], roster: list[int], attempt: int = 1, checkpoint: str = ""
) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Return the command, the environment variables of the job, and what spec.json says.

    The command is complete but for the script and its arguments, in which $NAME is still to be replaced.

    Args:
        plan: the job's.
        facts: the node's.
        members: the job's nodes.
        roster: the place of each node that takes part, in the order of NODE_RANK; a spare's own is not among them.
        attempt: its number.
        checkpoint: what a later attempt goes on from; "" for what the plan says.
    """
    checkpoint = checkpoint or plan.checkpoint
    known = {
        "job_dir": facts.job_dir,
        "attempt": attempt,
        "rank": roster.index(plan.rank) if plan.rank in roster else plan.rank,
        "devices": plan.devices or max(1, facts.gpus),
        "interface": facts.interface,
        "master_addr": members[0].address,
    }
    command = [facts.python, *(one.format(**known) for one in plan.launcher_arguments)]
    variables = {name: value.format(**known) for name, value in plan.variables.items()}
    if checkpoint:
        path = os.path.join(facts.job_dir, "work", checkpoint)  # which may be absolute
        variables.update(dict.fromkeys(plan.checkpoint_variables, path))
    spec = {
        **plan.spec,
        "launcher": plan.launcher,
        "devices": plan.devices,
        "gang": plan.gang,
        "grace_seconds": plan.grace_seconds,
        "node_timeout_seconds": plan.node_timeout_seconds,
        "world_size": plan.world_size,
        "spares": plan.spares,
        "rank": plan.rank,
        "python": facts.python,
        "master_addr": members[0].address,
        "master_port": plan.master_port,
        "ranks": [{"rank": rank, "host": one.host, "address": one.address} for rank, one in enumerate(members)],
    }
    variables.update(plan.given)
    if plan.companion:
        folders = [companion_path(facts.job_dir), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    return command, variables, spec
