# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Judge by a script's status and the end of its log whether to start it again may help."""

from __future__ import annotations

import re
import signal

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""A process that one of these ended was killed by another: the kernel, for want of memory, or a person."""
LIGHTNINGS_KILL = re.compile(rb"Child process with PID \d+ terminated with code (-?\d+)\. Forcefully terminating all")
"""Lightning kills its main process when that of another local rank fails, in whatever way."""
TORCHRUNS_CAUSE = re.compile(rb"Root Cause \(first observed failure\):.*?exitcode\s*: (-?\d+)", re.DOTALL)
"""Torchrun itself exits with code 1 when a process that it has started fails, in whatever way."""
BAD_ARGUMENTS = 2
"""The exit status of argparse, click and bash for those."""
AT_ONCE = (b"ModuleNotFoundError:", b"ImportError:", b"SyntaxError:", b"IndentationError:")


def was_killed(code: int, log: bytes) -> bool:
    """Return whether a script was killed from outside.

    Args:
        code: its status; negative codes are signals.
        log: the end of what it has printed, in this attempt.
    """
    found = [*LIGHTNINGS_KILL.finditer(log), *TORCHRUNS_CAUSE.finditer(log)]
    last = max(found, key=lambda one: one.start(), default=None)
    return -(int(last[1]) if last else code) in OUTSIDE


def fails_again(code: int, log: bytes) -> bool:
    """Return whether a script that has failed does so each time: for its arguments, or an import."""
    lines = [line for line in log.splitlines() if line.strip()]
    return code == BAD_ARGUMENTS or (bool(lines) and lines[-1].strip().startswith(AT_ONCE))
