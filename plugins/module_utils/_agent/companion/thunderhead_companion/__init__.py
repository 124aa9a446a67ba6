# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Have Lightning's Trainer find the job's checkpoints, wherever they lie, and note those that it saves.

A job's ranks import this package, by its own name: Lightning calls ``callbacks`` whenever a Trainer is made, because an
entry point beside this folder names it. It needs nothing but the torch that the job has.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from .give_checkpoint import with_checkpoint
from .note_checkpoints import save_and_note
from .share_checkpoint import resume_shared
from .wind_loader import process_and_wind

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
"""Lightning by its two names; each has a Trainer of its own."""
METHODS = ("fit", "validate", "test", "predict")
"""Of a Trainer: what loads a checkpoint."""


def callbacks() -> list[Any]:
    """Return no callback, but prepare the Trainers that are imported."""
    for package in PACKAGES:
        trainer = getattr(sys.modules.get(package), "Trainer", None)
        for name in METHODS:
            method = getattr(trainer, name, None)
            if method and not hasattr(method, "accompanied"):
                setattr(trainer, name, accompanied(method))
    return []


def accompanied(method: Any) -> Any:
    """Return a Trainer's method, with what this package adds to it."""
    start = with_checkpoint(method) if method.__name__ == "fit" else method

    @functools.wraps(method)
    def start_accompanied(trainer: Any, *given: Any, **named: Any) -> Any:
        # No functions that are made here: a Trainer whose ranks are spawned is pickled.
        changes = (
            (trainer._checkpoint_connector, "resume_start", functools.partial(resume_shared, trainer)),
            (trainer.strategy, "process_dataloader", functools.partial(process_and_wind, trainer, [])),
            (trainer, "save_checkpoint", functools.partial(save_and_note, trainer, trainer.save_checkpoint)),
        )
        before = [vars(changed).get(name) for changed, name, _replacement in changes]
        for changed, name, replacement in changes:
            setattr(changed, name, replacement)
        try:
            return start(trainer, *given, **named)
        finally:
            for (changed, name, _replacement), earlier in zip(changes, before):
                vars(changed).pop(name, None)
                if earlier is not None:  # a script's own, or that of a fit in which this was called
                    setattr(changed, name, earlier)

    start_accompanied.accompanied = True  # type: ignore[attr-defined]
    return start_accompanied
