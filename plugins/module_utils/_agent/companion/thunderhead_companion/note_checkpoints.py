# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Note which checkpoints a training has saved, so that another attempt goes on from one of these, and from no other."""

from __future__ import annotations

import os
from typing import Any

from .give_checkpoint import write_down

SAVED = "checkpoints"
"""File in which the supervisor finds their paths, one a line; a path may be there several times."""


def save_and_note(trainer: Any, filepath: Any, *given: Any, **named: Any) -> None:
    """Do what ``Trainer.save_checkpoint`` does, and note the path.

    Not of a file whose name begins with a dot: Lightning saves such a one before it searches for a learning rate or a
    batch size.
    """
    type(trainer).save_checkpoint(trainer, filepath, *given, **named)
    path = os.path.abspath(os.fspath(filepath))
    if trainer.is_global_zero and not os.path.basename(path).startswith(".") and "\n" not in path:
        write_down(SAVED, f"{path}\n", "a")
