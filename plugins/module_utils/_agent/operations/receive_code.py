# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Store a job's code and unpack it."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.undo_prepare import undo_prepare
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.unpack import (
    decompress_bundle,
    part_path,
    store_bundle,
    unpack_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def receive_code(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Store the bundle, ``payload`` compressed, and unpack it into the prepared job.

    Request: as for ``prepare``, packed (as for ``receive_code_piece``, if that has brought the payload; else None).
    """
    try:
        if request["packed"]:
            with open(part_path(request), "rb") as file:
                payload = file.read()
            os.unlink(part_path(request))
        store_bundle(request, decompress_bundle(request, payload))
        unpack_bundle(request, User(request["user"]))
    except BaseException:
        undo_prepare(request)
        raise
    return {}, b""
