# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Fork the supervisor, a process that outlives the connection."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    log_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import write_holder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import run_command
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import NodeFacts, Plan

UNIT_SECONDS = 2
"""How long systemd may take to see that a unit has no process any more."""


def fork_supervisor(request: Request, user: User, listener: socket.socket | None, plan: Plan, facts: NodeFacts) -> None:
    """Leave a process behind that outlives the connection and waits for the start."""
    with user.acting():
        path = os.path.join(job_directory(request), "log")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with suppress(OSError):
        os.link(path, log_path(job_directory(request)))
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            stop_times: list[float] = []
            signal.signal(signal.SIGTERM, lambda *_signal: stop_times.append(time.monotonic()))
            # Not before the fork: what only the supervisor needs does not hold up the reply to the controller.
            from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.supervise import (
                supervise,
            )

            supervise(request, user, listener, plan, facts, stop_times)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)  # into the job's log
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(log)
    unit = job_unit(request)
    if unit:
        move_to_unit(unit, pid)
    # Until then this agent holds the node, and a second request ends it: it would undo what that one has made.
    write_holder(request, pid)


def move_to_unit(unit: str, pid: int) -> None:
    """Have systemd put a process into a unit of its own: its control group holds all of a job, so a stop ends it all.

    A scope, which takes a process that runs already; systemd-run would start one more interpreter per node.
    """
    properties = [
        *("PIDs", "au", "1", str(pid)),
        *("KillMode", "s", "control-group"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("TasksMax", "t", str(2**64 - 1)),  # data loader workers
    ]
    systemd = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    method = ["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "4", *properties, "0"]
    deadline = time.monotonic() + UNIT_SECONDS
    while True:
        code, output = run_command(["busctl", "--quiet", "call", *systemd, *method])
        if not code:
            return
        if "already" not in output or time.monotonic() > deadline:
            raise Refusal(f"could not make the job's unit {unit}: {output}")
        time.sleep(0.01)  # until that of an earlier preparation has gone
