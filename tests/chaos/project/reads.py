"""Says what its checkpoint consists of: a line for each file, with its size and its hash."""

import hashlib
import os
from pathlib import Path

checkpoint = Path(os.environ["CKPT_PATH"])
files = [checkpoint] if checkpoint.is_file() else sorted(path for path in checkpoint.rglob("*") if path.is_file())
for path in files:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(path.relative_to(checkpoint.parent), path.stat().st_size, digest)
