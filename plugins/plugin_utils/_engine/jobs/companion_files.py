# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay out the folder through which a job's own Python finds the companion."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.companion import thunderhead_companion


def companion_files() -> dict[str, str]:
    """Return the files of the folder, paths below it to their texts.

    Beside the package lies what an installed one has: Lightning looks for such entry points whenever a Trainer is made.
    """
    name, folder = "thunderhead_companion", Path(thunderhead_companion.__path__[0])
    groups = [f"{one}.callbacks_factory" for one in thunderhead_companion.PACKAGES]
    return {
        **{f"{name}/{path.name}": path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))},
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{name}-1.dist-info/entry_points.txt": "".join(f"[{one}]\nthunderhead = {name}:callbacks\n" for one in groups),
    }
