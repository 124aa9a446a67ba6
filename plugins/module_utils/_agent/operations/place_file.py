# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Put a file of a checkpoint into the working directory of a prepared job."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import blocks, digest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.machine import check_space
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    PLACED_MTIME,
    folder_of,
    open_file,
    open_named,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request


def place_file(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Put a file into the prepared job's ``work/``, in pieces; one that comes twice does no harm.

    Request: path (below work/), total (bytes), sha256, and either offset (the payload's), from_job (a job that may
    have the file at the same path) or from_path (where the file may be here). Reply: placed, whether all
    of it is there now.
    """
    job_dir = become_job_owner(request)
    path, total = request["path"], request["total"]
    if os.path.exists(os.path.join(job_dir, "state.json")):
        raise Refusal(f"has started job {request['job']['id']} already; report this")
    os.utime(job_dir)  # now and below: so that its supervisor sees that the controller has not vanished
    work = os.path.join(job_dir, "work")
    try:
        with folder_of(work, path, make=True) as (folder, name):
            part = f".{request['sha256']}.part"
            from_job, from_path = request.get("from_job"), request.get("from_path")
            if from_job:
                source = os.path.join(os.path.dirname(job_dir), from_job, "work")
                complete = copy_part(lambda: open_file(source, path), total, folder, part, job_dir)
            elif from_path:
                complete = copy_part(lambda: open_named("", from_path), total, folder, part, job_dir)
            else:
                if request["offset"] == 0:
                    check_space(work, total)
                written = write_part(request["offset"], payload, total, folder, part)
                if written is None:  # an answer was lost on the way, and this is the last piece once more
                    return {"placed": same(request["sha256"], folder, name, job_dir)}, b""
                complete = written
            if complete and not same(request["sha256"], folder, part, job_dir):
                os.unlink(part, dir_fd=folder)
                if not from_job and not from_path:
                    raise Refusal("received a checkpoint that does not match its SHA-256; run the playbook again")
                complete = False
            if complete:
                os.utime(part, (PLACED_MTIME, PLACED_MTIME), dir_fd=folder)
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
            raise
        raise Refusal(f"has something else of the code where {path!a} belongs; rename that in the project") from None
    return {"placed": complete}, b""


def copy_part(source: Callable[[], int], total: int, folder: int, part: str, touched: str) -> bool:
    """Copy the file that ``source`` opens to ``part``; return False if there is none of that size."""
    try:
        found = source()
    except OSError:
        return False
    with open(found, "rb") as original:
        if os.fstat(found).st_size != total:
            return False
        check_space(touched, total)
        with open(create(folder, part), "wb") as copy:
            for block in blocks(original):
                copy.write(block)
                os.utime(touched)
    return True


def write_part(offset: int, piece: bytes, total: int, folder: int, part: str) -> bool | None:
    """Write a piece; return whether it was the last, or None if it was and the file has been taken away since.

    Raises:
        Refusal: the pieces before it are not there.
    """
    is_last = offset + len(piece) == total
    try:
        descriptor = open_regular(part, folder, os.O_WRONLY) if offset else create(folder, part)
    except FileNotFoundError:
        if is_last:
            return None
        raise
    with open(descriptor, "wb") as file:
        if os.fstat(descriptor).st_size < offset:
            raise Refusal("lost a part of the checkpoint; run the playbook again")
        file.seek(offset)
        file.write(piece)
    return is_last


def create(folder: int, name: str) -> int:
    """Make an empty file, whatever was there."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)


def same(sha256: str, folder: int, name: str, touched: str) -> bool:
    """Return whether a file is there and has this SHA-256."""
    try:
        with open(open_regular(name, folder), "rb") as file:
            return digest(file, touched) == sha256
    except FileNotFoundError:
        return False
