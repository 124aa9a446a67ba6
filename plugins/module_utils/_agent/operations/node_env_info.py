# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up what this machine has of what the role node_env makes."""

from __future__ import annotations

import os
import stat

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.cluster_directory import make
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def node_env_info(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Look, and change nothing.

    Request: directory, parts (the folders that it is to have), user, checksum (SHA-256 of what node.env is to hold).
    Reply: has_user (whether the account is there, or none is needed), is_complete (whether all is).
    """
    import pwd

    directory, user = request["directory"], request["user"]
    path = os.path.join(directory, "node.env")
    if os.path.isdir(path):
        raise Refusal(f"has a folder as {path}, which is to be a file; move it away")
    to_make = make(directory, request["parts"], dry=True)
    owner, has_user = None, True
    try:
        owner = pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        has_user = False
    is_written = has_file(path, request["checksum"], owner)
    return {"has_user": has_user, "is_complete": has_user and is_written and not to_make}, b""


def has_file(path: str, checksum: str, owner: int | None) -> bool:
    """Return whether a file holds just that, only its owner may read it, and the owner is an account; None for any."""
    import hashlib

    try:
        with open(open_regular(path), "rb") as file:
            about = os.fstat(file.fileno())
            is_private = stat.S_IMODE(about.st_mode) == 0o600 and owner in (None, about.st_uid)
            return is_private and hashlib.sha256(file.read()).hexdigest() == checksum
    except OSError:
        return False
