# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up what a job finds on this node: limits, shared memory, installed packages and node.env."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

MOST_FILES = 1048576
"""As many files as a job may open: a full mesh has many sockets, data loaders pass tensors as files."""


def raise_limits() -> int:
    """Give this process and its children the limits of a job, as far as they are ours to raise.

    Returns:
        How many files a job can open.
    """
    import resource

    # NCCL pins memory.
    for limit, wanted in ((resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY), (resource.RLIMIT_NOFILE, MOST_FILES)):
        _soft, hard = resource.getrlimit(limit)
        for most in (wanted, hard):
            with suppress(ValueError, OSError):
                resource.setrlimit(limit, (most, most))
                break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shared_memory() -> dict[str, int]:
    """Return the bytes of /dev/shm: size and free; none if there is no such file system."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return {"size": 0, "free": 0}
    return {"size": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize}


def packages(directory: str) -> dict[str, Any]:
    """Return the environment's Python ("3.11") and what is installed in it, "name-version" each, as pip sees it."""
    for library in sorted(entries(os.path.join(directory, "env", "lib"))):
        names = entries(os.path.join(directory, "env", "lib", library, "site-packages"))
        if library.startswith("python3"):
            return {
                "python": library[6:],
                "installed": sorted(name[:-10] for name in names if name[-10:] == ".dist-info"),
            }
    return {"python": "", "installed": []}


def place_at_setup(directory: str) -> dict[str, str] | None:
    """Return NODE_RANK and WORLD_SIZE as setup wrote them into node.env; None if that is not there."""
    found: dict[str, str] = {}
    try:
        with open(os.path.join(directory, "node.env"), errors="replace") as file:
            for line in file:
                name, equals, value = line.strip().partition("=")
                if equals and name in ("NODE_RANK", "WORLD_SIZE"):
                    found.setdefault(name, value)  # setup's come first, the user's variables after them
    except OSError:
        return None
    return found


def entries(folder: str) -> list[str]:
    """Return the names in a folder; none if it cannot be listed."""
    with suppress(OSError):
        return os.listdir(folder)
    return []
