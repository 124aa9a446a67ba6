# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Note which checkpoints a training has saved, so that another attempt goes on from one of these, and from no other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from .tell_supervisor import write_down

SAVED = "checkpoints"
"""File in which the supervisor finds their paths, one a line; a path may be there several times."""


def save_and_note(trainer: Any, save: Callable[..., None], filepath: Any, *given: Any, **named: Any) -> None:
    """Do what a Trainer's ``save_checkpoint`` does, which is ``save``, and note the path.

    Not of a file whose name begins with a dot: Lightning saves such a one before it searches for a learning rate or a
    batch size.
    """
    save(filepath, *given, **named)
    with contextlib.suppress(Exception):  # whatever it is that was saved there: it is saved
        path = os.path.abspath(os.fsdecode(filepath))
        if trainer.is_global_zero and not os.path.basename(path).startswith(".") and "\n" not in path:
            write_down(SAVED, f"{path}\n", "a")
