# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read all of a checkpoint and return whether it is complete."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import (
    Unfit,
    check_parts,
    digest,
    find_step,
    open_archive,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import open_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def verify_checkpoint(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Read all of a checkpoint. Request: path. Reply: why it is not complete, or ""; then also its bytes and sha256."""
    with open(open_file(os.path.join(become_job_owner(request), "work"), request["path"]), "rb") as file:
        try:
            archive = open_archive(file)
            find_step(archive)
            check_parts(archive)
        except Unfit as why:
            return {"why": str(why)}, b""
        file.seek(0)
        return {"why": "", "bytes": os.fstat(file.fileno()).st_size, "sha256": digest(file)}, b""
