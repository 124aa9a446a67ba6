# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Fork the supervisor and its inspector, processes that outlive the connection."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    log_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import write_holder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import (
    descendants,
    run_command,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import NodeFacts, Plan

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.supervise import Supervisor

UNIT_SECONDS = 2
"""How long systemd may take to see that a unit has no process any more."""


def fork_supervisor(request: Request, user: User, listener: socket.socket | None, plan: Plan, facts: NodeFacts) -> None:
    """Leave a process behind that outlives the connection and waits for the start, and its inspector beside it."""
    with user.acting():
        path = os.path.join(job_directory(request), "log")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with suppress(OSError):
        os.link(path, log_path(job_directory(request)))
    to_inspector, to_supervisor = socket.socketpair()

    def be_supervisor() -> None:
        to_supervisor.close()
        stop_times: list[float] = []
        signal.signal(signal.SIGTERM, lambda *_signal: stop_times.append(time.monotonic()))
        # Not before the fork: what only the supervisor needs does not hold up the reply to the controller.
        from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.start_script import (
            start_when_told,
        )

        if plan.rank == 0:  # the others are started by it, and would wait for the import
            import_supervisor()
        start = start_when_told(request, user, listener, to_inspector, plan, facts, stop_times)
        if start:
            gc.enable()
            try:
                import_supervisor()(plan, facts.job_dir, stop_times, start).run()
            except BaseException:  # a defect: no script may be left that nobody looks after
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
                raise

    def be_inspector() -> None:
        for descriptor in map(int, os.listdir("/proc/self/fd")):  # above all, where the gang finds this node
            if descriptor not in (0, 1, 2, to_supervisor.fileno()):
                with suppress(OSError):
                    os.close(descriptor)
        if not to_supervisor.recv(1, socket.MSG_PEEK):
            return
        gc.enable()
        # Not before there is a task: few jobs give one.
        from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector import (
            Subject,
            serve,
        )

        serve(to_supervisor, Subject(request["job"]["id"], request["directory"], user, pids[0], plan, facts))

    pids = [fork_daemon(log, be_supervisor)]
    # No child of the supervisor, so none of the job's processes. Without one the job runs, and cannot be looked into.
    with suppress(OSError):
        pids.append(fork_daemon(log, be_inspector))
    os.close(log)
    to_inspector.close()
    to_supervisor.close()
    unit = job_unit(request)
    if unit:
        move_to_unit(unit, pids)
    # Until then this agent holds the node, and a second request ends it: it would undo what that one has made.
    write_holder(request, pids[0])


def import_supervisor() -> type[Supervisor]:
    """Return what looks after a script that runs: where nothing waits for the import, it comes after the start."""
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.supervise import Supervisor

    return Supervisor


def fork_daemon(log: int, work: Callable[[], None]) -> int:
    """Fork a process that outlives the connection, writes to the log, and ends after its work; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        work()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)  # into the job's log
    finally:
        sys.stderr.flush()
        os._exit(0)


def move_to_unit(unit: str, pids: list[int]) -> None:
    """Have systemd put processes into a unit of their own: its control group holds all of a job, so a stop ends it all.

    A scope, which takes processes that run already; systemd-run would start one more interpreter per node.
    """
    properties = [
        *("PIDs", "au", str(len(pids)), *map(str, pids)),
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
