# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The one process that stays: it starts the script, waits for its end, and leaves none behind."""

from __future__ import annotations

import _signal as signal  # what the module signal wraps; its enumerations take longer than a process takes to spawn
import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    POLL_SECONDS,
    gate_path,
    job_directory,
    log_path,
    reason_path,
    started_path,
    unit_name,
    write_file,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import User, has_systemd
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import (
    descendants,
    how_it_ended,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, said, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from _socket import socket as Socket
    from typing import Any

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.noticing import Opened, Rendezvous
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Request
    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.watching import Watch

GATE_SECONDS = 300
"""A prepared job that nobody starts or discards is given up after this long: its controller has vanished."""
WATCH_AFTER_SECONDS = 1
"""The watch is taken up this long after the script's start: right then the nodes are busy."""
NOTICE_SECONDS = 45
"""What a script was not seen to do for this long is said: within a minute, for some seconds pass until it is heard."""
LONGEST_REASON = 300
"""Characters of a reason for a stop that are kept."""
STATE_BYTES = 4000
"""More than state.json ever has, whatever is escaped in it."""


class Order:
    """What the gate file says: fields that end with a null byte, in the order of ``launch.py``'s ``_order``."""

    def __init__(self, fields: bytes) -> None:
        """Read the fields."""
        head, self.node_env, self.spec, count, *words = fields.split(b"\0")[:-1]
        settings = dict(line.split("=", 1) for line in head.decode().split("\n"))
        self.grace_seconds = float(settings["grace_seconds"])
        self.node_timeout_seconds = float(settings["node_timeout_seconds"])
        self.rank, self.world_size = int(settings["rank"]), int(settings["world_size"])
        self.name, self.head_name = settings["name"], settings["head_name"]
        self.watch_address, self.watch_port = settings["watch_address"], int(settings["watch_port"])
        self.watch_key = bytes.fromhex(settings["watch_key"])
        self.master_port, self.launcher = int(settings["master_port"]), settings["launcher"]
        self.gang, self.resumes = settings["gang"] == "True", settings["resumes"] == "True"
        self.argv, self.variables = words[: int(count)], words[int(count) :]


def supervise(request: Request, user: User, listener: Socket | None) -> None:
    """Start the script when told, see it out, and leave nothing behind. ``listener`` is the head's, for the watch."""
    import ctypes

    told: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_signal: told.append(time.monotonic()))
    order = wait_at_gate(request, told)
    if order is None:
        return
    write_file(started_path(job_directory(request)), request["job"]["user"].encode(errors="replace"), 0o644)
    os.unlink(gate_path(request))
    # Orphans of the job become children of this process (PR_SET_CHILD_SUBREAPER), so none escapes the final sweep.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    unit = unit_name(request) if os.geteuid() == 0 and has_systemd() else None
    user.become()
    os.umask(0o022)
    Supervisor(job_directory(request), order, listener, told).run(user, unit)


class Supervisor:
    """The parent of a job's processes on this node."""

    def __init__(self, job_dir: str, order: Order, listener: Socket | None, told: list[float]) -> None:
        """Do nothing yet. ``told`` is when this process was told to stop, on the monotonic clock; more are added."""
        self._job_dir = job_dir
        self._order = order
        self._listener = listener
        self._watch: Watch | None = None
        self._told = told
        self._noticing: dict[str, Opened | Rendezvous] = {}  # by the name in state.json of what is looked for
        self._state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "started": time.time()}

    def run(self, user: User, unit: str | None) -> None:
        """Start the script, wait for it, and say how it ended."""
        killed_before = killed_for_memory()
        try:
            if unit:
                await_unit(unit)
            os.chdir(os.path.join(self._job_dir, "work"))
            for name, content in (
                ("node.env", self._order.node_env),
                ("spec.json", self._order.spec),
                ("state.json", first_state(self._state)),
            ):
                write_file(os.path.join(self._job_dir, name), content, 0o600)
            argv = self._order.argv
            environment = job_environment(user, argv[0], self._order.variables)
            argv[1:] = [expanded(word, environment) for word in argv[1:]]
            if self._order.resumes:
                self._notice_reading(environment[b"CKPT_PATH"])
            # Python ignores these two signals; a script expects the default.
            # pylint: disable-next=ansible-bad-function
            script = os.posix_spawn(argv[0], argv, environment, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
        except (OSError, Refusal) as error:
            self._save(state="failed", ended=time.time(), error=f"did not start: {said(error)}")
            self._part(f"{self._order.name} did not start: {said(error)}")
            return
        try:
            self._see_through(script, time.monotonic(), killed_before)
        except BaseException:  # a defect: no script may be left that nobody looks after
            signal_processes(descendants(os.getpid()), signal.SIGKILL)
            raise

    def _see_through(self, script: int, started: float, killed_before: int) -> None:
        """Wait for the script, tell the others, leave nothing behind, and say how it ended."""
        if self._order.gang and self._order.world_size > 1:
            self._notice_meeting(script)
        code = os.waitstatus_to_exitcode(self._see_out(script, started))
        self._state["ended"] = time.time()
        self._state["oom"] = killed_for_memory() - killed_before
        state = "stopped" if "stopping" in self._state else "succeeded" if code == 0 else "failed"
        if state == "failed" and self._watch:  # at once: the others wait for this rank in vain
            self._watch.end(f"{self._order.name} {how_it_ended(code)}")
        sweep()
        exit_code, number = (code, None) if code >= 0 else (128 - code, -code)
        self._save(state=state, exit_code=exit_code, signal=number, **self._noticed(last=True))
        self._part(f"{self._order.name} {how_it_ended(code)}" if state == "failed" else None)

    def _notice_reading(self, path: bytes) -> None:
        from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.noticing import Opened

        with suppress(OSError):  # then nothing is known of it
            self._noticing["checkpoint_read"] = Opened(path)

    def _notice_meeting(self, script: int) -> None:
        from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.noticing import Rendezvous

        order = self._order
        torchrun = order.launcher == "torchrun"
        self._noticing["met"] = Rendezvous(
            order.master_port, order.rank == 0 and not torchrun, script if torchrun else None
        )

    def _noticed(self, last: bool = False) -> dict[str, bool]:
        """Look, and return what is new for state.json; what was not seen is new only at the end (``last``), or late."""
        late = last or time.time() - self._state["started"] > NOTICE_SECONDS
        news = {}
        for name, one in self._noticing.items():
            one.look(last)
            if self._state.get(name) != one.seen and (one.seen or late):
                news[name] = one.seen
        return news

    def _see_out(self, script: int, started: float) -> int:
        """Wait for the script and return its status; once it is to stop: TERM to all processes, the grace, KILL."""
        stopping = False
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of the job too
            if pid == script:
                return status
            if self._watch and self._watch.verdict is not None and not self._told:
                self._told.append(time.monotonic())
            if self._told and not stopping:
                stopping = True
                self._state["stopping"] = time.monotonic() - started
                self._state["because"] = self._reason()
                signal_processes(descendants(os.getpid()), signal.SIGTERM)
                if self._watch:
                    self._watch.end(self._state["because"])
            elif self._told and time.monotonic() - self._told[0] > self._order.grace_seconds:
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
            if not self._watch and self._order.world_size > 1 and time.monotonic() - started > WATCH_AFTER_SECONDS:
                self._watch = self._open_watch()
            if pid:
                continue
            news = self._noticed()
            if news:
                with suppress(OSError):  # a full disk: said at the end
                    self._save(**news)
            self._wait()

    def _wait(self) -> None:
        seconds = min([POLL_SECONDS, *(one.pause for one in self._noticing.values())])
        if not self._watch:
            return time.sleep(seconds)
        try:
            self._watch.wait(seconds)
        except Exception:  # the script matters more than the watch
            import traceback

            traceback.print_exc()  # into the job's log
            self._watch, self._order.world_size = None, 1
        return None

    def _reason(self) -> str:
        """Why this node is told to stop: the watch's word, or the controller's; "" for a stop on request."""
        if self._watch and self._watch.verdict is not None:
            return self._watch.verdict[:LONGEST_REASON]  # another node's words
        with suppress(OSError), open(reason_path(self._job_dir), errors="replace") as file:
            return file.read(LONGEST_REASON)
        return f"{self._order.name} was told to stop by its own node, as at a shutdown"

    def _open_watch(self) -> Watch:
        from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.watching import Head, Peer

        order = self._order
        if order.rank == 0 and self._listener:
            return Head(self._listener, order.watch_key, order.node_timeout_seconds, order.world_size)
        target = (order.watch_address, order.watch_port)
        return Peer(*target, order.watch_key, order.node_timeout_seconds, order.rank, order.name, order.head_name)

    def _part(self, why: str | None) -> None:
        """Leave the watch; with a reason for all others to end, if this rank ended badly."""
        if self._order.world_size == 1:
            return
        self._watch = self._watch or self._open_watch()
        if why is not None:
            self._watch.end(why)
        self._watch.leave(lambda: bool(self._told) and why is None)

    def _save(self, **changes: Any) -> None:
        """Write state.json. Padded, so that the last word fits into the first one's place when the disk is full."""
        import json

        self._state.update(changes)
        data = json.dumps(self._state).ljust(STATE_BYTES).encode() + b"\n"
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


def first_state(state: dict[str, Any]) -> bytes:
    """Return the first state.json, padded. Written before the start, on which json need not be waited for."""
    return ascii(state).replace("'", '"').ljust(STATE_BYTES).encode() + b"\n"


def killed_for_memory() -> int:
    """Return how many processes this machine's kernel has killed for want of memory, in a control group or at large."""
    with suppress(OSError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def wait_at_gate(request: Request, told: list[float]) -> Order | None:
    """Wait until the job is started, and return the order; None if it is discarded, forgotten or told to stop."""
    import zlib  # hashlib would take each node 3 ms, between the word and the start

    while True:
        was_told = bool(told)  # before the look: whoever stops a started job has seen the word to start
        with suppress(FileNotFoundError), open(gate_path(request), "rb") as gate:
            seal, _newline, fields = gate.read().partition(b"\n")
            # Less is what a connection that broke has left of it: no start.
            if seal == b"%d %d" % (len(fields), zlib.crc32(fields)):
                return Order(fields)
        if was_told:
            return None
        try:
            touched = os.stat(job_directory(request)).st_mtime  # when a checkpoint was put in place last, or at first
        except FileNotFoundError:
            return None
        if time.time() - touched > GATE_SECONDS:
            import shutil

            for path in (log_path(job_directory(request)), gate_path(request), gate_path(request) + ".part"):
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


def job_environment(user: User, python: bytes, variables: list[bytes]) -> dict[bytes, bytes]:
    """Return all that a job's environment holds: nothing of the login's or the agent's own comes along."""
    environment = {
        b"HOME": os.fsencode(user.home),
        b"USER": user.name.encode(),
        b"LOGNAME": user.name.encode(),
        b"SHELL": b"/bin/sh",
        b"LANG": b"C.UTF-8",
        b"PATH": os.path.dirname(python) + b":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"PYTHONUNBUFFERED": b"1",
    }
    for variable in variables:
        name, _equals, value = variable.partition(b"=")
        environment[name] = value
    return environment


def expanded(word: bytes, variables: dict[bytes, bytes]) -> bytes:
    """Return a word of a command with $NAME and ${NAME} replaced, and $$ by a dollar; any other dollar stays."""
    if b"$" not in word:
        return word
    import re  # which takes 10 ms, and most jobs' words have no dollar

    def value(found: re.Match[bytes]) -> bytes:
        return b"$" if found[0] == b"$$" else variables.get(found[1] or found[2], found[0])

    return re.sub(rb"\$(?:\$|(\w+)|\{(\w+)\})", value, word)


def sweep() -> None:
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
