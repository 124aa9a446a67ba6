# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Train as somebody who has only installed the collection: no checkout, no ansible.cfg, two nodes on this machine."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from built import install


def main() -> int:
    """Return the exit status."""
    # Where only its owner may write, and no git repository around it decides what belongs to a project.
    with tempfile.TemporaryDirectory(prefix="thunderhead-collection-") as name:
        home = Path(name, "work")
        collection = install(Path(name, "collections"))
        shutil.copytree(collection / "inventory", home / "inventory")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        environment |= {
            "ANSIBLE_COLLECTIONS_PATH": str(Path(name, "collections")),
            "ANSIBLE_HOME": str(home / ".ansible"),
        }
        for playbook, *arguments in (("setup",), ("run", "-e", "script=train.py"), ("teardown",)):
            command = ["ansible-playbook", "-i", "inventory/local", f"thunderhead.cluster.{playbook}", *arguments]
            print("$", *command, flush=True)
            begin = time.monotonic()
            done = subprocess.run(command, cwd=home, env=environment, stdin=subprocess.DEVNULL)
            print(f"{time.monotonic() - begin:.0f} s", flush=True)
            if done.returncode:
                return done.returncode
        (record,) = (home / "runs").glob("*/job.json")
        job = json.loads(record.read_text())
        if (job["state"], job["world_size"]) != ("succeeded", 2):
            sys.exit(f"the job's record says otherwise: {job}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
