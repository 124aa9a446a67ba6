# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Name the reason why a connection could not be made."""

from __future__ import annotations

import errno
import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import NO_ANSWER, NO_ROUTE, REFUSED

_REASONS = {
    errno.ECONNREFUSED: REFUSED,
    errno.ETIMEDOUT: NO_ANSWER,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.ENETUNREACH: NO_ROUTE,
}


def why_not_connected(code: int) -> str:
    """Return one of the reasons in ``contract`` for an error number, or else the system's words."""
    return _REASONS.get(code) or os.strerror(code)
