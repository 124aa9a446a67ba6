# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Requests and replies.

A request is ``{"op": name, ...}``; the functions decorated with ``@operation`` answer it. What cannot be done is a
``Refusal``: one sentence without the node's name, which the controller puts in front. Whatever else goes wrong is a
sentence too, with the fact ``failed``: it says nothing of the job. Either comes in time: see ``allow``.
"""

from __future__ import annotations

import _signal as signal  # what the module signal wraps; its enumerations take longer to import than an agent lives
import _thread
import errno
import os
import sys
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import LONGEST_REPLY, fitted

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable
    from typing import Any

    Request = dict[str, Any]
    Reply = dict[str, Any]

MARK = "thunderhead-reply"
OPERATIONS: dict[str, Callable[[Request, bytes], tuple[Reply, bytes]]] = {}
ANSWER_SECONDS = 120
"""How long an agent may take besides what the request itself asks for."""
LAST_SECONDS = 15
"""How long one that has to give up may take to undo what it has begun, and to say so; then it ends without a word."""
PIECE_BYTES = 2**18


class Refusal(Exception):
    """Why the request cannot be done: one sentence about this node, and what the controller may act upon."""

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.facts = facts


class OutOfTime(BaseException):
    """This agent has to give up. No ``Exception``: for whoever expects any of what it does, this is none of those."""


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


def said(error: BaseException) -> str:
    """Return an exception's words without its number."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return f"{error.strerror}: {os.fsdecode(name)}" if isinstance(name, (str, bytes)) else error.strerror
    return str(error)


def disk_full(path: str, state: str) -> str:
    """Return the sentence for a full file system."""
    return f"has too little disk space in {path} ({state}); free some there, or move cluster_dir to a larger disk"


def answer(request: Request) -> None:
    """Do what is asked, write the reply, and end in time."""
    payload = b""
    try:
        signal.signal(signal.SIGALRM, give_up)
        allow(ANSWER_SECONDS)
        _thread.start_new_thread(end_at_last, (request["op"],))
        asked = received()
        allow(ANSWER_SECONDS + sum(request.get(name, 0) for name in ("wait_seconds", "grace_seconds", "seconds")))
        reply, payload = OPERATIONS[request["op"]](request, asked)
        text = written({**reply, "ok": True})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:
        text, payload = written({**excuse(request, error), "ok": False}), b""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    send(b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text)
    send(payload)


def allow(seconds: float) -> None:
    """Let this agent take so long from now on: then it gives up what it does, whatever holds it, and says so.

    A fork of it is not bound by that.
    """
    Latest.moment = time.monotonic() + seconds + LAST_SECONDS
    signal.setitimer(signal.ITIMER_REAL, seconds)


class Latest:
    """When this agent ends without a reply, on the monotonic clock."""

    moment = 0.0


def give_up(*_signal: Any) -> None:
    """Interrupt what is being done."""
    raise OutOfTime


def end_at_last(op: str) -> None:
    """End this agent where a signal does not interrupt it: in a system call to a file system that does not answer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        left = Latest.moment - time.monotonic()
        if left <= 0:
            os.write(2, f"gave up {op}: a file system there does not answer\n".encode())
            os._exit(1)
        time.sleep(left)


def received() -> bytes:
    """Return what came with the request; it takes the time that it takes as long as anything comes."""
    pieces: list[bytes] = []
    while True:
        piece = sys.stdin.buffer.read1(PIECE_BYTES)  # type: ignore[union-attr]  # it has it
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        allow(ANSWER_SECONDS)


def excuse(request: Request, error: BaseException) -> Reply:
    """Return what is said instead of an answer."""
    if isinstance(error, Refusal):
        return {"refusal": str(error), **error.facts}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"refusal": disk_full(request.get("directory", "/"), said(error))}
    op = request.get("op")
    if isinstance(error, OutOfTime):
        return {"refusal": f"gave up {op}, which took too long; look at the load and the disk there", "failed": True}
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__} in {place(error)}"
    return {"refusal": f"failed at {op}: {': '.join(filter(None, (kind, said(error))))}", "failed": True}


def place(error: BaseException) -> str:
    """Return the module and the line where it was raised: what is no error of the system's is a defect."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals['__name__'].rpartition('.')[2]}, line {trace.tb_lineno}" if trace else "?"


def written(reply: Reply) -> bytes:
    """Return a reply as a literal, within the bounds.

    Raises:
        Refusal: it is too long all the same.
    """
    text = ascii(fitted(reply)).encode()
    if len(text) > LONGEST_REPLY:
        most = f"{len(text)} characters, of at most {LONGEST_REPLY}"
        raise Refusal(f"has more to say than a reply holds ({most})", failed=True)
    return text


def send(data: bytes) -> None:
    """Write to the controller, for as long as it takes what comes."""
    view = memoryview(data)
    while view:
        allow(ANSWER_SECONDS)
        view = view[os.write(1, view[:PIECE_BYTES]) :]
