"""Starts a process for each device of a node itself, and counts their ranks over all nodes."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEVICES = 2


def train(device: int) -> None:
    """Be one of them."""
    rank = int(os.environ["NODE_RANK"]) * DEVICES + device
    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["NUM_NODES"]) * DEVICES)
    number = torch.ones(1)
    dist.all_reduce(number)
    # With its line end in one piece: print writes that apart, and another process's line comes between.
    sys.stdout.write(f"rank {rank}: {int(number)} of {dist.get_world_size()}\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(train, nprocs=DEVICES)
