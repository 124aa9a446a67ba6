# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What a job left in its working directory."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import BUNDLE_MTIME, as_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import operation

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request


@operation
def artifacts(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List what the job wrote into ``work/``: reply files ``[[path, bytes]]``, sorted, without links and caches."""
    work = os.path.join(as_owner(request), "work")
    found: list[tuple[str, int]] = []
    for folder, folders, files in os.walk(work):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                entry = os.lstat(path)
                if (entry.st_mode & 0o170000) == 0o100000 and int(entry.st_mtime) != BUNDLE_MTIME:
                    found.append((os.path.relpath(path, work), entry.st_size))
    return {"files": sorted(found)}, b""


@operation
def read(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Read parts ``[[path, offset, length]]`` of files in ``work/``. Reply: lengths, as read; payload: the parts."""
    work = os.path.join(as_owner(request), "work")
    lengths, data = [], []
    for path, offset, length in request["parts"]:
        block = b""
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(work, path), os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                file.seek(offset)
                block = file.read(length)
        lengths.append(len(block))
        data.append(block)
    return {"lengths": lengths}, b"".join(data)
