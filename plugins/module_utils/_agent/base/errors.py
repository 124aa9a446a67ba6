# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Define the errors that a request can end with."""

from __future__ import annotations

import os
from typing import Any


class Refusal(Exception):
    """Why the request cannot be done: one sentence about this node, and what the controller may act upon."""

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.facts = facts


def error_text(error: BaseException) -> str:
    """Return an exception's message without its number."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return f"{error.strerror}: {os.fsdecode(name)}" if isinstance(name, (str, bytes)) else error.strerror
    return str(error)


def disk_full(path: str, state: str) -> str:
    """Return the sentence for a full file system."""
    return f"has too little disk space in {path} ({state}); free some there, or move cluster_dir to a larger disk"
