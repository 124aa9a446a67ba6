# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make and check the ids of jobs, and return who starts one."""

from __future__ import annotations

import datetime
import getpass
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


@dataclass(frozen=True, order=True)
class Identity:
    """Which job: of two that want the same nodes at the same moment, the smaller one gets them.

    Attributes:
        start: when it was started, ISO 8601 with seconds, UTC.
        id: YYYYmmdd-HHMMSS-<script>-<4 hex>.
        user: who started it, as user@machine; see ``who``.
    """

    start: str
    id: str
    user: str

    @property
    def age(self) -> float:
        """Seconds since its start, by this machine's clock."""
        return max(0.0, time.time() - datetime.datetime.fromisoformat(self.start).timestamp())


def who() -> str:
    """Return who starts jobs from here, as user@machine: by it a command finds the user's own jobs among others'."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def new_job_id(script: str, now: datetime.datetime) -> str:
    """Return an id (see ``is_job_id``), safe as a file name and as part of a unit's name.

    Args:
        script: path of the script.
        now: the time in UTC: ids are sorted, and their makers may sit in several time zones.
    """
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", Path(script).stem)[:40].strip("-") or "job"
    return f"{now:%Y%m%d-%H%M%S}-{stem}-{secrets.token_hex(2)}"


def check_job_id(job: str) -> None:
    """Raise JobError for what is no job's id: it becomes a file name here and on the nodes."""
    if not is_job_id(job):
        raise JobError(
            f"{escape(job)} is no job's id, which is like 20261122-173005-train-1a2b; ansible-playbook status.yml "
            "lists those there are"
        )
