"""What knows of the others."""

import torch


def meet() -> None:
    """Meet them."""
    torch.distributed.init_process_group("gloo")
