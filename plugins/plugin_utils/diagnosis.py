# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Why a job failed, in one sentence: the cause, not its victims."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

_TRACEBACK = "Traceback (most recent call last):"
# What stands before every line of a traceback: the rank, once torch has a process group; an exception group's margin.
_MARGIN = re.compile(r"(\[rank\d+\]: )?[ |+]*")
# Lightning's children prefix nothing, torch's C++ log and warnings do: none of these names a cause.
_NOISE = re.compile(r"\[?(rank\d+\]:)?\[[WIE]\d|\S*Warning: |\s*warnings\.warn\(|\S+\.py:\d+: ")


def reason(lines: Sequence[str]) -> str:
    """Return the line of a log's tail that says why: the last exception's message, else the last line worth reading.

    Args:
        lines: the last lines of the log, printable.
    """
    starts = [
        number
        for number, line in enumerate(lines)
        if _TRACEBACK in line and not (number and lines[number - 1].startswith("Exception ignored"))
    ]
    if starts:
        margin = _MARGIN.match(lines[starts[-1]])[0].replace("+", "|")  # type: ignore[index]  # it matches anything
        for line in lines[starts[-1] + 1 :]:
            text = line.removeprefix(margin)
            if text.strip() and not text.startswith((" ", "\t")) and line.startswith(margin):
                return text.strip()
    meaningful = [line.strip() for line in lines if line.strip() and not _NOISE.match(line)]
    return meaningful[-1] if meaningful else "it printed nothing"


def how_it_ended(exit_code: int | None, signal_number: int | None) -> str:
    """Return "exited with code 1" or "was killed by SIGKILL"."""
    if signal_number:
        try:
            name = signal.Signals(signal_number).name
        except ValueError:
            name = f"signal {signal_number}"
        hint = " (often the kernel's, for want of memory: see dmesg there)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"exited with code {exit_code}"


def sentence(rank: int, host: str, ending: str, seconds: float | None, lines: Sequence[str], log: str) -> str:
    """Return what the user reads first.

    Args:
        rank: the node's rank.
        host: its inventory name.
        ending: from how_it_ended, or another verb phrase.
        seconds: how long the rank ran, if known.
        lines: tail of its log.
        log: where the whole log lies.
    """
    after = f" after {seconds:.0f} s" if seconds is not None else ""
    return f"rank {rank} ({host}) {ending}{after}: {reason(lines)}; see {log}"
