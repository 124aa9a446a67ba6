# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell whether systemd runs this node, and which of its units holds a job's processes."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request


def has_systemd() -> bool:
    """Return whether systemd is this node's init."""
    return os.path.isdir("/run/systemd/system")


def job_unit(request: Request) -> str | None:
    """Return the name of the unit that holds the processes of the request's job; None where there is none."""
    return f"thunderhead-{request['job']['id']}.scope" if os.geteuid() == 0 and has_systemd() else None
