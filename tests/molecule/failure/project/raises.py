"""Raises on rank 1 only; the other rank would wait for it for ever."""

import os
import time

if os.environ["NODE_RANK"] == "1":
    raise RuntimeError("deliberate, on rank 1")
time.sleep(3600)
