"""Starts a process for each device itself, and takes the machine for the only one, as torch's tutorial does."""

import os

import torch.distributed as dist
import torch.multiprocessing as mp


def train(rank: int, world_size: int) -> None:
    """Be one of them."""
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = "12355"
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(train, args=(2,), nprocs=2)
