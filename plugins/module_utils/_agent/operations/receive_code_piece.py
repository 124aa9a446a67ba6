# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Store a piece of a job's code that is too large for one request."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import job_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.unpack import part_path
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def receive_code_piece(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Store a piece of a compressed bundle that is too large for one request, and have the prepared job wait on.

    Request: as for ``prepare``, packed (the SHA-256 of all of it as it is sent), offset (where the payload begins in
    it; None: only wait on). Reply: has (how many of its first bytes are here: what an earlier try has brought stays).
    """
    try:
        os.utime(job_directory(request))  # its supervisor would give up
    except FileNotFoundError:
        raise Refusal(f"is not prepared for job {request['job']['id']} any more") from None
    if request["offset"] is None:
        return {"has": 0}, b""
    with open(os.open(part_path(request), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        has = file.seek(0, os.SEEK_END)
        if has == request["offset"]:
            has += file.write(payload)
    return {"has": has}, b""
