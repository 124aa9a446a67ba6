# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Answer a request, in time.

A request is ``{"op": name, ...}``; the function of that name in ``operations`` does what it asks. What cannot be done
is a ``Refusal``: one sentence without the node's name, which the controller puts in front. Whatever else goes wrong is
a sentence too, with the fact ``failed``: it says nothing of the job. Either comes in time: see ``extend_deadline``.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import (
    Refusal,
    disk_full,
    error_text,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    LONGEST_REPLY,
    MARK,
    Reply,
    Request,
    fit_to_limits,
)

Operation = Callable[[Request, bytes], tuple[Reply, bytes]]
"""Takes a request and its payload, returns the reply and its payload."""
ANSWER_SECONDS = 120
"""How long an agent may take besides what the request itself asks for."""
LAST_SECONDS = 15
"""How long one that has to give up may take to undo what it has begun and to reply; then it ends without a reply."""
PIECE_BYTES = 2**18


class OutOfTime(BaseException):
    """This agent has to give up. No ``Exception``, so that no ``except Exception`` catches it."""


def answer(request: Request, operation: Operation) -> None:
    """Do what is asked, write the reply, and end in time."""
    payload = b""
    try:
        signal.signal(signal.SIGALRM, on_alarm)
        extend_deadline(ANSWER_SECONDS)
        threading.Thread(target=exit_after_deadline, args=(request["op"],), daemon=True).start()
        asked = read_payload()
        extend_deadline(
            ANSWER_SECONDS + sum(request.get(name, 0) for name in ("wait_seconds", "grace_seconds", "seconds"))
        )
        reply, payload = operation(request, asked)
        text = encode_reply({**reply, "ok": True})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:
        text, payload = encode_reply({**failure_reply(request, error), "ok": False}), b""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    send(b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text)
    send(payload)


def extend_deadline(seconds: float) -> None:
    """Let this agent take so long from now on: then it gives up what it does, whatever holds it, and reports that.

    A fork of it is not bound by that.
    """
    FinalDeadline.moment = time.monotonic() + seconds + LAST_SECONDS
    signal.setitimer(signal.ITIMER_REAL, seconds)


class FinalDeadline:
    """When this agent ends without a reply, on the monotonic clock."""

    moment = 0.0


def on_alarm(*_signal: Any) -> None:
    """Interrupt what is being done."""
    raise OutOfTime


def exit_after_deadline(op: str) -> None:
    """End this agent where a signal does not interrupt it: in a system call to a file system that does not answer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        left = FinalDeadline.moment - time.monotonic()
        if left <= 0:
            os.write(2, f"gave up {op}: a file system there does not answer\n".encode())
            os._exit(1)
        time.sleep(left)


def read_payload() -> bytes:
    """Return what came with the request; it takes the time that it takes as long as anything comes."""
    pieces: list[bytes] = []
    while True:
        piece = sys.stdin.buffer.read1(PIECE_BYTES)  # type: ignore[union-attr]  # it has it
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        extend_deadline(ANSWER_SECONDS)


def failure_reply(request: Request, error: BaseException) -> Reply:
    """Return the reply to a request that failed."""
    if isinstance(error, Refusal):
        return {"refusal": str(error), **error.facts}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"refusal": disk_full(request.get("directory", "/"), error_text(error))}
    op = request.get("op")
    if isinstance(error, OutOfTime):
        return {"refusal": f"gave up {op}, which took too long; look at the load and the disk there", "failed": True}
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__} in {error_location(error)}"
    return {"refusal": f"failed at {op}: {': '.join(filter(None, (kind, error_text(error))))}", "failed": True}


def error_location(error: BaseException) -> str:
    """Return the module and the line where it was raised: what is no error of the system's is a defect."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals['__name__'].rpartition('.')[2]}, line {trace.tb_lineno}" if trace else "?"


def encode_reply(reply: Reply) -> bytes:
    """Return a reply as JSON, within the bounds.

    Raises:
        Refusal: it is too long all the same.
    """
    text = json.dumps(fit_to_limits(reply)).encode()
    if len(text) > LONGEST_REPLY:
        most = f"{len(text)} characters, of at most {LONGEST_REPLY}"
        raise Refusal(f"has more to say than a reply holds ({most})", failed=True)
    return text


def send(data: bytes) -> None:
    """Write to the controller, for as long as it takes what comes."""
    view = memoryview(data)
    while view:
        extend_deadline(ANSWER_SECONDS)
        view = view[os.write(1, view[:PIECE_BYTES]) :]
