"""Fabric, which starts its processes itself where nobody else has."""

import torch
from lightning_fabric import Fabric

fabric = Fabric(accelerator="cpu", devices=1)
fabric.launch()
model = torch.nn.Linear(2, 1)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
fabric.backward(model(torch.ones(4, 2)).square().mean())
print(f"{fabric.global_rank} of {fabric.world_size}", flush=True)
fabric.barrier()
torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process
