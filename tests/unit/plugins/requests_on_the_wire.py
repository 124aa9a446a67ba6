# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the standard input of an agent's interpreter holds, taken apart again."""

import json
from typing import Any


def taken_apart(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the first program of an agent's interpreter, the compressed modules, and the lengths with the rest."""
    head, _newline, rest = data.partition(b"\n")
    start, rest = rest[: int(head)], rest[int(head) :]
    lengths, _newline, rest = rest.partition(b"\n")
    modules = int(lengths.split()[0])
    return start, rest[:modules], lengths + b"\n" + rest[modules:]


def request_in(data: bytes) -> dict[str, Any]:
    """Return the request that an agent's interpreter is given."""
    lengths, _newline, rest = taken_apart(data)[2].partition(b"\n")
    request: dict[str, Any] = json.loads(rest[: int(lengths.split()[1])])
    return request
