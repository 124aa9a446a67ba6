# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Start the script when the start request arrives, wait for its end, and end all of its processes."""

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
from contextlib import suppress
from typing import Any, NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
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
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
    FileReadObserver,
    RendezvousObserver,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.watch_other_nodes import (
    Head,
    Peer,
    Watch,
)

WATCH_AFTER_SECONDS = 1
"""The watch is taken up this long after the script's start: right then the nodes are busy."""
NOTICE_SECONDS = 45
"""What a script was not seen to do for this long is reported, so that the user reads it within a minute."""
LONGEST_REASON = 300
"""Characters of a reason for a stop that are kept."""
STATE_BYTES = 4000
"""More than state.json ever has, whatever is escaped in it."""


class StartRequest(NamedTuple):
    """What a supervisor has to start; the fields of the JSON object in its start file.

    Attributes:
        argv: the command; a node replaces $NAME in all of it but the program.
        environment: the job's variables.
        spec: what spec.json is to say.
        rank: NODE_RANK.
        world_size: how many nodes take part.
        name: what messages call this node.
        head_name: what they call the head.
        launcher: what starts the script's processes, such as torchrun.
        gang: whether the nodes work together.
        resumes: whether the job goes on from a checkpoint.
        master_port: TCP port of the rendezvous.
        watch_address: where the head's supervisor listens for the others'.
        watch_port: at which port.
        watch_key: what proves that a supervisor belongs to the job, in hexadecimal digits.
        node_timeout_seconds: a node silent for this long is lost.
        grace_seconds: between TERM and KILL.
    """

    argv: list[str]
    environment: dict[str, str]
    spec: dict[str, Any]
    rank: int
    world_size: int
    name: str
    head_name: str
    launcher: str
    gang: bool
    resumes: bool
    master_port: int
    watch_address: str
    watch_port: int
    watch_key: str
    node_timeout_seconds: float
    grace_seconds: float


def supervise(request: Request, user: User, listener: socket.socket | None, stop_times: list[float]) -> None:
    """Run the script from its start request to its end.

    Args:
        request: the one that prepares the job.
        user: whom the job runs as.
        listener: the head's socket for the watch, else None.
        stop_times: when a stop was requested, on the monotonic clock; a handler of SIGTERM adds to them.
    """
    start_request = wait_for_start(request, stop_times)
    if start_request is None:
        return
    write_file(started_path(job_directory(request)), request["job"]["user"].encode(errors="replace"), 0o644)
    os.unlink(start_file_path(request))
    # Orphans of the job become children of this process (PR_SET_CHILD_SUBREAPER), so none escapes the final sweep.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    unit = job_unit(request)
    user.become()
    os.umask(0o022)
    Supervisor(job_directory(request), start_request, listener, stop_times).run(user, unit)


class Supervisor:
    """The parent of a job's processes on this node."""

    def __init__(
        self, job_dir: str, request: StartRequest, listener: socket.socket | None, stop_times: list[float]
    ) -> None:
        """Do nothing yet. ``stop_times`` are when a stop was requested, on the monotonic clock; more are added."""
        self._job_dir = job_dir
        self._request = request
        self._world_size = request.world_size  # 1 once the watch has failed
        self._listener = listener
        self._watch: Watch | None = None
        self._stop_times = stop_times
        self._observers: dict[
            str, FileReadObserver | RendezvousObserver
        ] = {}  # by the name in state.json of what is looked for
        self._state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "started": time.time()}

    def run(self, user: User, unit: str | None) -> None:
        """Start the script, wait for it, and write down how it ended."""
        killed_before = count_oom_kills()
        try:
            if unit:
                await_unit(unit)
            os.chdir(os.path.join(self._job_dir, "work"))
            for name, content in (
                ("node.env", environment_text(self._request.environment)),
                ("spec.json", json.dumps(self._request.spec) + "\n"),
                ("state.json", state_text(self._state)),
            ):
                write_file(os.path.join(self._job_dir, name), content.encode(errors="surrogateescape"), 0o600)
            environment = job_environment(user, self._request.argv[0], self._request.environment)
            argv = [argument.encode(errors="surrogateescape") for argument in self._request.argv]
            argv[1:] = [expand_variables(argument, environment) for argument in argv[1:]]
            if self._request.resumes:
                self._observe_checkpoint(environment[b"CKPT_PATH"])
            # Python ignores these two signals; a script expects the default.
            # pylint: disable-next=ansible-bad-function
            script = os.posix_spawn(argv[0], argv, environment, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
        except (OSError, ValueError, Refusal) as error:
            self._save(state="failed", ended=time.time(), error=f"did not start: {error_text(error)}")
            self._leave_watch(f"{self._request.name} did not start: {error_text(error)}")
            return
        try:
            self._run_to_end(script, time.monotonic(), killed_before)
        except BaseException:  # a defect: no script may be left that nobody looks after
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
            raise

    def _run_to_end(self, script: int, started: float, killed_before: int) -> None:
        """Wait for the script, tell the other nodes of its end, end what it left, and write down how it ended."""
        if self._request.gang and self._world_size > 1:
            self._observe_rendezvous(script)
        code = os.waitstatus_to_exitcode(self._wait_for_script(script, started))
        self._state["ended"] = time.time()
        self._state["oom"] = count_oom_kills() - killed_before
        state = "stopped" if "stopping" in self._state else "succeeded" if code == 0 else "failed"
        if state == "failed" and self._watch:  # at once: the others would wait for this rank
            self._watch.end(f"{self._request.name} {how_it_ended(code)}")
        end_leftover_processes()
        exit_code, number = (code, None) if code >= 0 else (128 - code, -code)
        self._save(state=state, exit_code=exit_code, signal=number, **self._observe(last=True))
        self._leave_watch(f"{self._request.name} {how_it_ended(code)}" if state == "failed" else None)

    def _observe_checkpoint(self, path: bytes) -> None:
        with suppress(OSError):  # then nothing is known of it
            self._observers["checkpoint_read"] = FileReadObserver(path)

    def _observe_rendezvous(self, script: int) -> None:
        request = self._request
        torchrun = request.launcher == "torchrun"
        self._observers["met"] = RendezvousObserver(
            request.master_port, request.rank == 0 and not torchrun, script if torchrun else None
        )

    def _observe(self, last: bool = False) -> dict[str, bool]:
        """Return what is new for state.json; what was not seen is new only at the end (``last``), or late."""
        late = last or time.time() - self._state["started"] > NOTICE_SECONDS
        news = {}
        for name, one in self._observers.items():
            one.update(last)
            if self._state.get(name) != one.seen and (one.seen or late):
                news[name] = one.seen
        return news

    def _wait_for_script(self, script: int, started: float) -> int:
        """Wait for the script and return its status; once it is to stop: TERM to all processes, the grace, KILL."""
        stopping = False
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of the job too
            if pid == script:
                return status
            if self._watch and self._watch.verdict is not None and not self._stop_times:
                self._stop_times.append(time.monotonic())
            if self._stop_times and not stopping:
                stopping = True
                self._state["stopping"] = time.monotonic() - started
                self._state["because"] = self._reason()
                signal_processes(descendants(os.getpid()), signal.SIGTERM)
                if self._watch:
                    self._watch.end(self._state["because"])
            elif self._stop_times and time.monotonic() - self._stop_times[0] > self._request.grace_seconds:
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
            if not self._watch and self._world_size > 1 and time.monotonic() - started > WATCH_AFTER_SECONDS:
                self._watch = self._open_watch()
            if pid:
                continue
            news = self._observe()
            if news:
                with suppress(OSError):  # a full disk: written at the end
                    self._save(**news)
            self._wait()

    def _wait(self) -> None:
        seconds = min([POLL_SECONDS, *(one.pause for one in self._observers.values())])
        if not self._watch:
            return time.sleep(seconds)
        try:
            self._watch.wait(seconds)
        except Exception as error:  # the script matters more than the watch
            sys.excepthook(type(error), error, error.__traceback__)  # into the job's log
            self._watch, self._world_size = None, 1
        return None

    def _reason(self) -> str:
        """Return why this node has to stop, by the watch or by the controller; "" for a stop on request."""
        if self._watch and self._watch.verdict is not None:
            return self._watch.verdict[:LONGEST_REASON]  # written by another node
        with suppress(OSError), open(reason_path(self._job_dir), errors="replace") as file:
            return file.read(LONGEST_REASON)
        return f"{self._request.name} was stopped by its own node, as at a shutdown"

    def _open_watch(self) -> Watch:
        request = self._request
        key = bytes.fromhex(request.watch_key)
        if request.rank == 0 and self._listener:
            return Head(self._listener, key, request.node_timeout_seconds, self._world_size)
        target = (request.watch_address, request.watch_port)
        return Peer(*target, key, request.node_timeout_seconds, request.rank, request.name, request.head_name)

    def _leave_watch(self, why: str | None) -> None:
        """Leave the watch; with a reason for all others to end, if this rank ended badly."""
        if self._world_size == 1:
            return
        self._watch = self._watch or self._open_watch()
        if why is not None:
            self._watch.end(why)
        self._watch.leave(lambda: bool(self._stop_times) and why is None)

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


def wait_for_start(request: Request, stop_times: list[float]) -> StartRequest | None:
    """Wait for the start request, and return it; None if the job is discarded, forgotten or stopped before."""
    while True:
        # Before the file is read: a stop that comes after the start request must not discard the job.
        has_to_stop = bool(stop_times)
        with suppress(FileNotFoundError), open(start_file_path(request), "rb") as start_file:
            header, _newline, message = start_file.read().partition(b"\n")
            # Less is what a connection that broke has left of it: no start.
            if header == b"%d %d" % (len(message), zlib.crc32(message)):
                return StartRequest(**json.loads(message))
        if has_to_stop:
            return None
        try:
            touched = os.stat(job_directory(request)).st_mtime  # when a checkpoint was put in place last, or at first
        except FileNotFoundError:
            return None
        if time.time() - touched > START_SECONDS:
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
        time.sleep(0.01)


def await_unit(unit: str) -> None:
    """Return when this process is in its unit: systemd takes it there some time after it was asked to."""
    deadline = time.monotonic() + 5
    while True:
        with open("/proc/self/cgroup") as file:
            if unit in file.read():
                return
        if time.monotonic() > deadline:
            raise Refusal(f"systemd did not put the job into its unit {unit} within 5 s")
        time.sleep(0.005)


def expand_variables(argument: bytes, variables: dict[bytes, bytes]) -> bytes:
    """Return an argument of a command with $NAME and ${NAME} replaced, and $$ by a dollar; any other dollar stays."""
    if b"$" not in argument:
        return argument

    def value(found: re.Match[bytes]) -> bytes:
        return b"$" if found[0] == b"$$" else variables.get(found[1] or found[2], found[0])

    return re.sub(rb"\$(?:\$|(\w+)|\{(\w+)\})", value, argument)


def end_leftover_processes() -> None:
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
            time.sleep(0.01)
