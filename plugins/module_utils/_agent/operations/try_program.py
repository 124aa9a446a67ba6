# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Run a short program as a job would run, and leave no process and no file behind."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.answer import (
    ANSWER_SECONDS,
    extend_deadline,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_facts import raise_limits
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import cannot_listen
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import how_it_ended
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.run_program import Program
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request, is_number

END_SECONDS = 2
"""How long a program may take to end once it has closed its output."""
MOST_BYTES = 2**20
"""The most of a program's output that is read: more is not a list of messages."""
MOST_SECONDS = 600
"""A step takes no longer, whatever the program reports."""


def try_program(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Run a program in the environment's Python, as a job's user, with a job's variables and limits.

    It prints messages: JSON objects, one a line. One with ``step`` and ``seconds`` names a step that begins, and how
    long it may take: after that the program is ended, and also when the request's connection is closed.

    Request: directory, user, variables, arguments (the program gets them as JSON, its only argument), seconds
    (until the first step) and listen ([address, port] that have to be free, or None). Payload: the program's text.
    Reply: messages (in their order), error (how it ended if it failed, or ""), late (whether it was ended because a
    step took too long).
    """
    user = User(request["user"])
    if request["listen"]:
        check_free(*request["listen"])
    raise_limits()
    run = ProgramRun(request, user, payload)
    try:
        run.read_messages(request["seconds"])
    finally:
        error = run.end()
    return {"messages": run.messages, "error": error, "late": run.late}, b""


def check_free(address: str, port: int) -> None:
    """Refuse if no process can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise cannot_listen(address, port, error) from None


class ProgramRun:
    """A program that runs, and the messages that it prints."""

    def __init__(self, request: Request, user: User, text: bytes) -> None:
        """Start the program."""
        python = os.path.join(request["directory"], "env", "bin", "python")
        script = os.memfd_create("program")
        os.write(script, text)
        os.lseek(script, 0, os.SEEK_SET)
        self.messages: list[dict[str, Any]] = []
        self.late = False
        self._unread = b""
        try:
            self._program = Program(
                request, user, python, ["-", json.dumps(request["arguments"])], script, subprocess.PIPE
            )
        except OSError as error:
            raise Refusal(
                f"cannot run {python} as {user.name}: {os.strerror(error.errno or 0)}; run: ansible-playbook setup.yml"
            ) from None
        finally:
            os.close(script)

    def read_messages(self, seconds: float) -> None:
        """Read until the program has ended or takes too long, or the request's connection is closed."""
        if self._program.process.stdout is None:
            raise AssertionError("its output is a pipe")
        output = self._program.process.stdout.fileno()
        waiting = select.poll()
        waiting.register(output, select.POLLIN)
        waiting.register(1, 0)  # where the reply goes: an event is that it is closed
        deadline = time.monotonic() + seconds
        size = 0
        while size < MOST_BYTES:
            events = dict(waiting.poll(max(0.0, 1000 * (deadline - time.monotonic()))))
            if 1 in events:
                return
            if not events:
                self.late = True
                return
            data = os.read(output, 65536)
            if not data:
                return
            size += len(data)
            for step_seconds in self._read(data):
                deadline = time.monotonic() + step_seconds
                extend_deadline(step_seconds + ANSWER_SECONDS)

    def _read(self, data: bytes) -> list[float]:
        """Take the messages in the data; return how long the steps may take that have begun."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        steps = []
        for line in lines:
            with suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self.messages.append(message)
                    if "step" in message and is_number(message.get("seconds")):
                        steps.append(min(float(message["seconds"]), MOST_SECONDS))
        return steps

    def end(self) -> str:
        """End all processes that are left of it; return how it ended if it failed, or ""."""
        if not self.late:
            self._program.wait(END_SECONDS)
        code, error = self._program.end()
        return "" if self.late or code == 0 else error or how_it_ended(code)
