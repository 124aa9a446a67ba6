# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Name the collection's own folders."""

from __future__ import annotations

from pathlib import Path

COLLECTION = Path(__file__).parents[3]
ROLES = COLLECTION / "roles"
EXAMPLE = COLLECTION / "train"
"""The project of those who name none."""
