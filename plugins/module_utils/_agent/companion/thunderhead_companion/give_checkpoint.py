# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Have a training go on from the job's checkpoint where the script does not say what it is for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from .tell_supervisor import forbid_retry, say

VARIABLE = "JOB_FIT_CKPT_PATH"
"""Path of the checkpoint, where neither the script nor a configuration of the project mentions it."""
MENTIONS = "JOB_SCRIPT_MENTIONS_CKPT_PATH"
"""A variable that says that the script does: it may go on from the checkpoint, or begin anew with its weights."""
FINDERS = ("LearningRateFinder", "BatchSizeFinder")
"""Callbacks with which Lightning forgets the optimizer's part of a checkpoint."""

_fits: list[str] = []  # "" for each that has begun, or the checkpoint that it has got


def with_checkpoint(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Trainer.fit``, which goes on from the checkpoint the first time that it is passed no ``ckpt_path``."""
    signature = inspect.signature(fit)

    def fit_from_checkpoint(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
        except TypeError:
            return fit(*given, **named)  # which says what is wrong with the arguments
        is_open = "ckpt_path" in signature.parameters and bound.arguments.get("ckpt_path") is None
        checkpoint = take_checkpoint(given[0]) if is_open else None
        if checkpoint:
            bound.arguments["ckpt_path"] = checkpoint
        is_own = bound.arguments.get("ckpt_path") is not None and not checkpoint
        if is_own and str(bound.arguments["ckpt_path"]) != os.environ.get("CKPT_PATH"):
            forbid_retry(given[0], "its fit is passed a checkpoint of the script's own, and would begin there again")
        if MENTIONS in os.environ and "ckpt_path" not in bound.arguments:
            forbid_retry(given[0], "the script mentions CKPT_PATH, but passes no ckpt_path to fit")
        if not is_search(given[0]) and not given[0].fast_dev_run:
            if _fits:
                forbid_retry(given[0], "it has begun a second fit, and its checkpoints may be of either")
            _fits.append(checkpoint or "")
        return fit(*bound.args, **bound.kwargs)

    return fit_from_checkpoint


def take_checkpoint(trainer: Any) -> str | None:
    """Return the checkpoint that a Trainer is to go on from, the first time, and say so; else None."""
    checkpoint = os.environ.get(VARIABLE)
    is_set = getattr(trainer._checkpoint_connector, "_user_managed", False)  # trainer.ckpt_path = ...
    if not checkpoint or is_set or is_search(trainer) or trainer.fast_dev_run:
        return None
    for name in (type(one).__name__ for one in trainer.callbacks):
        if name in FINDERS:
            say(trainer, f"this fit starts from the beginning, because Lightning does not go on with a {name}")
            return None
    if any(_fits):
        say(
            trainer,
            f"this fit starts from the beginning, because an earlier one went on from {checkpoint}; if this is the one "
            "to go on, pass it ckpt_path=os.environ.get('CKPT_PATH')",
        )
        return None
    say(trainer, f"fit goes on from {checkpoint}, because it is passed no ckpt_path")
    return checkpoint


def is_search(trainer: Any) -> bool:
    """Return whether this fit is one of a Tuner's, which tries a learning rate or a batch size."""
    return any(getattr(one, "_early_exit", False) for one in trainer.callbacks)
