# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Start the script when the start message arrives, wait for its end, and end all of its processes."""

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
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    gang_state_path,
    job_directory,
    log_path,
    reason_path,
    start_file_path,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User, job_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import (
    descendants,
    how_it_ended,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    START_SECONDS,
    Request,
    node_name,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.drive_gang import Gang
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import (
    LONGEST_REASON,
    cut_reason,
)
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
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
    FileReadObserver,
    RendezvousObserver,
)

MOST_IDLE_SECONDS = 0.5
"""How long this process waits at most before it looks whether anything is due; what happens wakes it."""
HEAD_POLL_SECONDS = 0.01
"""How often the head looks for the file with the start message; the others, who mostly have the head's word, look every
POLL_SECONDS."""
SHUTDOWN_SECONDS = 0.2
"""How much later than the script this process may get the SIGTERM that a shutdown sends to both."""
NOTICE_SECONDS = 45
"""What a script was not seen to do for this long is reported, so that the user reads it within a minute."""
STATE_BYTES = 4000
"""More than state.json ever has, whatever is escaped in it."""


def supervise(
    request: Request,
    user: User,
    listener: socket.socket | None,
    to_inspector: socket.socket,
    plan: Plan,
    facts: NodeFacts,
    stop_times: list[float],
) -> None:
    """Run the script from its start to its end.

    Args:
        request: the one that prepares the job.
        user: whom the job runs as.
        listener: where the other nodes' supervisors find this one; None if there are none.
        to_inspector: the connection to the process that looks into the job's processes.
        plan: what to start.
        facts: what this node puts into it.
        stop_times: when a stop was requested, on the monotonic clock; a handler of SIGTERM adds to them.
    """
    gang = Gang(plan, listener, InspectorConnection(to_inspector), report_signals())
    members = wait_for_start(request, plan, gang, stop_times)
    if members is None:
        return
    write_file(started_path(job_directory(request)), request["job"]["user"].encode(errors="replace"), 0o644)
    with suppress(FileNotFoundError):  # where the head passed the start on
        os.unlink(start_file_path(request))
    Supervisor(plan, facts, members, gang, stop_times).run(user, job_unit(request))


class Supervisor:
    """The parent of a job's processes on this node."""

    def __init__(
        self, plan: Plan, facts: NodeFacts, members: list[Member], gang: Gang, stop_times: list[float]
    ) -> None:
        """Do nothing yet. ``stop_times`` are when a stop was requested, on the monotonic clock; more are added."""
        self._job_dir = facts.job_dir
        self._plan = plan
        self._command, self._variables, self._spec = fill_in(plan, facts, members)
        self._name = node_name(plan.rank, members[plan.rank].host)
        self._gang: Gang | None = gang  # None once it has failed
        self._summary: dict[str, Any] = {}  # what was written down of the gang
        self._found_at: dict[str, float] = {}  # when the head found out what its notices say, by the node's clock
        self._failure = ""  # why there is no gang any more
        self._stop_times = stop_times
        self._observers: dict[
            str, FileReadObserver | RendezvousObserver
        ] = {}  # by the name in state.json of what is looked for
        self._state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "started": time.time()}
        self._started_at = time.monotonic()  # the other clock may be set while the job runs

    def run(self, user: User, unit: str | None) -> None:
        """Start the script as a user, in a unit of systemd's if there is one, and write down how it ended."""
        killed_before = count_oom_kills()
        try:
            self._become_user(user, unit)
            os.chdir(os.path.join(self._job_dir, "work"))
            for name, content in (
                ("node.env", environment_text(self._variables)),
                ("spec.json", json.dumps(self._spec) + "\n"),
                ("state.json", state_text(self._state)),
            ):
                write_file(os.path.join(self._job_dir, name), content.encode(errors="surrogateescape"), 0o600)
            environment = job_environment(user, self._command[0], self._variables)
            argv = [one.encode(errors="surrogateescape") for one in self._command]
            for one in self._plan.arguments:
                argv.append(expand_variables(one.encode(errors="surrogateescape"), environment))
            if self._plan.checkpoint:
                self._observe_checkpoint(environment[b"CKPT_PATH"])
            # Python ignores these two signals; a script expects the default.
            # pylint: disable-next=ansible-bad-function
            script = os.posix_spawn(argv[0], argv, environment, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
        except (OSError, ValueError, Refusal) as error:
            self._note_gang(last=True)
            self._save(
                state="failed", ended=self._state["started"] + self._age(), error=f"did not start: {error_text(error)}"
            )
            self._leave_gang("failed", f"{self._name} did not start: {error_text(error)}")
            return
        try:
            self._run_to_end(script, killed_before)
        except BaseException:  # a defect: no script may be left that nobody looks after
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
            raise

    def _become_user(self, user: User, unit: str | None) -> None:
        """Turn into the job's user, whatever comes of waiting for the unit."""
        try:
            if unit:
                await_unit(unit, self._pause)
        finally:
            user.become()
            os.umask(0o022)
        # Orphans of the job become children of this process (PR_SET_CHILD_SUBREAPER), so none escapes the final sweep.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

    def _run_to_end(self, script: int, killed_before: int) -> None:
        """Wait for the script, tell the other nodes of its end, end what it left, and write down how it ended."""
        if self._plan.gang and self._plan.world_size > 1:
            self._observe_rendezvous(script)
        code = os.waitstatus_to_exitcode(self._wait_for_script(script))
        self._state["ended"] = self._state["started"] + self._age()
        self._state["oom"] = count_oom_kills() - killed_before
        state = "stopped" if "stopping" in self._state else "succeeded" if code == 0 else "failed"
        why = f"{self._name} {how_it_ended(code)}" if state == "failed" else ""
        if why and self._gang:  # at once: the others would wait for this rank
            self._gang.end(why)
            self._pause(0)
        self._note_gang(last=True)
        end_leftover_processes(self._pause)
        exit_code, number = (code, None) if code >= 0 else (128 - code, -code)
        self._save(state=state, exit_code=exit_code, signal=number, **self._observe(last=True))
        self._leave_gang(state, why)

    def _age(self) -> float:
        """Return for how many seconds the job has run here."""
        return time.monotonic() - self._started_at

    def _observe_checkpoint(self, path: bytes) -> None:
        with suppress(OSError):  # then nothing is known of it
            self._observers["checkpoint_read"] = FileReadObserver(path)

    def _observe_rendezvous(self, script: int) -> None:
        plan = self._plan
        torchrun = plan.launcher == "torchrun"
        self._observers["met"] = RendezvousObserver(
            plan.master_port, plan.rank == 0 and not torchrun, script if torchrun else None
        )

    def _observe(self, last: bool = False) -> dict[str, bool]:
        """Return what is new for state.json; what was not seen is new only at the end (``last``), or late."""
        late = last or self._age() > NOTICE_SECONDS
        news = {}
        for name, one in self._observers.items():
            one.update(last)
            if self._state.get(name) != one.seen and (one.seen or late):
                news[name] = one.seen
        if news and self._gang:
            self._gang.observed(news)
        return news

    def _wait_for_script(self, script: int) -> int:
        """Wait for the script and return its status; once it is to stop: TERM to all processes, the grace, KILL."""
        stopping = False
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of the job too
            if pid == script:
                if os.waitstatus_to_exitcode(status) == -signal.SIGTERM and not stopping:
                    self._pause(SHUTDOWN_SECONDS)
                    if self._stop_times:  # it was sent to both
                        self._begin_to_stop()
                return status
            if self._gang and self._gang.verdict is not None and not self._stop_times:
                self._stop_times.append(time.monotonic())
            if self._stop_times and not stopping:
                stopping = True
                self._begin_to_stop()
            elif self._stop_times and time.monotonic() - self._stop_times[0] > self._plan.grace_seconds:
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
            if pid:
                continue
            self._note_gang()
            news = self._observe()
            if news:
                with suppress(OSError):  # a full disk: written at the end
                    self._save(**news)
            self._wait()

    def _begin_to_stop(self) -> None:
        """Note why this node's part has to end, send TERM to all of its processes, and tell the gang."""
        self._state["stopping"] = self._age()
        self._state["because"] = self._reason()
        signal_processes(descendants(os.getpid()), signal.SIGTERM)
        if self._gang:
            self._gang.end(self._state["because"])

    def _wait(self) -> None:
        # Heartbeats are a fifth of the time-out apart.
        idle = min(MOST_IDLE_SECONDS, max(POLL_SECONDS, self._plan.node_timeout_seconds / 60))
        idle = POLL_SECONDS if self._stop_times or not self._gang else idle
        self._pause(min([idle, *(one.pause for one in self._observers.values())]))

    def _pause(self, seconds: float) -> None:
        """Wait for so long at most, or until a signal or a message comes, and listen to the gang meanwhile."""
        if not self._gang:
            return time.sleep(seconds)
        try:
            self._gang.printed(os.fstat(1).st_size)  # the log
            self._gang.wait(seconds)
        except Exception as error:
            self._end_without_gang(error)
        return None

    def _end_without_gang(self, error: Exception) -> None:
        """End this node's part, as the others do theirs, because this supervisor cannot take part in the gang."""
        sys.excepthook(type(error), error, error.__traceback__)  # into the job's log
        self._gang, self._failure = None, f"the supervisor of {self._name} failed: {error_text(error)}"
        self._stop_times.append(time.monotonic())

    def _note_gang(self, last: bool = False) -> None:
        """Write down, as the head, what is known of the gang; ``last``: it does not try any longer to reach a node."""
        if self._gang:
            summary = self._gang.summary()
        else:  # what was known stays, and nobody is tried any longer
            summary = {**self._summary, "unreached": self._summary.get("unreached") or []}
        if summary is None or self._plan.rank or (self._plan.world_size == 1 and not summary.get("notices")):
            return
        if self._gang:
            summary["unreached"] = self._gang.unreached(last)
            self._found_at = {one: self._found_at.get(one, time.time()) for one in summary["notices"]}
            summary["notices"] = [[at, one] for one, at in self._found_at.items()]
        if summary != self._summary:
            with suppress(OSError):
                write_file(gang_state_path(self._job_dir), json.dumps(summary).encode(), 0o600)
                self._summary = summary

    def _reason(self) -> str:
        """Return why this node has to stop, by the gang or by the controller; "" for a stop on request."""
        if self._gang and self._gang.verdict is not None:
            return self._gang.verdict
        if self._failure:
            return self._failure
        with suppress(OSError), open(reason_path(self._job_dir), errors="replace") as file:
            return cut_reason(file.read(LONGEST_REASON))
        return f"{self._name} was stopped by its own node, as at a shutdown"

    def _leave_gang(self, state: str, why: str) -> None:
        """Tell the gang how this rank has ended, and stay as long as the others need this supervisor."""
        if self._gang:
            self._gang.script_ended(state, why)
            try:
                self._gang.leave(self._reason_to_leave)
                self._note_gang(last=True)
            except Exception as error:
                self._end_without_gang(error)

    def _reason_to_leave(self) -> str | None:
        """Return why the job has to end while this supervisor waits for the others, if there is a reason."""
        self._note_gang(last=True)
        return self._reason() if self._stop_times else None

    def _save(self, **changes: Any) -> None:
        """Write state.json. Padded, so that the last state fits into the first one's place when the disk is full."""
        self._state.update(changes)
        data = state_text(self._state).encode()
        path = os.path.join(self._job_dir, "state.json")
        try:
            try:
                write_file(path, data, 0o600, durable="ended" in self._state)
            except OSError:
                make_room(path)
                write_file(path, data, 0o600, durable="ended" in self._state)
        except OSError:
            with open(path, "r+b") as file:
                file.write(data)


def report_signals() -> int:
    """Return a descriptor at which something arrives with every signal, also with that of a child's end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_signal: None)  # by default none is reported
    return reading


def make_room(path: str) -> None:
    """Have a file's folder be there and open, and no folder in the file's place; the job may do there as it likes."""
    folder = os.path.dirname(path)
    os.makedirs(folder, 0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.rename(path, f"{path}.{time.time()}")


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
                members = read_members(json.loads(message), plan.world_size)
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
        gang.wait(POLL_SECONDS if plan.rank else HEAD_POLL_SECONDS)


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


def expand_variables(argument: bytes, variables: dict[bytes, bytes]) -> bytes:
    """Return an argument of a command with $NAME and ${NAME} replaced, and $$ by a dollar; any other dollar stays."""
    if b"$" not in argument:
        return argument

    def value(found: re.Match[bytes]) -> bytes:
        return b"$" if found[0] == b"$$" else variables.get(found[1] or found[2], found[0])

    return re.sub(rb"\$(?:\$|(\w+)|\{(\w+)\})", value, argument)


def end_leftover_processes(pause: Callable[[float], None]) -> None:
    """End what the script left behind: TERM, a second to comply, KILL."""
    began = time.monotonic()
    signal_processes(descendants(os.getpid()), signal.SIGTERM)
    while time.monotonic() < began + 5:  # a setuid child may stay; the unit's control group holds it
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if time.monotonic() > began + 1:
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
        if not pid:
            pause(0.01)
