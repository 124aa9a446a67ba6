"""Accelerate."""

import accelerate

accelerator = accelerate.Accelerator()
