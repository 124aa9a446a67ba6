# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What all nodes run together for the group *collective*: not here, but there, in the environment's Python.

The text of this file is sent, followed by a call of ``main``. It prints JSON objects, one a line: what the agent's
``rehearse`` understands (``step`` and ``seconds``), and what ``collective`` reads:

    step, seconds           what begins now, and the most that it may take
    backend, bytes, took    an all-reduce of so many bytes took so many seconds
    backend, peer, speed    bytes a second that it exchanged with a peer, its fastest or one of its slowest; only where
                            the all-reduce is slow against the best pairs
    gpus                    how many torch sees
    error                   why it went no further
"""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import torch
    import torch.distributed as dist

SIZES = (1_000, 64_000, 1_000_000, 16_000_000)
"""Of the messages, bytes."""
SIZE_SECONDS = 0.3
"""How long one size is repeated."""
MOST_REPEATS = 20
RING_SECONDS = 8.0
"""A size is left out if it would take longer than this altogether."""
EXCHANGE_SECONDS = 0.05
"""How long two nodes exchange data, once, if they are as fast as the all-reduce was."""
EXCHANGES = 3
PAIRS_SECONDS = 5.0
"""Pairs are tried for so long, or until all have been."""
MOST_SLOW = 5


def main(order: dict[str, Any]) -> None:
    """Take part.

    Args:
        order: address and port of the rendezvous, rank, world_size, seconds (the most that a step may take) and
            fraction (an all-reduce is slow if its bandwidth is this much of the best pair's, or less).
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed

    def tell(**words: Any) -> None:
        print(json.dumps(words), file=out, flush=True)

    try:
        take_part(order, tell)
    except BaseException as error:
        lines = str(error).strip().splitlines()
        tell(error=type(error).__name__ + (f": {lines[0]}" if lines else ""))
    # Without the end of the interpreter, in which torch may wait for others.
    out.flush()
    os._exit(0)


def take_part(order: dict[str, Any], tell: Callable[..., None]) -> None:
    """Meet the others, and reduce: through gloo, then through NCCL if torch sees a GPU on every node."""
    seconds, rank, count = order["seconds"], order["rank"], order["world_size"]
    tell(step="torch", seconds=seconds)
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
    tell(gpus=gpus)
    tell(step="meet", seconds=seconds)
    limit = timedelta(seconds=seconds)
    address, port = order["address"], order["port"]
    store = dist.TCPStore(address, port, count, rank == 0, limit)  # type: ignore[attr-defined]  # not in __all__
    tell(step="connect", seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    tell(step="gloo", seconds=seconds)
    gloo = Group("gloo", torch.device("cpu"), rank, count, None, tell)
    gloo.measure(order["fraction"])
    if gloo.agreed(-gpus) < 0:
        tell(step="nccl", seconds=seconds)
        torch.cuda.set_device(0)
        group = dist.new_group(backend="nccl", timeout=limit)
        Group("nccl", torch.device("cuda", 0), rank, count, group, tell).measure(order["fraction"])
    gloo.agreed(0)  # rank 0, which has the store, ends last
    tell(step="done", seconds=seconds)


class Group:
    """All ranks together, on one backend."""

    def __init__(
        self,
        backend: str,
        device: torch.device,
        rank: int,
        count: int,
        group: dist.ProcessGroup | None,
        tell: Callable[..., None],
    ) -> None:
        """Tell nothing yet."""
        self.backend = backend
        self.device = device
        self.rank = rank
        self.count = count
        self.group = group
        self.tell = tell

    def agreed(self, value: float) -> float:
        """Return the largest of all ranks' values, on all of them."""
        import torch
        import torch.distributed as dist

        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return float(largest[0])

    def timed(self, act: Callable[[], None], repeats: int) -> float:
        """Return how long an act takes on the slowest rank, in seconds."""
        import torch

        began = time.perf_counter()
        for _repeat in range(repeats):
            act()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    def measure(self, fraction: float) -> None:
        """Tell how fast the all-reduce is; if it is slow against the best pair, which nodes are."""
        bandwidth = self.measure_all()
        if self.count > 2:
            self.measure_pairs(bandwidth, fraction)

    def measure_all(self) -> float:
        """Tell how long all-reduces take; return the bus bandwidth of the largest, in bytes a second.

        As nccl-tests defines it (its PERFORMANCE.md): what each of n nodes sends, 2 (n-1)/n of the message.
        """
        import torch
        import torch.distributed as dist

        spent = bandwidth = 0.0
        for size in SIZES:
            numbers = torch.zeros(size // 4, device=self.device)

            def reduce(numbers: torch.Tensor = numbers) -> None:
                dist.all_reduce(numbers, group=self.group)

            once = self.agreed(self.timed(reduce, 1))
            if spent and spent + 2 * once > RING_SECONDS:
                break
            repeats = max(1, min(MOST_REPEATS, int(SIZE_SECONDS / once)))
            took = self.agreed(self.timed(reduce, repeats))
            bandwidth = 2 * (self.count - 1) / self.count * size / took
            self.tell(backend=self.backend, bytes=size, took=took)
            spent += once + repeats * took
            if size < SIZES[-1] and spent + 2 * took * SIZES[SIZES.index(size) + 1] / size > RING_SECONDS:
                break
        return bandwidth

    def measure_pairs(self, bandwidth: float, fraction: float) -> None:
        """Have each node exchange data with others, one at a time, as in a tournament: n/2 pairs at once."""
        import torch

        size = int(min(max(bandwidth * EXCHANGE_SECONDS, SIZES[1]), SIZES[-1])) // 4
        sent, received = torch.zeros(size, device=self.device), torch.zeros(size, device=self.device)
        found: dict[int, float] = {}
        spent = 0.0
        for turn in range(turns(self.count)):
            began = time.perf_counter()
            peer = opponent(self.rank, turn, self.count)
            if peer is not None:
                self.exchange(peer, sent[:1], received[:1])  # NCCL connects when it is first used

                def exchange(peer: int = peer) -> None:
                    self.exchange(peer, sent, received)

                found[peer] = 4 * size / self.timed(exchange, EXCHANGES)
            if turn == 0 and bandwidth > fraction * self.agreed(max(found.values(), default=0.0)):
                return
            spent += self.agreed(time.perf_counter() - began)
            if spent > PAIRS_SECONDS:
                break
        ordered = sorted(found, key=lambda peer: found[peer])
        for peer in {*ordered[:MOST_SLOW], ordered[-1]}:
            self.tell(backend=self.backend, peer=peer, speed=found[peer])

    def exchange(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        """Send and receive at the same time."""
        import torch.distributed as dist

        both = [
            dist.P2POp(dist.isend, sent, peer, group=self.group),
            dist.P2POp(dist.irecv, received, peer, group=self.group),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()


def turns(count: int) -> int:
    """Return in how many turns each of ``count`` players meets each other once."""
    return count - 1 if count % 2 == 0 else count


def opponent(player: int, turn: int, count: int) -> int | None:
    """Return whom a player meets in a turn, or None if it pauses: with an odd number, one player does in each turn.

    The circle method: those whose numbers add up to ``turn``, modulo an odd number, meet, and the one who would meet
    itself meets the last.
    """
    odd = turns(count)
    if player == odd:  # the last of an even number
        return turn * (odd + 1) // 2 % odd
    other = (turn - player) % odd
    if other == player:
        return odd if count % 2 == 0 else None
    return other
