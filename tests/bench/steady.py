# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/bench/recovery.py launches: runs until it is told to stop or to die, and stamps what happens to it.

Stamps are files /stamps/HOST.WHAT that hold nanoseconds of the clock that all containers share. It dies by SIGKILL once
there is a file /stamps/HOST.die.
"""

import os
import pickle
import signal
import socket
import sys
import time
import zipfile
from pathlib import Path
from types import FrameType

STAMPS = Path("/stamps")
HOST = socket.gethostname()


def stamp(what: str) -> None:
    """Write down that something happens now; whole, because recovery.py waits for the file."""
    part = STAMPS / f".{HOST}.{what}"
    part.write_text(str(time.time_ns()))
    part.rename(STAMPS / f"{HOST}.{what}")


def end(_number: int, _frame: FrameType | None) -> None:
    """Obey SIGTERM."""
    stamp("told")
    sys.exit(1)


signal.signal(signal.SIGTERM, end)
if os.environ["NODE_RANK"] == "0":  # what Lightning's checkpoints have in common with this one is all a resume needs
    Path("checkpoints").mkdir(exist_ok=True)
    with zipfile.ZipFile("checkpoints/last.ckpt", "w") as checkpoint:
        checkpoint.writestr("archive/data.pkl", pickle.dumps({"epoch": 0, "global_step": 5}, protocol=2))
stamp("resumed" if "CKPT_PATH" in os.environ else "started")
while not (STAMPS / f"{HOST}.die").exists():
    time.sleep(0.005)
stamp("died")
os.kill(os.getpid(), signal.SIGKILL)
