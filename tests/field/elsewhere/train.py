"""Writes where it is told to, and its last state to a folder outside the job's."""

import os
import sys
from pathlib import Path

out = Path(sys.argv[1])
start = Path(os.environ["CKPT_PATH"]).read_text() if "CKPT_PATH" in os.environ else "the beginning"
out.mkdir(parents=True, exist_ok=True)
# Nodes that share the folder read the old file or the new one, never half of one.
new = out / f"last.pt.{os.environ['NODE_RANK']}"
new.write_text("step 10")
new.replace(out / "last.pt")
print("from", start, flush=True)
