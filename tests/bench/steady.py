# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/bench/recovery.py launches: runs until it is told to stop or to die, and stamps what happens to it.

Stamps are files /stamps/HOST.WHAT that hold nanoseconds of the clock that all containers share. It dies by SIGKILL once
there is a file /stamps/HOST.die, and ends well once there is /stamps/end.
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
RANK = int(os.environ["NODE_RANK"])


def stamp(what: str) -> None:
    """Write down that something happens now; whole, because recovery.py waits for the file."""
    part = STAMPS / f".{HOST}.{what}"
    part.write_text(str(time.time_ns()))
    part.rename(STAMPS / f"{HOST}.{what}")


def end(_number: int, _frame: FrameType | None) -> None:
    """Obey SIGTERM."""
    stamp("told")
    sys.exit(1)


def save(step: int) -> Path:
    """Save what Lightning's checkpoints have in common with this one, which is all that going on needs."""
    path = Path("checkpoints/last.ckpt")
    path.parent.mkdir(exist_ok=True)
    about = {"epoch": 0, "global_step": step, "optimizer_states": []}
    with zipfile.ZipFile(path, "w") as checkpoint:
        checkpoint.writestr("archive/data.pkl", pickle.dumps(about, protocol=2))
    return path


def run() -> None:
    """Run until there is a file to die, or to end."""
    signal.signal(signal.SIGTERM, end)
    stamp("resumed" if "CKPT_PATH" in os.environ else "started")
    while not (STAMPS / f"{HOST}.die").exists():
        if (STAMPS / "end").exists():
            return
        time.sleep(0.005)
    (STAMPS / f"{HOST}.die").unlink()
    stamp("died")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if RANK == 0:
        save(step=5)
    run()
