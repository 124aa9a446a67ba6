# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What a job's folder says of it, as far as it is to be believed: the files there are the job's user's to change."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON, Holder, read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import (
    DEEPEST,
    LARGEST,
    LONGEST_DOCUMENT,
    LONGEST_TEXT,
    Document,
    encodable,
    is_encodable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable, Mapping
    from typing import Any


def is_text(value: object) -> bool:
    """Return whether it is a string to be passed on."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and is_encodable(value)


def is_number(value: object) -> bool:
    """Return whether it is a number that a reply can hold: neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_count(value: object) -> bool:
    """Return whether it is a whole number."""
    return isinstance(value, int) and is_number(value)


def is_count_or_none(value: object) -> bool:
    """Return whether it is a whole number, or not known."""
    return value is None or is_count(value)


def is_flag(value: object) -> bool:
    """Return whether it is true or false."""
    return isinstance(value, bool)


def are_words(value: object) -> bool:
    """Return whether these are a command's arguments."""
    return isinstance(value, list) and all(
        isinstance(word, str) and len(word) <= LONGEST_DOCUMENT and is_encodable(word) for word in value
    )


def are_ranks(value: object) -> bool:
    """Return whether this says which rank has which host and address."""
    kinds = {"rank": is_count, "host": is_text, "address": is_text}
    return isinstance(value, list) and all(
        isinstance(one, dict) and one.keys() == kinds.keys() and all(kinds[name](one[name]) for name in kinds)
        for one in value
    )


SPEC: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("id", "user", "start", "script", "module", "launcher", "uses"), is_text),
    **dict.fromkeys(("bundle", "python", "master_addr"), is_text),
    **dict.fromkeys(("world_size", "rank", "master_port"), is_count),
    **dict.fromkeys(("grace_seconds", "node_timeout_seconds"), is_number),
    "args": are_words,
    "devices": is_count_or_none,
    "gang": is_flag,
    "ranks": are_ranks,
}
"""What spec.json may say."""

STATE: dict[str, Callable[[object], bool]] = {
    "state": lambda value: value in ("prepared", "running", "succeeded", "failed", "stopped", "lost"),
    **dict.fromkeys(("pid", "oom"), is_count),
    **dict.fromkeys(("exit_code", "signal"), is_count_or_none),
    **dict.fromkeys(("started", "ended", "stopping"), is_number),
    **dict.fromkeys(("because", "error"), is_text),
    **dict.fromkeys(("met", "checkpoint_read"), is_flag),
}
"""What state.json may say."""


def believed(found: dict[str, Any] | None, kinds: Mapping[str, Callable[[object], bool]]) -> dict[str, Any] | None:
    """Return of a file that the job's user can write what is known there; None if any of that is not of its kind."""
    if found is None:
        return None
    known = {name: readable(found[name]) for name in kinds if name in found}
    return known if all(kinds[name](value) for name, value in known.items()) else None


def readable(value: Any, depth: int = 0) -> Any:
    """Return a value of a JSON file in which all text can be passed on; nothing that is believed lies deeper."""
    if isinstance(value, str):
        return Document(encodable(value))
    if isinstance(value, list) and depth < DEEPEST:
        return [readable(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < DEEPEST:
        return {encodable(name): readable(value[name], depth + 1) for name in value}
    return value


def job_state(job_dir: str, holder: Holder) -> dict[str, Any]:
    """Return the job's state; one whose supervisor ended without its last word, or a broken one, is ``lost``."""
    alive = holder.pid() is not None  # before the file: a supervisor writes its last word, then lets go of the lock
    state = {"state": "prepared", **(believed(read_json(os.path.join(job_dir, "state.json")), STATE) or {})}
    if state["state"] in GOING_ON and not alive:
        state["state"] = "lost"
    return state
