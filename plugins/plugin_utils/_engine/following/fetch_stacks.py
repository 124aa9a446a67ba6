# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch what the ranks of a job that printed nothing were doing, as their nodes wrote it down."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang

FETCH_SECONDS = 15
"""A node that has not replied after so long is left out."""
MOST_BYTES = 2**22
"""Of one node's."""
ALL_BYTES = 2**26
"""Of all nodes' together."""


def fetch_stacks(gang: Gang, folder: Path) -> Path | None:
    """Write a file ``rank<k>-<host>.txt`` for each node, which replaces an earlier one; return the folder.

    Args:
        gang: the job's nodes.
        folder: is made.

    Returns:
        None if nothing can be written here.
    """
    replies, errors = gang.ask(
        "read_stacks", FETCH_SECONDS, max_bytes=min(MOST_BYTES, ALL_BYTES // len(gang.topology.nodes))
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for node in gang.topology.nodes:
            if node.host in replies:
                text = "\n".join(map(printable, replies[node.host][1].split(b"\n")))
            else:
                text = f"{errors[node.host]}\n"
            path = folder / f"{node.file_stem}.txt"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
                file.write(text)
    except OSError:  # a full disk here: what is known is told all the same
        return None
    return folder
