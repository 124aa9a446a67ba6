# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What a check is, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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
