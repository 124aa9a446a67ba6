#!/usr/bin/env python3
# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train on the two nodes on this machine, kill rank 1 in the middle, and see the training end all the same."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ["ansible-playbook", "run.yml", "-e", "script=train.py", "-e", "script_args='--max-epochs 40'"]
MIDDLE = re.compile(r"epoch 10 of 40")
JOB = re.compile(r"^(\S+): train\.py on 2 nodes")


def script_of(job: str, node: str) -> int:
    """Return the id of the process that runs the script on a node: the child of the job's supervisor there."""
    state = json.loads((ROOT / ".nodes" / node / "jobs" / job / "state.json").read_text())
    children = Path(f"/proc/{state['pid']}/task/{state['pid']}/children").read_text().split()
    return int(children[0])


def main() -> int:
    """Return the exit status: 0 if the training ended well, in its second attempt."""
    print("$", " ".join(RUN), flush=True)
    job, is_killed = "", False
    with subprocess.Popen(RUN, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout or ():
            print(line, end="", flush=True)
            found = JOB.match(line)
            job = found[1] if found else job
            if MIDDLE.search(line) and not is_killed:
                rank_1 = script_of(job, "node1")
                print(f"$ kill -KILL {rank_1}    # rank 1, on node1", flush=True)
                os.kill(rank_1, signal.SIGKILL)
                is_killed = True
    if not job or run.returncode:
        return run.returncode or 1
    record = json.loads((ROOT / "runs" / job / "job.json").read_text())
    is_as_expected = (record["state"], record["attempts"]) == ("succeeded", 2)
    print(f"{job} {record['state']} after {record['attempts']} attempts")
    return 0 if is_as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
