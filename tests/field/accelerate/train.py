"""Accelerate."""

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(2, 1)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
accelerator.backward(model(torch.ones(4, 2)).square().mean())
optimizer.step()
accelerator.save_state("state")
print(f"{accelerator.process_index} of {accelerator.num_processes}", flush=True)
accelerator.end_training()
