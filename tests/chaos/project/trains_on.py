"""Trains on all nodes together, a numbered line for each step of each, until somebody makes the file `go` on one.

Started once per node: torchrun's own processes would tell in the log which of them left first.
"""

import itertools
import os
import time

import torch
import torch._dynamo  # else DistributedDataParallel imports it, and keeps the process group
import torch.distributed as dist
from torch import nn

lines = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what gloo says
torch.set_num_threads(1)
torch.manual_seed(7)
rank = int(os.environ["NODE_RANK"])
dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
model = nn.parallel.DistributedDataParallel(nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for number in itertools.count():
    inputs = torch.randn(32, 8)
    nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True)).backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"line {number}", file=lines, flush=True)
    is_over = torch.tensor(os.path.exists("go"), dtype=torch.int)
    dist.all_reduce(is_over)
    if is_over:
        break
    time.sleep(0.01)
del model  # it has the process group, and its threads: left to Python's exit, one of them may abort the process
dist.destroy_process_group()
if rank == 0:
    time.sleep(1)  # it has the store, which the others use to the end
