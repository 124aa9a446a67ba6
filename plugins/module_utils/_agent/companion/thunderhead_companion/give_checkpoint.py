# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Have a training go on from the job's checkpoint where the script does not say what it is for."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

_given: list[str] = []  # the checkpoint, once a fit has got it


def with_checkpoint(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Trainer.fit``, which goes on from CKPT_PATH the first time that it is called without a ``ckpt_path``."""
    signature = inspect.signature(fit)

    def fit_from_checkpoint(*given: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(*given, **named)
            if is_to_go_on(bound.arguments):
                bound.arguments["ckpt_path"] = os.environ["CKPT_PATH"]
                given, named = bound.args, bound.kwargs
        except (AttributeError, KeyError, TypeError):
            pass  # no checkpoint, another Lightning, or arguments that it will refuse
        return fit(*given, **named)

    return fit_from_checkpoint


def is_to_go_on(arguments: dict[str, Any]) -> bool:
    """Return whether a fit with these arguments is the one that is to go on from the checkpoint.

    Raises:
        KeyError: there is no checkpoint.
    """
    trainer, checkpoint = arguments["self"], os.environ["CKPT_PATH"]
    if arguments.get("ckpt_path") is not None or is_trial(trainer) or is_for_script(checkpoint):
        return False
    if not _given:
        _given.append(checkpoint)
        return True
    if trainer.is_global_zero:
        print(
            f"thunderhead: this fit starts from the beginning, because an earlier one went on from {checkpoint}; if "
            "this is the one to go on, pass it ckpt_path=os.environ.get('CKPT_PATH')",
            file=sys.stderr,
        )
    return False


def is_trial(trainer: Any) -> bool:
    """Return whether a fit is no training: a run of a few batches, or a Tuner's that looks for a learning rate."""
    return bool(trainer.fast_dev_run) or any(getattr(one, "_early_exit", False) for one in trainer.callbacks)


def is_for_script(checkpoint: str) -> bool:
    """Return whether the script decides what the checkpoint is for: an argument, or a module of the job's, names it."""
    work = os.path.join(os.path.realpath(os.environ["JOB_DIR"]), "work", "")
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    own = [file for file in files if os.path.realpath(file).startswith(work)]
    return any(checkpoint in one for one in sys.argv) or any(map(mentions_checkpoint, own))


def mentions_checkpoint(file: str) -> bool:
    """Return whether a file has CKPT_PATH in its text."""
    try:
        with open(file, "rb") as code:
            return b"CKPT_PATH" in code.read()
    except OSError:
        return False
