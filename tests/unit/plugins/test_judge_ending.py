# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.judge_ending import (
    fails_again,
    was_killed,
)

LIGHTNING = (
    b"[rank: 1] Child process with PID 4242 terminated with code %d. Forcefully terminating all other processes to "
    b"avoid zombies\n"
)
TORCHRUN = b"""
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-30_21:51:24
  host      : gpu-1
  rank      : 1 (local_rank: 1)
  exitcode  : %d (pid: 4242)
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("code", "log", "expected"),
    [
        *((-number, b"", True) for number in (1, 2, 9, 15)),
        *((-number, b"", False) for number in (6, 7, 8, 11)),
        *((code, b"Signal 9\n", False) for code in (0, 1, 2, 9, 137)),
        (-9, LIGHTNING % 1, False),  # of a rank that raised an exception; Lightning has killed its own main process
        (-9, LIGHTNING % -9, True),
        (-9, LIGHTNING % -11, False),
        (1, TORCHRUN % -9, True),
        (1, TORCHRUN % 1, False),
        (1, TORCHRUN % -6, False),
        (1, LIGHTNING % 1 + TORCHRUN % -9, True),  # the last counts
        (1, TORCHRUN % -9 + LIGHTNING % 1, False),
    ],
)
def test_who_was_killed_from_outside(code: int, log: bytes, expected: bool) -> None:
    assert was_killed(code, log) is expected


@pytest.mark.parametrize(
    ("code", "log", "expected"),
    [
        (2, b"usage: train.py [-h]\n", True),
        (1, b"Traceback (most recent call last):\n  File\nModuleNotFoundError: No module named 'x'\n\n", True),
        (1, b"ImportError: cannot import name 'x' from 'y'\n", True),
        (1, b"SyntaxError: invalid syntax", True),
        (1, b"ImportError: caught\nValueError: loss is NaN\n", False),
        (1, b"", False),
        (-6, b"\n \n", False),
    ],
)
def test_what_fails_each_time(code: int, log: bytes, expected: bool) -> None:
    assert fails_again(code, log) is expected
