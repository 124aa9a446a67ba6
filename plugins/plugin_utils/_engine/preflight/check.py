# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define checks and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SETUP = "run: ansible-playbook setup.yml"
REBUILD = f"remove envs in the cluster_dir there, and {SETUP}"
"""Setup leaves an environment alone that it once completed."""


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        check: its name, ``<group>.<check>``, as in ``reach.mtu``: by it, or by its group, it is skipped.
        status: ``failed`` is what would make a job fail or hang; ``warning`` is what might; ``skipped`` was not looked
            at, by request or because what it needs is not there.
        sentence: what was found, on which nodes, and the remedy; of one that is ok what was looked at.
        data: what was measured, for machines: JSON's types only.
    """

    check: str
    status: Literal["ok", "warning", "failed", "skipped"]
    sentence: str
    data: Mapping[str, Any] = field(default_factory=dict)
