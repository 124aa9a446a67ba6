# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run an all-reduce with the other nodes; executed on a node, with the environment's Python.

The text of this file is sent, followed by a call of ``main``. It prints JSON objects, one a line: what the agent's
``try_program`` understands (``step`` and ``seconds``), and what ``collective`` reads:

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
import sys
import time
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
LEAST_EXCHANGED = 256_000
"""Bytes; what buffers on the way take in at once does not measure a link."""
EXCHANGES = 3
PAIRS_SECONDS = 5.0
"""Pairs are tried for so long, or until all have been; then those of slow nodes once more."""
MOST_SLOW = 5


def main(arguments: dict[str, Any]) -> None:
    """Take part in the all-reduce.

    Args:
        arguments: address and port of the rendezvous, rank, world_size, seconds (the most that a step may take) and
            fraction (an all-reduce is slow if its bandwidth is this much of the best pair's, or less).
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed

    def report(**message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        take_part(arguments, report)
    except BaseException as error:
        lines = str(error).strip().splitlines()
        report(error=type(error).__name__ + (f": {lines[0]}" if lines else ""))
    # Without the end of the interpreter, in which torch may wait for others.
    out.flush()
    os._exit(0)


def take_part(arguments: dict[str, Any], report: Callable[..., None]) -> None:
    """Meet the others, and reduce: through gloo, then through NCCL if torch sees a GPU on every node."""
    seconds, rank, count = arguments["seconds"], arguments["rank"], arguments["world_size"]
    report(step="torch", seconds=seconds)
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
    report(gpus=gpus)
    report(step="meet", seconds=seconds)
    limit = timedelta(seconds=seconds)
    address, port = arguments["address"], arguments["port"]
    store = dist.TCPStore(address, port, count, rank == 0, limit)  # type: ignore[attr-defined]  # not in __all__
    report(step="connect", seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    report(step="gloo", seconds=seconds)
    gloo = Group("gloo", torch.device("cpu"), rank, count, None, report)
    gloo.measure(arguments["fraction"])
    if gloo.agreed(-gpus)[0] < 0:
        report(step="nccl", seconds=seconds)
        torch.cuda.set_device(0)
        group = dist.new_group(backend="nccl", timeout=limit)
        Group("nccl", torch.device("cuda", 0), rank, count, group, report).measure(arguments["fraction"])
    gloo.agreed(0)  # rank 0, which has the store, ends last
    report(step="done", seconds=seconds)


class Group:
    """All ranks together, on one backend."""

    def __init__(
        self,
        backend: str,
        device: torch.device,
        rank: int,
        count: int,
        group: dist.ProcessGroup | None,
        report: Callable[..., None],
    ) -> None:
        """Keep what is needed; nothing is measured yet."""
        self.backend = backend
        self.device = device
        self.rank = rank
        self.count = count
        self.group = group
        self.report = report

    def agreed(self, *values: float) -> list[float]:
        """Return of each value the largest of all ranks', on all of them."""
        import torch
        import torch.distributed as dist

        largest = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return [float(value) for value in largest]

    def timed(self, act: Callable[[], None], repeats: int = 1) -> float:
        """Return how long an act takes here, in seconds."""
        import torch

        began = time.perf_counter()
        for _repeat in range(repeats):
            act()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    def measure(self, fraction: float) -> None:
        """Tell how fast the all-reduce is; if it is slow against the fastest pair, how fast each pair is."""
        bandwidth = self.measure_all()
        if self.count > 2:
            Tournament(self, bandwidth).play(fraction)

    def measure_all(self) -> float:
        """Tell how long all-reduces take; return the bus bandwidth of the largest, in bytes a second.

        As nccl-tests defines it (its doc/PERFORMANCE.md): what each of n nodes sends, 2 (n-1)/n of the message.
        """
        import torch
        import torch.distributed as dist

        spent = 0.0
        took: dict[int, float] = {}
        for size in SIZES:
            if spent + 2 * expected(took, size) > RING_SECONDS:
                break
            numbers = torch.zeros(size // 4, device=self.device)

            def reduce(numbers: torch.Tensor = numbers) -> None:
                dist.all_reduce(numbers, group=self.group)

            (once,) = self.agreed(self.timed(reduce))
            repeats = max(1, min(MOST_REPEATS, int(SIZE_SECONDS / once)))
            (took[size],) = self.agreed(self.timed(reduce, repeats))
            self.report(backend=self.backend, bytes=size, took=took[size])
            spent += once + repeats * took[size]
        largest = max(took)
        return 2 * (self.count - 1) / self.count * largest / took[largest]


def expected(took: dict[int, float], size: int) -> float:
    """Return about how many seconds a message of a size takes, as those before did: some, and some for each byte."""
    if len(took) < 2:
        return 0.0
    (small, less), (large, more) = list(took.items())[-2:]
    return more + max(0.0, more - less) / (large - small) * (size - large)


class Tournament:
    """All pairs of nodes exchange data, n/2 pairs at once."""

    def __init__(self, ranks: Group, bandwidth: float) -> None:
        """Exchange as much as takes some time at an all-reduce's bandwidth."""
        import torch

        size = int(min(max(bandwidth * EXCHANGE_SECONDS, LEAST_EXCHANGED), SIZES[-1])) // 4
        self.ranks = ranks
        self.bandwidth = bandwidth
        self.sent, self.received = torch.zeros(size, device=ranks.device), torch.zeros(size, device=ranks.device)
        self.speeds: dict[int, float] = {}  # bytes a second, by peer

    def play(self, fraction: float) -> None:
        """Tell how fast this node is with its fastest peer, and with its slowest ones.

        A node that seems slow tries again, with nothing else going on: one that was busy is no bad link.
        """
        rank, all_ranks = self.ranks.rank, range(self.ranks.count)
        every = range(turns(self.ranks.count))
        first = 1 if self.ranks.count > 3 else 3  # turns with a pair in them that has no part in a slow node
        self.play_turns(every[:first], all_ranks)
        if self.bandwidth > fraction * self.ranks.agreed(self.best)[0]:
            return
        self.play_turns(every[first:], all_ranks)
        bests = self.ranks.agreed(*(self.best if one == rank else 0.0 for one in all_ranks))
        slow = [one for one in all_ranks if bests[one] < fraction * median(bests)]
        if slow:
            self.play_turns(every, all_ranks if rank in slow else slow)
        ordered = sorted(self.speeds, key=lambda peer: self.speeds[peer])
        for peer in {*ordered[:MOST_SLOW], *ordered[-1:]}:
            self.ranks.report(backend=self.ranks.backend, peer=peer, speed=self.speeds[peer])

    @property
    def best(self) -> float:
        """Bytes a second with the fastest peer so far."""
        return max(self.speeds.values(), default=0.0)

    def play_turns(self, numbers: Sequence[int], peers: Sequence[int]) -> None:
        """Meet these peers in these turns, as long as there is time; all ranks have to be in the same turn."""
        spent = 0.0
        for turn in numbers:
            began = time.perf_counter()
            peer = opponent(self.ranks.rank, turn, self.ranks.count)
            if peer is not None and peer in peers:
                self.speeds[peer] = max(self.meet(peer), self.speeds.get(peer, 0.0))
            spent += self.ranks.agreed(time.perf_counter() - began)[0]
            if spent > PAIRS_SECONDS:
                break

    def meet(self, peer: int) -> float:
        """Return the bytes a second of the fastest exchange; both sides return the same."""
        import torch

        def exchange() -> None:
            self.exchange(peer, self.sent, self.received)

        self.exchange(peer, self.sent[:1], self.received[:1])  # NCCL connects when it is first used
        took = min(self.ranks.timed(exchange) for _exchange in range(EXCHANGES))
        own = torch.tensor([took], device=self.ranks.device)
        other = torch.zeros_like(own)
        self.exchange(peer, own, other)
        return 4 * len(self.sent) / max(float(own), float(other))

    def exchange(self, peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        """Send and receive at the same time."""
        import torch.distributed as dist

        both = [
            dist.P2POp(dist.isend, sent, peer, group=self.ranks.group),
            dist.P2POp(dist.irecv, received, peer, group=self.ranks.group),
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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
