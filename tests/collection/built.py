# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the collection as Galaxy would get it, and install it away from the checkout."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(folder: Path) -> Path:
    """Build the collection and install it below a folder, which is made; return where it lies.

    Nothing is asked of Galaxy: what it depends on comes with the package ansible.

    Args:
        folder: becomes what Ansible calls a collections path; outside the checkout, or Ansible finds that instead.
    """
    folder.mkdir()
    quiet = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(folder)}
    quiet.pop("ANSIBLE_CONFIG", None)

    def galaxy(*arguments: str | Path) -> None:
        command = ["ansible-galaxy", "collection", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=quiet)

    galaxy("build", "--output-path", folder, ROOT)
    (archive,) = folder.glob("thunderhead-cluster-*.tar.gz")
    galaxy("install", "--offline", "--collections-path", folder, archive)
    return folder / "ansible_collections" / "thunderhead" / "cluster"
