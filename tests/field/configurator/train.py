"""Globals that a configuration file and --name=value replace, and several processes if torchrun has set RANK."""

import os
import sys

import torch
from torch.distributed import all_reduce, destroy_process_group, get_world_size, init_process_group

out_dir = "out"
backend = "nccl"
init_from = "scratch"
max_iters = 10
for argument in sys.argv[1:]:
    if argument.startswith("--"):
        name, _equals, value = argument[2:].partition("=")
        globals()[name] = type(globals()[name])(value)
    else:
        with open(argument) as file:
            exec(file.read())

step = torch.load(f"{out_dir}/ckpt.pt")["step"] if init_from == "resume" else 0
world = 1
if int(os.environ.get("RANK", -1)) != -1:
    init_process_group(backend)
    all_reduce(torch.ones(1))
    world = get_world_size()
print(f"from step {step} of {max_iters}, in a world of {world}", flush=True)
if int(os.environ.get("RANK", 0)) == 0:
    os.makedirs(out_dir, exist_ok=True)
    torch.save({"step": max_iters}, f"{out_dir}/ckpt.pt")
if world > 1:
    destroy_process_group()
