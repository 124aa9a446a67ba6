# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Define what agent and controller share: names, limits, and the kinds of values in replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# --------------------------------------------------------------------------------------------------------------- limits

LONGEST_TEXT = 4096
"""Characters of a string."""
LONGEST_DOCUMENT = 2**20
"""Characters of a ``Document``."""
LARGEST = 2**63 - 1
"""Of any number: as large as a file can be."""
MOST_ITEMS = 100_000
"""Of any list."""
DEEPEST = 16
"""How deep lists and dictionaries may lie in one another."""
LONGEST_REPLY = 2**22
"""Bytes of a reply as JSON. What is longer than a few kilobytes comes as its payload."""
MOST_ADDRESSES = 1024
"""Of one interface: the firewalls of all nodes let each of them in."""
START_SECONDS = 300
"""A prepared job that nobody starts or discards is given up after this long: its controller is gone."""


# ------------------------------------------------------------------------------------------------- requests and replies

MARK = "thunderhead-reply"
Request = dict[str, Any]
Reply = dict[str, Any]


class Document(str):
    """What a file or a program's output holds, or an argument of a command: it may be longer than other text."""

    __slots__ = ()


def escape_surrogates(text: str) -> str:
    """Return a text that UTF-8 can hold: the halves of characters in it are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can hold a text."""
    return escape_surrogates(text) == text


def bounded(number: float) -> Any:
    """Return a number as a reply can hold it: some network file systems claim to have 16 EiB free."""
    return max(-LARGEST, min(LARGEST, number))  # which is LARGEST for what is no number


def fit_to_limits(value: Any, depth: int = 0) -> Any:
    """Return a value of a reply within the bounds: what is too long is cut, what lies too deep is None."""
    if isinstance(value, Document):
        return escape_surrogates(value[:LONGEST_DOCUMENT])
    if isinstance(value, str):
        return shorten(escape_surrogates(value), LONGEST_TEXT)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        return bounded(value)
    if depth == DEEPEST:
        return None
    if isinstance(value, dict):
        return {fit_to_limits(name): fit_to_limits(value[name], depth + 1) for name in list(value)[:MOST_ITEMS]}
    return [fit_to_limits(item, depth + 1) for item in value[:MOST_ITEMS]]


def shorten(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters; an ellipsis stands for what is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def last_line(text: str, most: int = LONGEST_TEXT) -> str:
    """Return the last line that is not blank, stripped, of at most ``most`` characters; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shorten(lines[-1], most) if lines else ""


# ------------------------------------------------------------------------------------------ what files of a job may say


def is_text(value: object) -> bool:
    """Return whether it is a string to be passed on."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and is_encodable(value)


def is_sentence(value: object) -> bool:
    """Return whether it is a text that is not blank."""
    return isinstance(value, str) and is_text(value) and bool(value.strip())


def is_number(value: object) -> bool:
    """Return whether it is a number that a reply can hold: neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_notice(value: object) -> bool:
    """Return whether it says when something was found out, in seconds since 1970, and what."""
    return isinstance(value, list) and len(value) == 2 and is_number(value[0]) and is_sentence(value[1])


def is_count(value: object) -> bool:
    """Return whether it is a whole number."""
    return isinstance(value, int) and is_number(value)


def is_count_or_none(value: object) -> bool:
    """Return whether it is a whole number, or not known."""
    return value is None or is_count(value)


def is_flag(value: object) -> bool:
    """Return whether it is true or false."""
    return isinstance(value, bool)


def is_flag_or_none(value: object) -> bool:
    """Return whether it is true, false, or None: not known."""
    return value is None or is_flag(value)


def are_arguments(value: object) -> bool:
    """Return whether these are a command's arguments."""
    return isinstance(value, list) and all(
        isinstance(one, str) and len(one) <= LONGEST_DOCUMENT and is_encodable(one) for one in value
    )


def is_roster(value: object, count: int) -> bool:
    """Return whether these are different places in a list of ``count``, at least one."""
    if not isinstance(value, list) or not all(map(is_count, value)):
        return False
    return 0 < len(value) == len({*value}) and all(0 <= one < count for one in value)


def are_ranks(value: object) -> bool:
    """Return whether these are ranks, each with its host and address."""
    kinds = {"rank": is_count, "host": is_text, "address": is_text}
    return isinstance(value, list) and all(
        isinstance(one, dict) and one.keys() == kinds.keys() and all(kinds[name](one[name]) for name in kinds)
        for one in value
    )


SPARE = "spare"
"""The state of a node that waits to take the place of one that is lost, or whose place another has taken."""
UNUSED = "unused"
"""The state of one that had no part in the last attempt, when the job has ended."""
GOING_ON = ("prepared", "running", SPARE)
"""The states of a node's part in a job that has not ended."""

SPEC: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "user", "start", "script", "module", "launcher", "uses"), is_text),
    **dict.fromkeys(("bundle", "python", "master_addr"), is_text),
    **dict.fromkeys(("world_size", "spares", "rank", "master_port"), is_count),
    **dict.fromkeys(("grace_seconds", "node_timeout_seconds"), is_number),
    "args": are_arguments,
    "devices": is_count_or_none,
    "gang": is_flag,
    "ranks": are_ranks,
}
"""The fields of spec.json."""

STATE: dict[str, Callable[[object], bool]] = {
    "state": lambda value: value in (*GOING_ON, "succeeded", "failed", "stopped", "lost", UNUSED),
    **dict.fromkeys(("pid", "oom"), is_count),
    **dict.fromkeys(("exit_code", "signal"), is_count_or_none),
    **dict.fromkeys(("started", "ended", "stopping"), is_number),
    **dict.fromkeys(("because", "error"), is_text),
    "met": is_flag_or_none,
    "checkpoint_read": is_flag,
}
"""The fields of state.json."""

ENDED_ATTEMPT: dict[str, Callable[[object], bool]] = {
    "attempt": is_count,
    "roster": lambda value: isinstance(value, list) and all(map(is_count, value)),
    **dict.fromkeys(("cause", "checkpoint"), is_text),
    **dict.fromkeys(("seconds", "repeated_seconds", "down_seconds"), is_number),
}
"""What the gang's head says of an attempt that another has followed."""

GANG_RANK: dict[str, Callable[[object], bool]] = {
    "state": lambda value: value in ("unknown", "running", SPARE, "succeeded", "failed", "stopped"),
    "met": is_flag_or_none,
    "checkpoint_read": is_flag,
}
"""What the gang's head says of each rank."""

ATTEMPT_BEGINS = "thunderhead: attempt"
"""How a line of a log begins that says that another attempt of the job begins."""
STANDSTILL = "nothing was printed for"
"""How a sentence begins that says why a job prints nothing."""


# ---------------------------------------------------------------------------------------------------------------- names

HEX = frozenset("0123456789abcdef")
DIGITS = frozenset("0123456789")
ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def node_name(rank: int | None, host: str) -> str:
    """Return what messages call a node of a job; None for a rank: a spare, or one that a spare has replaced."""
    return f"spare {host}" if rank is None else f"rank {rank} ({host})"


def is_made_of(text: str, characters: frozenset[str], length: int) -> bool:
    """Return whether a text has this length and no other characters."""
    return len(text) == length and characters.issuperset(text)


def is_digits(text: str) -> bool:
    """Return whether it consists of digits."""
    return bool(text) and DIGITS.issuperset(text)


def is_job_id(name: str) -> bool:
    """Return whether it is a job's id: YYYYmmdd-HHMMSS-<script>-<4 hex>."""
    day, _dash, rest = name.partition("-")
    clock, _dash, rest = rest.partition("-")
    script, _dash, number = rest.rpartition("-")
    return (
        is_made_of(day, DIGITS, 8)
        and is_made_of(clock, DIGITS, 6)
        and 0 < len(script) <= 40
        and not script.startswith("-")
        and ID_CHARACTERS.issuperset(script)
        and is_made_of(number, HEX, 4)
    )


# ------------------------------------------------------------------------------------------- reasons of try_connections

NO_ANSWER = "no answer"
REFUSED = "refused"
NO_ROUTE = "no route"
ONLY_SMALL = "only small packets"
"""Why a node cannot use a connection to another."""
