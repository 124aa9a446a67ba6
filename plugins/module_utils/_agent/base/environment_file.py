# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Render environment variables as a file that a shell can read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping


def environment_text(environment: Mapping[str, str]) -> str:
    """Return what a node.env holds: a line NAME=value for each variable, quoted for a shell."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in environment.items())
