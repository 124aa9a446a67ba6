"""Asks torch.distributed who it is, as many a library does, and starts nothing."""

import torch
import torch.distributed as dist

if not dist.is_initialized():
    print("alone", torch.ones(1), flush=True)
