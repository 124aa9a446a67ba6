"""A Lightning script that talks to torch.distributed besides: Lightning starts it."""

import torch.distributed as dist
from lightning.pytorch import Trainer

trainer = Trainer()
dist.barrier()
