# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job has on a node besides its code."""

import socket
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.companion_files import companion_files


def lay_out_companion(folder: Path) -> Path:
    """Put the companion into a job's folder, and return what is to be on the path."""
    for name, text in companion_files().items():
        path = folder / "companion" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "companion"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
