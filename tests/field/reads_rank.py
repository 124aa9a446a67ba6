"""Trains together if torchrun set RANK, else alone and without a word, as nanoGPT's train.py."""

import os

import torch
from torch.distributed import all_reduce, destroy_process_group, get_world_size, init_process_group

ddp = int(os.environ.get("RANK", -1)) != -1
if ddp:
    init_process_group("gloo")
    number = torch.ones(1)
    all_reduce(number)
    print(f"all reduced: {int(number)} of {get_world_size()}", flush=True)
    destroy_process_group()
