# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""List the files that a job wrote into its working directory."""

from __future__ import annotations

import os
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    BUNDLE_MTIME,
    PLACED_MTIME,
    open_file,
    walk,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request

MOST_CORES = 20
"""Of more core dumps only so many are named."""


def list_artifacts(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List what the job wrote into ``work/``, a page at a time; no links, no caches, no core dumps.

    Request: after (the last path of the page before, or ""), most (files). Reply: more (whether another page follows),
    cores (paths of core dumps that were passed over: each is as large as a process's memory); payload: path, bytes and
    modification time (nanoseconds since 1970) of each file, in the order of the walk, each field ended by a null byte:
    JSON of 100,000 files would take the controller many times the memory.
    """
    work = os.path.join(become_job_owner(request), "work")
    fields: list[bytes] = []
    cores: list[str] = []
    more = False
    for path, entry in walk(work, request["after"]):
        if len(fields) == 3 * request["most"]:
            more = True
            break
        if int(entry.st_mtime) in (BUNDLE_MTIME, PLACED_MTIME):
            continue
        if os.path.basename(path).startswith("core") and is_core_dump(work, path):
            cores.append(path)
        else:
            fields += [os.fsencode(path), b"%d" % entry.st_size, b"%d" % entry.st_mtime_ns]
    return {"more": more, "cores": cores[:MOST_CORES]}, b"".join(field + b"\0" for field in fields)


def is_core_dump(work: str, path: str) -> bool:
    """Return whether a file is an ELF file of type ET_CORE; see elf(5)."""
    with suppress(OSError), open(open_file(work, path), "rb") as file:
        head = file.read(18)
        return (
            len(head) == 18
            and head[:4] == b"\x7fELF"
            and int.from_bytes(head[16:], "big" if head[5] == 2 else "little") == 4
        )
    return False
