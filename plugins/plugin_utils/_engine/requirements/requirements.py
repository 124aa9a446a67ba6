# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define what a user wants installed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import without_credentials
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import MOST_MB
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import tree_digest


@dataclass
class Requirements:
    """What a user wants installed.

    Attributes:
        path: the file that was named.
        arguments: of ``uv pip compile``, beside the text, for a pyproject.toml.
        lines: for uv, with SOURCES for the folder of what they name on this machine.
        constraints: likewise, of ``-c``.
        sources: what lies on this machine, in the order of its numbers.
        hashes: by package, those that are allowed, of constraints too; empty if the files give none.
        indexes: URLs in the files, of indexes and pages of links, as written there.
        soft: lines that often cannot be installed, and what to do about each.
        contents: by file, its SHA-256.
        beside: projects and archives that a pyproject.toml has uv take from this machine.
        requires_python: the Pythons that a pyproject.toml is for, as it has them; "" for any.
        is_built: whether only the build of the project says what it needs, from whatever files.
        takes_prereleases: of any package.
        places: by line for uv, the file and line where it stands.
        uv_settings: that uv finds for a pyproject.toml, as a uv.toml has them.
    """

    path: Path
    arguments: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    hashes: dict[str, list[str]] = field(default_factory=dict)
    indexes: list[str] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    beside: list[Path] = field(default_factory=list)
    requires_python: str = ""
    is_built: bool = False
    takes_prereleases: bool = False
    places: dict[str, str] = field(default_factory=dict)
    uv_settings: dict[str, Any] = field(default_factory=dict)

    def remember(self, path: Path, text: str) -> None:
        """Write down which text a file has."""
        self.contents[str(path)] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def variables(self) -> dict[str, str]:
        """Return the variables of the environment that the URLs of indexes and folders name, as far as they are set."""
        options = "\n".join(one for one in (*self.lines, *self.constraints) if one.startswith("-"))
        return {name: os.environ[name] for name in re.findall(r"\$\{(\w+)\}", options) if name in os.environ}

    def digest(self, settings: Mapping[str, Any], max_mb: int = MOST_MB) -> str:
        """Return what is the same as long as the resolution may stay as it is, in hex.

        Args:
            settings: whatever else decides it; a password in a URL does not.
            max_mb: the most that the files of a local project may have together, in MiB.

        Raises:
            JobError: one has more.
        """
        own = [self.path.parent] if self.is_built else []
        trees = [tree_digest(path, max_mb) for path in (*self.sources, *self.beside, *own)]
        known = {"files": sorted(self.contents.values()), "trees": trees, "arguments": self.arguments}
        text = without_credentials(json.dumps({**known, "settings": settings}, sort_keys=True, default=str))
        return hashlib.sha256(text.encode()).hexdigest()
