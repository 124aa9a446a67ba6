# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Wait for the start message, and start the script as the job's user."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    log_path,
    start_file_path,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User, job_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import SPARE, START_SECONDS, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_sockets import Gang
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_connection import (
    InspectorConnection,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import (
    Member,
    NodeFacts,
    Plan,
    fill_in,
    read_members,
)

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
        FileReadObserver,
    )

HEAD_POLL_SECONDS = 0.01
"""How often the head looks for the file with the start message."""
MEMBER_POLL_SECONDS = 0.15
"""How often the others do, for whom it is there only if the head could not connect to them; less than the time that
``lock_node`` gives a supervisor to see that its job was discarded."""
STATE_BYTES = 4000
"""More than state.json ever has, whatever is escaped in it."""


class Attempt(NamedTuple):
    """How a script was started.

    Attributes:
        script: the id of its process; None if it was not started.
        error: why it could not be; "" on a spare, which starts none.
        moment: when, on the monotonic clock: the other one may be set while the job runs.
        oom_kills: what ``count_oom_kills`` returned before the start.
        checkpoint: observes whether the checkpoint is read, if there is one.
    """

    script: int | None
    error: str
    moment: float
    oom_kills: int
    checkpoint: FileReadObserver | None


class Start(NamedTuple):
    """How a job has begun on this node.

    Attributes:
        user: whom it runs as.
        facts: what this node puts into its plan.
        gang: this node's part of it.
        members: the job's nodes.
        state: what state.json says at first.
        attempt: the first.
    """

    user: User
    facts: NodeFacts
    gang: Gang
    members: list[Member]
    state: dict[str, Any]
    attempt: Attempt


def start_when_told(
    request: Request,
    user: User,
    listener: socket.socket | None,
    to_inspector: socket.socket,
    plan: Plan,
    facts: NodeFacts,
    stop_times: list[float],
) -> Start | None:
    """Wait for the start message, and start the script.

    Args:
        request: the one that prepares the job.
        user: whom the job runs as.
        listener: where the other nodes' supervisors find this one; None if there are none.
        to_inspector: the connection to the process that looks into the job's processes.
        plan: what to start.
        facts: what this node puts into it.
        stop_times: when a stop was requested, on the monotonic clock; a handler of SIGTERM adds to them.

    Returns:
        None if the job is discarded, forgotten or stopped before.
    """
    gang = Gang(plan, listener, InspectorConnection(to_inspector), report_signals())
    members = wait_for_start(request, plan, gang, stop_times)
    if members is None:
        return None
    write_file(started_path(job_directory(request)), request["job"]["user"].encode(errors="replace"), 0o644)
    with suppress(FileNotFoundError):  # where the head passed the start on
        os.unlink(start_file_path(request))
    return start_script(plan, facts, gang, members, user, job_unit(request))


def wait_for_start(request: Request, plan: Plan, gang: Gang, stop_times: list[float]) -> list[Member] | None:
    """Wait for the start message, in a file or from the head's supervisor, and return who takes part.

    Returns:
        None if the job is discarded, forgotten or stopped before.
    """
    touched = noticed = 0.0  # the folder's time, by the node's clock; when that was seen, by the monotonic one
    while True:
        # Before it is looked for: a stop that comes after it must not discard the job.
        has_to_stop = bool(stop_times)
        with suppress(FileNotFoundError), open(start_file_path(request), "rb") as start_file:
            header, _newline, message = start_file.read().partition(b"\n")
            # Less is what a connection that broke has left of it: no start.
            if header == b"%d %d" % (len(message), zlib.crc32(message)):
                members = read_members(json.loads(message), plan.node_count)
                if members:
                    gang.start(members)
                return members
        if gang.members and os.path.isdir(job_directory(request)):  # else it was discarded at this moment
            return gang.members
        if has_to_stop:
            return None
        try:
            changed = os.stat(job_directory(request)).st_mtime  # when a checkpoint was put in place last, or at first
        except FileNotFoundError:
            return None
        if changed != touched:
            touched, noticed = changed, time.monotonic()
        if time.monotonic() - noticed > START_SECONDS:
            import shutil

            for path in (
                log_path(job_directory(request)),
                start_file_path(request),
                start_file_path(request) + ".part",
            ):
                with suppress(OSError):
                    os.unlink(path)
            shutil.rmtree(job_directory(request), ignore_errors=True)
            return None
        gang.wait(MEMBER_POLL_SECONDS if plan.rank else HEAD_POLL_SECONDS)


def start_script(
    plan: Plan, facts: NodeFacts, gang: Gang, members: list[Member], user: User, unit: str | None
) -> Start:
    """Start the script as a user, in a unit of systemd's if there is one."""
    state = {"state": SPARE if gang.is_spare else "running", "pid": os.getpid(), "started": time.time()}

    def become_ready() -> None:
        become_user(user, unit, gang.wait)
        os.chdir(os.path.join(facts.job_dir, "work"))

    attempt = start_attempt(plan, facts, members, gang.roster, user, become_ready, state)
    return Start(user, facts, gang, members, state, attempt)


def start_attempt(
    plan: Plan,
    facts: NodeFacts,
    members: list[Member],
    roster: list[int],
    user: User,
    become_ready: Callable[[], None] = lambda: None,
    state: dict[str, Any] | None = None,
    number: int = 1,
    checkpoint: str = "",
) -> Attempt:
    """Start the script, in a process that has become the user and works in the job's working directory.

    A spare starts none, and waits in such a process.

    Args:
        plan: what to start.
        facts: what this node puts into it.
        members: the job's nodes.
        roster: the place of each node that takes part, in the order of NODE_RANK.
        user: whose environment the script gets.
        become_ready: is called first; what it raises is why the script could not be started.
        state: what state.json says at first; None where it is there already.
        number: of the attempt.
        checkpoint: that a later attempt goes on from, relative to the working directory; "" for what the plan says.
    """
    command, variables, spec = fill_in(plan, facts, members, roster, number, checkpoint)
    script, problem, observer = None, "", None
    moment, oom_kills = time.monotonic(), count_oom_kills()
    try:
        become_ready()
        files = {"node.env": environment_text(variables), "spec.json": json.dumps(spec) + "\n"}
        if state:
            files["state.json"] = state_text(state)
        for name, content in files.items():
            write_file(os.path.join(facts.job_dir, name), content.encode(errors="surrogateescape"), 0o600)
        if plan.rank not in roster:
            return Attempt(None, "", moment, oom_kills, None)
        environment = job_environment(user, command[0], variables)
        argv = [one.encode(errors="surrogateescape") for one in command]
        for one in plan.arguments:
            argv.append(expand_variables(one.encode(errors="surrogateescape"), environment))
        if b"CKPT_PATH" in environment and "CKPT_PATH" not in plan.given:
            observer = observe_checkpoint(environment[b"CKPT_PATH"])
        # Python ignores these two signals; a script expects the default.
        # pylint: disable-next=ansible-bad-function
        script = os.posix_spawn(argv[0], argv, environment, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    except (OSError, ValueError, Refusal) as error:
        problem = error_text(error)
    except Exception as error:  # a defect
        sys.excepthook(type(error), error, error.__traceback__)  # into the job's log
        problem = repr(error)
    return Attempt(script, problem, moment, oom_kills, observer)


def become_user(user: User, unit: str | None, pause: Callable[[float], None]) -> None:
    """Turn into the job's user, whatever comes of waiting for the unit."""
    try:
        if unit:
            await_unit(unit, pause)
    finally:
        user.become()
        os.umask(0o022)
    # Orphans of the job become children of this process (PR_SET_CHILD_SUBREAPER), so none escapes the final sweep.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def await_unit(unit: str, pause: Callable[[float], None]) -> None:
    """Return when this process is in its unit: systemd takes it there some time after it was asked to."""
    deadline = time.monotonic() + 5
    while True:
        with open("/proc/self/cgroup") as file:
            if unit in file.read():
                return
        if time.monotonic() > deadline:
            raise Refusal(f"systemd did not put the job into its unit {unit} within 5 s")
        pause(0.005)


def observe_checkpoint(path: bytes) -> FileReadObserver | None:
    """Observe whether the script reads its checkpoint; None where this machine does not say."""
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
        FileReadObserver,
    )

    try:
        return FileReadObserver(path)
    except OSError:
        return None


def expand_variables(argument: bytes, variables: dict[bytes, bytes]) -> bytes:
    """Return an argument of a command with $NAME and ${NAME} replaced, and $$ by a dollar; any other dollar stays."""
    if b"$" not in argument:
        return argument

    def value(found: re.Match[bytes]) -> bytes:
        return b"$" if found[0] == b"$$" else variables.get(found[1] or found[2], found[0])

    return re.sub(rb"\$(?:\$|(\w+)|\{(\w+)\})", value, argument)


def report_signals() -> int:
    """Return a descriptor at which something arrives with every signal, also with that of a child's end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_signal: None)  # by default none is reported
    return reading


def state_text(state: dict[str, Any]) -> str:
    """Return what state.json holds, as long as it ever is."""
    return json.dumps(state).ljust(STATE_BYTES) + "\n"


def count_oom_kills() -> int:
    """Return how many processes this machine's kernel has killed because memory ran out, in any control group."""
    with suppress(OSError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
