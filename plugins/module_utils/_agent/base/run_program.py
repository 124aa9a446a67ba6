# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Run a program with the environment's Python as a job would run, and end all of its processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User, job_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request, last_line

LONGEST_LINE = 300
"""Characters of a program's last line that are passed on."""
POLL_SECONDS = 0.01


class Program:
    """A program that runs, in a session of its own, for no longer than this agent lives."""

    def __init__(
        self,
        request: Request,
        user: User,
        python: str,
        arguments: list[str],
        stdin: int,
        stdout: int,
        folder: str = "/",
    ) -> None:
        """Start it.

        Args:
            request: with variables, what a job's environment has besides.
            user: whom it runs as.
            python: path of the interpreter.
            arguments: what the interpreter is given.
            stdin: its standard input, as for ``subprocess.Popen``.
            stdout: its standard output, likewise.
            folder: its working directory.

        Raises:
            OSError: it cannot be run.
            Refusal: this agent cannot become the user.
        """
        prctl = ctypes.CDLL(None).prctl

        def prepare() -> None:
            user.become()
            prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG; become() resets it

        self._errors = os.memfd_create("errors")
        try:
            self.process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                [python, "-B", *arguments],
                cwd=folder,
                env=job_environment(user, python, request["variables"]),
                stdin=stdin,
                stdout=stdout,
                stderr=self._errors,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except OSError:
            os.close(self._errors)
            raise
        except subprocess.SubprocessError:  # all that is said of an exception in prepare()
            os.close(self._errors)
            raise Refusal(
                f"cannot run programs as {user.name}: it may not become that account; allow it there (in a container: "
                "CAP_SETUID and CAP_SETGID), or set job_user in the inventory to another"
            ) from None

    def wait(self, seconds: float) -> bool:
        """Return whether it ends within this time. It is not reaped, so that its id stays its own."""
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def end(self) -> tuple[int, str]:
        """Kill all that is left of it; return its exit code, negative a signal, and its last line of errors, or ""."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        tail = os.pread(self._errors, 4096, max(0, os.fstat(self._errors).st_size - 4096))
        os.close(self._errors)
        return code, last_line(tail.decode(errors="replace"), LONGEST_LINE)
