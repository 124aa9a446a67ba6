# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the settings of uv that matter here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

LISTS = ("index", "extra-index-url", "find-links")
BUILD_NEEDS = "extra-build-dependencies"


def require_usable(settings: Mapping[str, Any], where: str) -> None:
    """Raise JobError for what has another form than uv takes: of a pyproject.toml uv itself only warns of that.

    Args:
        settings: as in a uv.toml.
        where: what the sentence begins with.
    """
    for name in LISTS:
        if not isinstance(settings.get(name) or [], list):
            raise JobError(f"{where}: {name} is no list, which uv expects; correct it")
    by_package = settings.get(BUILD_NEEDS) or {}
    if not (isinstance(by_package, Mapping) and all(map(_is_list_of_needs, by_package.values()))):
        raise JobError(
            f"{where}: {BUILD_NEEDS} is no mapping of packages to lists of requirements, which uv expects; correct it, "
            "as in: {package: [setuptools]}"
        )


def _is_list_of_needs(needs: Any) -> bool:
    """Return whether uv takes it as what a build needs: a list of requirements, or of mappings that hold one."""
    return isinstance(needs, list) and all(
        isinstance(one.get("requirement") if isinstance(one, Mapping) else one, str) for one in needs
    )
