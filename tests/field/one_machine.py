"""Knows nothing of several machines, as a tutorial's regression does."""

import torch

layer = torch.nn.Linear(2, 1)
layer(torch.ones(4, 2)).sum().backward()
print("trained", flush=True)
