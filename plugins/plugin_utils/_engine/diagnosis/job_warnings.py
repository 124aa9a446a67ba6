# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warn of ranks that did not meet, and of a checkpoint that was not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape, join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import (
    CLI,
    KINDS,
    PLAIN,
    SPAWN,
    TRAINER,
)

Parts = Sequence[tuple[str, Mapping[str, Any]]]
"""Each host with its rank's state as its node reports it, in rank order: the head first."""


def met(about: Mapping[str, Any], parts: Parts) -> bool | None:
    """Return whether the ranks of all nodes met; None if that is not known, or there is one node."""
    states = _each_met(about, parts)
    return False if False in states else None if None in states else True


def _each_met(about: Mapping[str, Any], parts: Parts) -> list[bool | None]:
    """Return whether each node's rank took part in the rendezvous."""
    states = [state.get("met") for _host, state in parts]
    if about.get("launcher") != "torchrun" and True in states:
        states[0] = True  # to connect to it, one has to be there that listens, for however short a time
    return states


def checkpoint_read(parts: Parts) -> bool | None:
    """Return whether a process of the job read the checkpoint; None if there is none, or that is not known."""
    states = {state.get("checkpoint_read") for _host, state in parts} - {None}
    return True in states if states else None


def world_size(nodes: int, gang: bool, together: bool | None) -> int | None:
    """Return how many of a job's nodes work together; None if that is not known.

    Args:
        nodes: how many there are.
        gang: whether they are to.
        together: from ``met``.
    """
    if nodes == 1 or not gang or together is False:
        return 1
    return nodes if together else None


def warning(about: Mapping[str, Any], parts: Parts, ended: bool) -> str:
    """Return what the user should know of a job that runs well, or ended so; "" if there is nothing.

    Args:
        about: what job.json or spec.json say of the job.
        parts: of it.
        ended: whether it has.
    """
    sentences = []
    if met(about, parts) is False:
        sentences.append(_never_met(about, parts, ended))
    if checkpoint_read(parts) is False:
        sentences.append(_never_read(about, ended))
    return "; ".join(sentences)


def _never_met(about: Mapping[str, Any], parts: Parts, ended: bool) -> str:
    each = _each_met(about, parts)
    missing = [host for (host, _state), one in zip(parts, each, strict=True) if one is False]
    head, port = parts[0][0], about.get("master_port")
    at_head = f"MASTER_PORT {port} on {escape(head)}"
    if about.get("launcher") == "torchrun":
        what = f"no process that torchrun started on {join_names(missing)} connected to {at_head}"
    else:
        others = [host for host in missing if host != head]
        silent = [f"no process of the job listened at {at_head}"] if head in missing else []
        if others:
            to = at_head if not silent else "it"
            silent.append(f"{'none' if silent else 'no process of the job'} on {join_names(others)} connected to {to}")
        what = ", and ".join(silent)
    verdict = "the ranks never met" if ended else "the ranks have not met yet"
    if len(missing) < len(parts):
        verdict = "not all ranks met" if ended else "not all ranks have met yet"
    alone = "if each node is meant to work for itself, set -e gang=false"
    return f"{verdict}: {what}; {_remedy(about, len(parts))}; {alone}"


def _remedy(about: Mapping[str, Any], nodes: int) -> str:
    """Return what helps a script of this kind to train on all nodes."""
    uses = about.get("uses")
    launcher, name = KINDS.get(str(uses), KINDS[PLAIN])
    if uses == CLI:
        return f"set trainer.num_nodes to {nodes} in its arguments or its configuration, or nowhere"
    if uses == TRAINER:
        return (
            'give its Trainer num_nodes=int(os.environ["NUM_NODES"]) and a strategy for several nodes such as "ddp", '
            "or neither"
        )
    if uses == SPAWN:
        return (
            "the script starts its processes itself, so let it count over all nodes: rank = NODE_RANK * devices + "
            "device, world_size = NUM_NODES * devices, with MASTER_ADDR and MASTER_PORT as the job sets them"
        )
    if not name:
        return "the script uses no Trainer, no Fabric and no torch.distributed, which train on several nodes"
    if about.get("launcher") != launcher:
        return f"the script uses {name}, so start it with -e launcher={launcher}"
    return (
        f"the script uses {name}, but came to no init_process_group; its log may say what it lacks, such as GPUs or an "
        "argument"
    )


def _never_read(about: Mapping[str, Any], ended: bool) -> str:
    remedy = {
        TRAINER: 'pass ckpt_path=os.environ.get("CKPT_PATH") to fit',
        CLI: "name no ckpt_path in its arguments and its configuration, or $CKPT_PATH in its arguments",
    }.get(str(about.get("uses")), "load what CKPT_PATH names")
    return f"the script has not read CKPT_PATH{', so it started from the beginning' if ended else ' yet'}; {remedy}"
