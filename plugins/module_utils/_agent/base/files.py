# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read and replace files safely where a job may write, too."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from typing import Any, BinaryIO

MOST_JSON_BYTES = 2**22
"""Of a file that a job may have written; one of ours is smaller, with thousands of ranks in it too."""


def write_file(path: str, data: bytes, mode: int, durable: bool = False) -> None:
    """Replace ``path`` as a whole: a reader sees the old content or the new, never a part."""
    part = f"{path}.{os.getpid()}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:  # not for what is read within the second: a sync costs 16 nodes on one disk most of their start
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def open_regular(path: str, folder: int | None = None, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file, neither following a link nor waiting for the other end of a pipe.

    Args:
        path: of the file.
        folder: descriptor of the folder that it is relative to.
        flags: as for ``os.open``.

    Raises:
        OSError: it cannot be opened, or is none.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if os.fstat(descriptor).st_mode & 0o170000 != 0o100000:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", path)
    return descriptor


def read_end(path: str, most: int) -> bytes:
    """Return the last bytes of a regular file, ``most`` at most.

    Raises:
        OSError: it cannot be read, or is none.
    """
    with open(open_regular(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def open_own(path: str, beside: str = "") -> BinaryIO:
    """Open a file that a job's folder, which the job may write to, has from the start.

    What the job put there instead must not mislead or block us; another name of somebody else's file least of all, for
    this may be root.

    Args:
        path: of the file.
        beside: the job's folder, if the file does not lie in it but beside it, out of the job's reach.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    folder = os.stat(beside or os.path.dirname(path))
    if status.st_uid != folder.st_uid or (status.st_nlink > 1 and not beside):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not the job's own file", path)
    return open(descriptor, "rb")


def read_json(path: str, most: int = MOST_JSON_BYTES) -> dict[str, Any] | None:
    """Return the JSON object in ``path``, or None if there is none within the first ``most`` bytes."""
    try:
        with open_own(path) as file:
            found = json.loads(file.read(most))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
