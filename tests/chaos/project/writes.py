"""Writes a result on every rank; on rank argv[1] also until its disk is full."""

import contextlib
import os
import sys
from pathlib import Path

rank = os.environ["NODE_RANK"]
Path(f"result-{rank}").write_bytes(rank.encode() * 1_000_000)
if sys.argv[1:] == [rank]:
    print("fills the disk")  # before: its log is on the same one
    Path("junk").mkdir()
    with contextlib.suppress(OSError), open("junk/all-there-is", "wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
