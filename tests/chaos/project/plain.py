"""Plain torch: all ranks add up their own number plus one. argv[1] more ranks are waited for than there are."""

import os
import sys

import torch
import torch.distributed as dist

rank = int(os.environ.get("RANK", os.environ["NODE_RANK"]))
world_size = int(os.environ["WORLD_SIZE"]) + (int(sys.argv[1]) if sys.argv[1:] else 0)
dist.init_process_group("gloo", rank=rank, world_size=world_size)
numbers = torch.tensor([rank + 1])
dist.all_reduce(numbers)
print(f"rank {rank} of {world_size}: {int(numbers)}", flush=True)
dist.destroy_process_group()
