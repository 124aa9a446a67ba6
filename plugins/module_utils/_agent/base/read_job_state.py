# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read a job's state; its files are the job's user's to change, so only values of the right kind are believed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import LockHolder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    DEEPEST,
    GOING_ON,
    STATE,
    Document,
    escape_surrogates,
)


def valid_fields(found: dict[str, Any] | None, kinds: Mapping[str, Callable[[object], bool]]) -> dict[str, Any] | None:
    """Return of a file that the job's user can write what is known there; None if any of that is not of its kind."""
    if found is None:
        return None
    known = {name: escape_strings(found[name]) for name in kinds if name in found}
    return known if all(kinds[name](value) for name, value in known.items()) else None


def escape_strings(value: Any, depth: int = 0) -> Any:
    """Return a value of a JSON file in which all text can be passed on; nothing that is believed lies deeper."""
    if isinstance(value, str):
        return Document(escape_surrogates(value))
    if isinstance(value, list) and depth < DEEPEST:
        return [escape_strings(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < DEEPEST:
        return {escape_surrogates(name): escape_strings(value[name], depth + 1) for name in value}
    return value


def job_state(job_dir: str, holder: LockHolder) -> dict[str, Any]:
    """Return the job's state; one whose supervisor ended without writing its end, or a broken one, is ``lost``."""
    alive = holder.pid() is not None  # before the file: a supervisor writes the end, then releases the lock
    state = {"state": "prepared", **(valid_fields(read_json(os.path.join(job_dir, "state.json")), STATE) or {})}
    if state["state"] in GOING_ON and not alive:
        state["state"] = "lost"
    return state
