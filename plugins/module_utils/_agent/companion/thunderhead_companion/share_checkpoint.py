# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Load a checkpoint on all ranks that only one node's disk has, as where rank 0 alone has saved it."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from typing import Any, NamedTuple

from .tell_supervisor import forbid_retry

PIECE_BYTES = 2**26
"""So much of a checkpoint is sent at once."""


class Copy(NamedTuple):
    """What a rank has of a checkpoint.

    Attributes:
        node: NODE_RANK.
        path: of it, absolute; "" if this rank knows of none, as where it looked for the last one on its own disk.
        relative: its path from the working directory on, if it lies there; else as ``path``.
        size: bytes; -1 if there is no such file.
        changed: when that was last, ns since 1970.
    """

    node: str
    path: str
    relative: str
    size: int
    changed: int


class Transfer(NamedTuple):
    """How the nodes that lack a checkpoint get it.

    Attributes:
        source: the rank that sends it.
        path: of the file there, absolute.
        size: bytes.
        receivers: the ranks that write it down, one on each node that lacks it.
        is_for_us: whether this rank's node is one of these.
    """

    source: int
    path: str
    size: int
    receivers: set[int]
    is_for_us: bool


def resume_shared(trainer: Any, path: Any = None, *given: Any, **named: Any) -> None:
    """Do what ``resume_start`` of a Trainer's checkpoint connector does, with the same file on all ranks.

    Collective: all ranks call it in ``Trainer.fit``, ``validate``, ``test`` and ``predict``, also without a checkpoint.
    Nodes that lack the file, have another of that name, or know of none, load that of rank 0, or else that of the first
    node that has one.
    """
    import torch.distributed as dist

    connector = trainer._checkpoint_connector
    resume = functools.partial(type(connector).resume_start, connector)
    is_failing = sys.exc_info()[1] is not None  # as where a Tuner restores what was, on a rank that raised
    is_sharing = is_shared(trainer.strategy)
    if not is_sharing and trainer.num_nodes > 1:
        forbid_retry(trainer, f"its {type(trainer.strategy).__name__} needs its checkpoint on each node")
    transfer = find_transfer(os.fspath(path or "")) if is_sharing and not is_failing else None
    if not transfer:
        resume(path, *given, **named)
        return
    received = os.path.join(os.environ["JOB_DIR"], "companion", "received", os.path.basename(transfer.path))
    send(transfer, received, trainer.strategy.root_device)
    dist.barrier()  # it is there
    resume(received if transfer.is_for_us else transfer.path, *given, **named)
    connector._ckpt_path = path or transfer.path  # what the script is told
    dist.barrier()  # all ranks of this node have read it
    if dist.get_rank() in transfer.receivers:
        os.unlink(received)


def is_shared(strategy: Any) -> bool:
    """Return whether all ranks work together by this strategy, and each loads the file at the path that it is given.

    One of a single device may exist beside a process group, and some, such as FSDP's, load in their own way.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return False
    is_plain = type(strategy).load_checkpoint.__module__.endswith(".strategies.strategy")
    return is_plain and getattr(strategy, "world_size", 1) == dist.get_world_size()


def find_transfer(path: str) -> Transfer | None:
    """Return how a checkpoint gets to all nodes.

    None if all have the same, none has it, or the ranks do not mean the same file.

    Args:
        path: of it, or "".
    """
    import torch.distributed as dist

    rank, copies = dist.get_rank(), gather(describe(path))
    first: dict[str, int] = {}  # rank of each node
    for number, copy in enumerate(copies):
        first.setdefault(copy.node, number)
    having = [number for number in first.values() if copies[number].size >= 0]
    if not having or len({(copy.size, copy.changed) for copy in copies}) == 1:
        return None
    meant = [copy for copy in copies if copy.path]
    if len({copy.path for copy in meant}) > 1 and len({copy.relative for copy in meant}) > 1:
        return None
    source = having[0]
    alike = [number for number in having if copies[number].size == copies[source].size]
    digests = gather(digest(path) if rank in alike and len(alike) > 1 else "")
    same = [number for number in alike if digests[number] == digests[source]]
    lacking = {node: number for node, number in first.items() if number not in same}
    if not lacking:
        return None
    of_source = copies[source]
    return Transfer(source, of_source.path, of_source.size, set(lacking.values()), copies[rank].node in lacking)


def gather(value: Any) -> list[Any]:
    """Return what each rank passes, in rank order."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def describe(path: str) -> Copy:
    """Return what this rank has of a checkpoint."""
    here, whole = os.path.join(os.getcwd(), ""), os.path.abspath(path) if path else ""
    relative, node = whole.removeprefix(here), os.environ.get("NODE_RANK", "")
    if not os.path.isfile(path):  # a folder has its parts on several nodes, each where it belongs
        return Copy(node, whole, relative, -1, 0)
    status = os.stat(path)
    return Copy(node, whole, relative, status.st_size, status.st_mtime_ns)


def digest(path: str) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


def send(transfer: Transfer, received: str, device: Any) -> None:
    """Send a file from one rank to all, in pieces, by way of the training's own process group; receivers write it down.

    Args:
        transfer: who sends what, and who receives.
        received: path of the copy.
        device: of the tensors that the process group takes.
    """
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    sends, receives = rank == transfer.source, rank in transfer.receivers
    if receives:
        os.makedirs(os.path.dirname(received), exist_ok=True)
    with open(transfer.path if sends else received if receives else os.devnull, "rb" if sends else "wb") as file:
        for start in range(0, transfer.size, PIECE_BYTES):
            length = min(PIECE_BYTES, transfer.size - start)
            data = bytearray(file.read(length) if sends else length)
            if len(data) < length:
                raise OSError(f"{transfer.path} became shorter while it was sent to other nodes")
            piece = torch.frombuffer(data, dtype=torch.uint8).to(device)
            dist.broadcast(piece, transfer.source)
            if receives:
                file.write(piece.cpu().numpy().tobytes())
