# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Describe the file or folder that a user calls a checkpoint."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import (
    User,
    account_name,
    become_job_owner,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import digest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import open_named, walk
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request

MOST_NAMED_FILES = 2000
"""A folder with more files than this is no checkpoint, but holds several, or data."""


def describe_checkpoint(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Say what a path is that the user calls a checkpoint, and of which files it consists.

    Request: path, relative to ``work/`` of the ended job, absolute, or below the home (``~/``) of the account that jobs
    run as; digests, relative paths of files to be read completely. Reply: top, the folder that its files are relative
    to, or "" if there is nothing of that name; folder, whether it is one; files, ``[[path relative to top, bytes,
    modification time in ns, SHA-256 or ""]]``; why it is not known whether there is something, where that is so.
    """
    import itertools

    path = request["path"]
    if path.startswith("~/"):
        path = User(request["user"]).home + path[1:]
    if os.path.isabs(path):
        User(request["user"]).become()
    else:
        path = os.path.join(become_job_owner(request), "work", path)
    path = os.path.realpath(path)
    is_folder = os.path.isdir(path)
    top = path if is_folder else os.path.dirname(path)
    nothing: Reply = {"top": "", "folder": False, "files": []}
    try:
        os.stat(path)
    except PermissionError:
        return {**nothing, "why": f"does not let {account_name(os.geteuid())}, as whom jobs run, look at {path}"}, b""
    except OSError:
        return nothing, b""
    files = []
    try:
        names = [os.path.basename(path)]
        if is_folder:
            names = [name for name, _entry in itertools.islice(walk(path, links=True), MOST_NAMED_FILES + 1)]
        if len(names) > MOST_NAMED_FILES:
            raise Refusal(
                f"has more than {MOST_NAMED_FILES} files in {path}, and a checkpoint may not; name the folder of one"
            )
        for name in names:
            with open(open_named(top, name), "rb") as file:
                entry = os.fstat(file.fileno())
                sha256 = digest(file) if name in request["digests"] else ""
                files.append((name, entry.st_size, entry.st_mtime_ns, sha256))
    except OSError as error:
        account = account_name(os.geteuid())
        raise Refusal(f"has {path}, but {account}, as whom jobs run, cannot read it: {error_text(error)}") from None
    return {"top": top, "folder": is_folder, "files": files}, b""
