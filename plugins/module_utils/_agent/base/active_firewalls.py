# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell which firewalls are active, without their programs: firewalld's takes a seventh of a second to start."""

from __future__ import annotations

import os
from contextlib import suppress


def managed_firewalls() -> list[str]:
    """Return those that run or are enabled, and that Ansible has modules for in collections that may not be there."""
    return ["firewalld"] * runs_firewalld() + ["ufw"] * enables_ufw()


def runs_firewalld() -> bool:
    """Return whether a process is firewalld's; it may not be ready yet."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if any(part.endswith(b"/firewalld") for part in file.read(4096).split(b"\0")[:4]):
                return True
    return False


def enables_ufw() -> bool:
    """Return whether ufw is loaded when the machine starts, by its settings, which are read as ufw reads them."""
    with suppress(OSError), open("/etc/ufw/ufw.conf", errors="replace") as settings:
        assignments = (line.partition("#")[0].lower().partition("=") for line in settings)
        return any(
            name.strip() == "enabled" and value.strip().strip("'\"") == "yes" for name, _equals, value in assignments
        )
    return False
