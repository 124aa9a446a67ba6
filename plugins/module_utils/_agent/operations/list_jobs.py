# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""List the jobs of this node."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, BinaryIO

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_own, read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import log_path, started_by
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import LockHolder, read_holder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_gang_state import read_gang_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import (
    job_state,
    valid_fields,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    LONGEST_REPLY,
    SPEC,
    Reply,
    Request,
    is_job_id,
)

LAST_LINE_BYTES = 2048


def list_jobs(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List the jobs of this node, the newest first, and the one that holds it, however old it is.

    Request: directory, newest (how many at most), only (one job's id, or None). Reply: jobs, a list of {id, spec (as
    the controller wrote it, or None for a job that never started), state (as for ``follow``), size (bytes of the log),
    last_line, user (who started it; "" if that is not known)}, and from its head gang, what
    ``read_gang_state`` returns. A spec has ``ranks``, which are many on a large cluster, for ``only`` and on rank 0.
    """
    folder = os.path.join(request["directory"], "jobs")
    ids: list[str] = []
    with suppress(OSError):
        ids = sorted(filter(is_job_id, os.listdir(folder)), reverse=True)  # an id begins with its time
    if request["only"]:
        ids = [name for name in ids if name == request["only"]]
    current = read_holder(folder)
    meant = ids[: request["newest"]]
    meant += [name for name in ids[len(meant) :] if name == current["id"]]
    found = []
    for name in meant:
        job_dir = os.path.join(folder, name)
        holder = LockHolder({**request, "job": {"id": name}})
        size, last_line = size_and_last_line(job_dir)
        spec = valid_fields(read_json(os.path.join(job_dir, "spec.json")), SPEC)
        if spec and spec.get("rank") != 0 and not request["only"]:
            spec.pop("ranks", None)
        spec = spec and shortened(spec, LONGEST_REPLY // 2 // len(meant))
        state = job_state(job_dir, holder)
        user = started_by(job_dir) or (current["user"] if name == current["id"] else "")
        one = {"id": name, "spec": spec, "state": state, "size": size, "last_line": last_line, "user": user}
        gang = read_gang_state(job_dir) if spec and spec.get("rank") == 0 else None
        found.append({**one, "gang": gang} if gang else one)
    return {"jobs": found}, b""


def shortened(spec: dict[str, Any], most: int) -> dict[str, Any] | None:
    """Return a job's spec cut to at most ``most`` characters of a reply; None if nothing fits."""
    for name in ("args", "ranks"):
        if len(json.dumps(spec)) <= most:
            return spec
        spec.pop(name, None)
    return spec if len(json.dumps(spec)) <= most else None


def open_log(job_dir: str) -> BinaryIO:
    """Open a job's log, perhaps as root.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    try:
        return open_own(log_path(job_dir), beside=job_dir)
    except FileNotFoundError:
        return open_own(os.path.join(job_dir, "log"))


def size_and_last_line(job_dir: str) -> tuple[int, str]:
    """Return the size of a job's log and its last line that is not blank."""
    try:
        with open_log(job_dir) as log:
            size = os.fstat(log.fileno()).st_size
            log.seek(max(0, size - LAST_LINE_BYTES))
            lines = [line for line in log.read().splitlines() if line.strip()]
    except OSError:
        return 0, ""
    return size, lines[-1].decode(errors="replace") if lines else ""
