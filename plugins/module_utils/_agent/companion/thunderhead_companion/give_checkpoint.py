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

TEXTS = (".yaml", ".yml", ".toml", ".json", ".cfg", ".ini", ".sh")
"""Endings of files besides Python's that may say what the checkpoint is for."""
LONGEST_TEXT = 2**20
"""Bytes of one that a person wrote."""

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
    """Return whether a fit with these arguments is the one that is to go on from the checkpoint, and say so.

    Raises:
        KeyError: there is no checkpoint.
    """
    trainer, checkpoint = arguments["self"], os.environ["CKPT_PATH"]
    connector = getattr(trainer, "_checkpoint_connector", None)
    is_named = arguments.get("ckpt_path") is not None or getattr(connector, "_user_managed", False)
    if is_named or is_trial(trainer) or is_for_script(checkpoint):
        return False
    if _given:
        say(
            trainer,
            f"this fit starts from the beginning, because an earlier one went on from {checkpoint}; if this is the one "
            "to go on, pass it ckpt_path=os.environ.get('CKPT_PATH')",
        )
        return False
    _given.append(checkpoint)
    say(trainer, f"fit goes on from {checkpoint}, because it is passed no ckpt_path")
    return True


def say(trainer: Any, sentence: str) -> None:
    """Print a sentence, on one rank."""
    if trainer.is_global_zero:
        sys.stderr.write(f"thunderhead: {sentence}\n")


def is_trial(trainer: Any) -> bool:
    """Return whether a fit is no training: a run of a few batches, or a Tuner's that looks for a learning rate."""
    return bool(trainer.fast_dev_run) or any(getattr(one, "_early_exit", False) for one in trainer.callbacks)


def is_for_script(checkpoint: str) -> bool:
    """Return whether the script decides what the checkpoint is for: its arguments, code or configuration name it.

    Its code is what was imported of the job's folder; another script that lies there does not count.
    """
    work = os.path.join(os.path.realpath(os.environ["JOB_DIR"]), "work")
    # Not by getattr: a module may import something then.
    imported = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
    files = [one for one in imported if isinstance(one, str) and os.path.realpath(one).startswith(work + os.sep)]
    for folder, _folders, names in os.walk(work):
        files += [os.path.join(folder, name) for name in names if name.endswith(TEXTS)]
    return any(checkpoint in one for one in sys.argv) or any(map(mentions_checkpoint, files))


def mentions_checkpoint(file: str) -> bool:
    """Return whether a file has CKPT_PATH in its text."""
    try:
        with open(file, "rb") as text:
            return b"CKPT_PATH" in text.read(LONGEST_TEXT)
    except OSError:
        return False
