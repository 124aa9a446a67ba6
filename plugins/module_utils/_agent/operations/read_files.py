# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Return parts of files that a job wrote."""

from __future__ import annotations

import os
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User, become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    open_file,
    open_named,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def read_files(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Read parts ``[[path, offset, length]]`` of files in ``work/``, or as the job's account in another folder (top).

    Reply: parts, ``[[length as read, bytes and modification time of the file]]``, from which the reader sees that a
    file has changed; all 0 for one that cannot be read. Payload: the parts.
    """
    top = request.get("top")
    if top:
        User(request["user"]).become()
    else:
        work = os.path.join(become_job_owner(request), "work")
    parts, data = [], []
    for path, offset, length in request["parts"]:
        block, size, mtime_ns = b"", 0, 0
        with suppress(OSError), open(open_named(top, path) if top else open_file(work, path), "rb") as file:
            entry = os.fstat(file.fileno())
            size, mtime_ns = entry.st_size, entry.st_mtime_ns
            file.seek(offset)
            block = file.read(length)
        parts.append((len(block), size, mtime_ns))
        data.append(block)
    return {"parts": parts}, b"".join(data)
