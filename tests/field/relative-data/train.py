"""Reads a file of its project by a relative path, and one that lies elsewhere on each node."""

import os
from pathlib import Path

print(Path("data/labels.csv").read_text().split(), flush=True)
print(Path(os.environ["DATA_DIR"], "images.bin").stat().st_size, "bytes", flush=True)
