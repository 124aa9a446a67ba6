# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as users start them, untouched by how this machine has set Ansible up."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]


def play(
    folder: Path,
    playbook: str,
    *arguments: str,
    inventory: str = "hosts.yml",
    within: Sequence[str] = (),
    output: Path | None = None,
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    """Run a playbook in a folder, below which Ansible keeps what it keeps.

    Args:
        folder: the working directory, with the inventory.
        playbook: its name, such as run.yml, or thunderhead.cluster.run.
        arguments: what comes after it.
        inventory: its name.
        within: a command that starts it.
        output: a file to print into, which can be read meanwhile; the result has it too.
        settings: environment variables besides.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "UV_"))}
    ansible = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_REMOTE_TMP": str(folder / "tmp"),
        "ANSIBLE_DISPLAY_FAILED_STDERR": "0",  # what is printed is looked at in one place
        "ANSIBLE_NOCOLOR": "1",
        "COLUMNS": "1000",
        "PYTHONUNBUFFERED": "1",  # else what is printed into a file may be read at the end only
    }
    path = ROOT / playbook if playbook.endswith(".yml") else playbook
    command = [*within, sys.executable, "-m", "ansible", "playbook", "-i", inventory, path, *arguments]
    environment = {**kept, **ansible, **settings}
    if output is None:
        return subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    with open(output, "wb") as file:
        result = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return subprocess.CompletedProcess(command, result.returncode, output.read_text(), "")
