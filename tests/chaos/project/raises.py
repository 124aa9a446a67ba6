"""Raises on rank argv[1] once that rank finds the file `go` beside it; the others would wait for it for ever."""

import os
import sys
import time
from pathlib import Path

print("ready")
while os.environ["NODE_RANK"] != sys.argv[1] or not Path("go").exists():
    time.sleep(0.02)
raise RuntimeError(f"deliberate, on rank {sys.argv[1]}")
