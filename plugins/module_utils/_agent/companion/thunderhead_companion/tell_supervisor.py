# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell the job's supervisor, in files that it reads, and whoever reads the log, what this package has seen and done."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

NO_RETRY = "no_retry"
"""File in which the supervisor finds why the job must not be started again."""

_told: list[str] = []  # why, as it was told


def forbid_retry(trainer: Any, why: str) -> None:
    """Have the job not be started again by itself after a fault; ``why`` is a clause, which is told once."""
    if trainer.is_global_zero and why not in _told:
        _told.append(why)
        write_down(NO_RETRY, why, "w")
        say(trainer, f"after a fault, this job is not started again by itself, because {why}")


def write_down(name: str, text: str, mode: str) -> None:
    """Write to a file of the companion's in the job's folder, which the supervisor reads."""
    with contextlib.suppress(OSError, KeyError):
        path = f"{os.environ['JOB_DIR']}/companion/{name}"
        with open(path, mode, encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)


def say(trainer: Any, sentence: str) -> None:
    """Print a sentence, on one rank."""
    if trainer.is_global_zero:
        sys.stderr.write(f"thunderhead: {sentence}\n")
