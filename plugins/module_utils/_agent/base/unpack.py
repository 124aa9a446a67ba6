# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Store a job's code, and unpack it."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import BinaryIO

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    bundle_path,
    job_directory,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import BUNDLE_MTIME
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request


def unpack_code(bundle: BinaryIO, work: str, user: User) -> None:
    """Unpack code, whose format is in the engine's ``project/bundle.py``, into a new folder of a user's.

    Raises:
        Refusal: two of its files cannot be told apart there.
    """
    with user.acting():
        os.mkdir(work, 0o700)
        made = {work}
        header = bundle.read(int(bundle.readline())).split(b"\0")
        for path, kind, value in zip(header[0::3], header[1::3], header[2::3]):
            target = os.path.join(work, os.fsdecode(path))
            try:
                if os.path.dirname(target) not in made:
                    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
                    made.add(os.path.dirname(target))
                if kind == b"link":
                    os.symlink(value, target)
                    continue
                mode = 0o755 if kind == b"program" else 0o644
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise Refusal(
                    f"has a disk that does not distinguish {os.fsdecode(path)} of the project from another of its "
                    "files, whose name differs in case only; rename one, or set cluster_dir to a folder on another disk"
                ) from None
            with open(descriptor, "wb") as file:
                file.write(bundle.read(int(value)))
            os.utime(target, (BUNDLE_MTIME, BUNDLE_MTIME))


def part_path(request: Request) -> str:
    """Return where the pieces of the request's bundle lie: a name of digits, like all that is not finished there."""
    return f"{bundle_path(request)}.{int(request['packed'][:12], 16)}"


def decompress_bundle(request: Request, packed: bytes) -> bytes:
    """Return the request's bundle, which came compressed.

    Raises:
        Refusal: it is another, or not all of it has come.
    """
    import hashlib

    archive = b""
    with suppress(zlib.error):  # what is damaged does not match either
        archive = zlib.decompress(packed)
    if hashlib.sha256(archive).hexdigest() != request["bundle"]:
        raise Refusal("received a bundle that does not match its SHA-256; run the playbook again")
    return archive


def store_bundle(request: Request, archive: bytes) -> None:
    """Keep the request's bundle for this job and later ones."""
    write_file(bundle_path(request), archive, 0o600, durable=True)


def unpack_bundle(request: Request, user: User) -> None:
    """Lay this job's own copy of the code into ``work/``."""
    with open(bundle_path(request), "rb") as bundle:
        unpack_code(bundle, os.path.join(job_directory(request), "work"), user)
