"""Counts a rank per node, and names it by NODE_RANK."""

import os

import torch
import torch.distributed as dist

dist.init_process_group("gloo", rank=int(os.environ["NODE_RANK"]), world_size=int(os.environ["NUM_NODES"]))
number = torch.ones(1)
dist.all_reduce(number)
print(f"all reduced: {int(number)} of {dist.get_world_size()}", flush=True)
dist.destroy_process_group()
