# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read nvidia-smi's output: ``--query-gpu`` with ``--format=csv,noheader,nounits``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OLDEST_DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
"""The oldest driver on which a build for a major version of CUDA runs; NVIDIA's CUDA release notes, table 2."""
_UNKNOWN = ("", "[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]")


@dataclass(frozen=True)
class Gpu:
    """One GPU; what the driver does not report is None.

    Attributes:
        index: the driver's.
        model: its name.
        driver: version.
        total_mb, used_mb: of its memory, MiB.
        ecc_errors: uncorrected ones since the driver was loaded.
        pages_pending: whether memory waits to be taken out of use at the next reset.
        slowdowns: why it runs slower than it could, as the driver names it.
    """

    index: str
    model: str
    driver: str
    total_mb: int | None
    used_mb: int | None
    ecc_errors: int | None
    pages_pending: bool
    slowdowns: tuple[str, ...]


def parse(facts: Mapping[str, Any]) -> list[Gpu]:
    """Return the GPUs in the agent's ``gpus``; a line that does not have all that is always asked for is none."""
    found: list[Gpu] = []
    if not set(_ALWAYS) <= set(facts["fields"]):
        return found
    for line in facts["csv"].splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(facts["fields"]):
            continue
        row = dict(zip(facts["fields"], cells, strict=True))
        found.append(
            Gpu(
                index=row["index"],
                model=row["name"],
                driver=row["driver_version"],
                total_mb=_number(row["memory.total"]),
                used_mb=_number(row["memory.used"]),
                ecc_errors=_number(row.get("ecc.errors.uncorrected.volatile.total", "")),
                pages_pending=any(row.get(name) in ("Yes", "1") for name in _PENDING),
                slowdowns=tuple(dict.fromkeys(_slowdown(name) for name, value in row.items() if _is_slow(name, value))),
            )
        )
    return found


_ALWAYS = ("index", "name", "driver_version", "memory.total", "memory.used")
_PENDING = ("retired_pages.pending", "remapped_rows.pending")


def _is_slow(field: str, value: str) -> bool:
    return field.startswith(("clocks_event_reasons.", "clocks_throttle_reasons.")) and value == "Active"


def _slowdown(field: str) -> str:
    return field.partition(".")[2]


def _number(text: str) -> int | None:
    if text in _UNKNOWN:
        return None
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return None


def oldest_driver(cuda: str) -> tuple[int, ...] | None:
    """Return the oldest driver for a build of torch, "12.8"; None for a CUDA that is not known here."""
    major = cuda.partition(".")[0]
    return OLDEST_DRIVERS.get(int(major)) if major.isdecimal() else None


def as_version(text: str) -> tuple[int, ...]:
    """Return "535.183.01" as numbers."""
    return tuple(int(part) for part in text.split(".") if part.isdecimal() and len(part) < 9)
