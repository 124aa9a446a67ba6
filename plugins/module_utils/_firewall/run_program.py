# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Run a firewall's programs, in English."""

from __future__ import annotations

import os
import shutil
import subprocess

ROOTS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs for root lie, which are not on everybody's path."""


def find(program: str) -> str | None:
    """Return the path of a program, or None if it is not installed."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *ROOTS]))


def ask(program: str, *arguments: str) -> str | None:
    """Return what a program prints, or None if it is not installed or fails."""
    path = find(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def show_unit(unit: str, *properties: str) -> dict[str, str]:
    """Return what systemd knows about a unit; nothing where systemd does not run."""
    listing = ask("systemctl", "show", f"--property={','.join(properties)}", unit)
    return dict(line.split("=", 1) for line in (listing or "").splitlines())
