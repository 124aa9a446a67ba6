# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a job's own Python is to find: the companion, and what an installed package has beside it."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent import companion


def companion_files() -> dict[str, str]:
    """Return the files, paths below their folder to their texts. None is imported: torch is on the nodes."""
    folder = Path(companion.__path__[0])
    paths = sorted(path for path in folder.glob("thunderhead_companion*/*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}
