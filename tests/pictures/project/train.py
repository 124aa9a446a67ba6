"""Fit a line to the points in a file, on all nodes, without torch: a training that takes a second.

Each rank has its share of the points, and rank 0 averages the gradients. The ranks meet as those of torch do: rank 0
listens at MASTER_PORT of MASTER_ADDR, and the others connect to it.
"""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

EPOCHS, STEPS, RATE = 5, 20, 0.3
EPOCH_SECONDS = 0.15  # at least: a job looks after 0.4 s for the first time whether its ranks meet


def meet(rank: int, ranks: int) -> tuple[list[TextIO], list[socket.socket]]:
    """Return streams to the ranks that this one talks to, and the sockets, which are to stay open."""
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        listener = socket.create_server(master)
        peers = [listener.accept()[0] for _ in range(1, ranks)]
        return [peer.makefile("rw") for peer in peers], [listener, *peers]
    while True:
        with suppress(ConnectionRefusedError):
            peer = socket.create_connection(master)
            return [peer.makefile("rw")], [peer]
        time.sleep(0.01)


def send(stream: TextIO, numbers: list[float]) -> None:
    stream.write(json.dumps(numbers) + "\n")
    stream.flush()


def receive(stream: TextIO) -> list[float]:
    """Return what a rank sends; for one that is gone wait until the job is ended."""
    line = stream.readline()
    while not line:
        time.sleep(1)
    numbers: list[float] = json.loads(line)
    return numbers


rank, ranks = int(os.environ["NODE_RANK"]), int(os.environ["NUM_NODES"])
streams, kept_open = meet(rank, ranks)


def average(mine: list[float]) -> list[float]:
    """Return the means over all ranks."""
    if rank:
        send(streams[0], mine)
        return receive(streams[0])
    rows = [mine, *map(receive, streams)]
    means = [sum(column) / ranks for column in zip(*rows, strict=True)]
    for stream in streams:
        send(stream, means)
    return means


name = sys.argv[1] if len(sys.argv) > 1 else "points.csv"
if rank == 0:
    print(f"{ranks} ranks share {name}", flush=True)
average([0.0])
points = []
for number, line in enumerate(Path(name).read_text().splitlines(), 1):
    x, _comma, y = line.partition(",")
    if number % ranks == rank:
        if not y.replace(".", "").isdecimal():
            raise ValueError(f"line {number} of {name} has {y!r} for a number")
        points.append((float(x), float(y)))

slope = offset = loss = 0.0
for epoch in range(1, EPOCHS + 1):
    time.sleep(EPOCH_SECONDS)
    for _step in range(STEPS):
        errors = [slope * x + offset - y for x, y in points]
        loss = sum(error * error for error in errors) / len(points)
        by_slope = sum(2 * error * x for error, (x, _y) in zip(errors, points, strict=True)) / len(points)
        by_offset = sum(2 * error for error in errors) / len(points)
        loss, by_slope, by_offset = average([loss, by_slope, by_offset])
        slope, offset = slope - RATE * by_slope, offset - RATE * by_offset
    if rank == 0:
        print(f"epoch {epoch} of {EPOCHS}: loss {loss:.4f}", flush=True)

if rank == 0:
    print(f"y = {slope:.3f} x + {offset:.3f}", flush=True)
    Path("line.json").write_text(json.dumps({"slope": slope, "offset": offset}))
