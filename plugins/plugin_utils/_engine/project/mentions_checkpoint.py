# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out whether a script says itself what the checkpoint in CKPT_PATH is for; nothing is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.imports import own_modules

CONFIGURATIONS = (".yaml", ".yml", ".toml", ".json", ".cfg", ".ini", ".sh")
"""Endings of files that a script may read."""
LONGEST_CONFIGURATION = 2**20
"""Bytes of one that a person wrote."""


def mentions_checkpoint(
    project: Path, script: str, search_path: Sequence[Path], files: Collection[str], args: Sequence[str]
) -> bool:
    """Return whether its arguments, a module of the project that it imports, or a configuration mention CKPT_PATH.

    Args:
        project: folder on the controller.
        script: path relative to it.
        search_path: folders of the project where it finds its modules.
        files: paths of the files that belong to the job's code.
        args: the script's arguments.
    """
    if any("CKPT_PATH" in one for one in args):
        return True
    modules = own_modules(project, script, search_path, files)
    return any(b"CKPT_PATH" in data for _path, data, _tree in modules) or any(
        b"CKPT_PATH" in _beginning(project / one) for one in files if one.endswith(CONFIGURATIONS)
    )


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST_CONFIGURATION)
    except OSError:
        return b""
