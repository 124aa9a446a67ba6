# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Requests and replies.

A request is ``{"op": name, ...}``; the functions decorated with ``@operation`` answer it. What cannot be done is a
``Refusal``: one sentence without the node's name, which the controller puts in front.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable
    from typing import Any

    Request = dict[str, Any]
    Reply = dict[str, Any]

MARK = "thunderhead-reply"
OPERATIONS: dict[str, Callable[[Request, bytes], tuple[Reply, bytes]]] = {}


class Refusal(Exception):
    """Why the request cannot be done: one sentence about this node, and what the controller may act upon."""

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.facts = facts


class suppress:
    """Let these exceptions pass, as contextlib's does, which brings collections and functools along."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, *_about: object) -> bool:
        """Return whether the exception ends here."""
        return kind is not None and issubclass(kind, self._kinds)


def operation(
    function: Callable[[Request, bytes], tuple[Reply, bytes]],
) -> Callable[[Request, bytes], tuple[Reply, bytes]]:
    """Make ``function(request, payload) -> (reply, payload)`` answer the requests of its name."""
    OPERATIONS[function.__name__] = function
    return function


def said(error: Exception) -> str:
    """Return an exception's words without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {os.fsdecode(error.filename)}" if error.filename else error.strerror
    return str(error)


def disk_full(path: str, state: str) -> str:
    """Return the sentence for a full file system."""
    return f"has too little disk space in {path} ({state}); free some there, or move cluster_dir to a larger disk"


def answer(request: Request) -> None:
    """Do what is asked and write the reply."""
    payload = b""
    try:
        reply, payload = OPERATIONS[request["op"]](request, sys.stdin.buffer.read())
        reply["ok"] = True
    except Refusal as refusal:
        reply = {"ok": False, "refusal": str(refusal), **refusal.facts}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        sentence = disk_full(request["directory"], said(error)) if full else f"failed at {request['op']}: {said(error)}"
        reply = {"ok": False, "refusal": sentence}
    text = ascii(reply).encode()
    sys.stdout.buffer.write(b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text)
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()
