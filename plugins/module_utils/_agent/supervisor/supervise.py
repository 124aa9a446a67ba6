# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Wait for the end of the script, end all of its processes, and write down how it ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_end, write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    gang_state_path,
    reason_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import POLL_SECONDS
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import (
    descendants,
    how_it_ended,
    signal_processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    ATTEMPT_BEGINS,
    SPARE,
    UNUSED,
    node_name,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import (
    LONGEST_REASON,
    cut_reason,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_sockets import Gang
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Plan
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.observe_script import (
    FileReadObserver,
    RendezvousObserver,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.start_script import (
    Start,
    count_oom_kills,
    start_attempt,
    state_text,
)

MOST_IDLE_SECONDS = 0.5
"""How long this process waits at most before it looks whether anything is due; what happens wakes it."""
SHUTDOWN_SECONDS = 0.2
"""How much later than the script this process may get the SIGTERM that a shutdown sends to both."""
NOTICE_SECONDS = 45
"""What a script was not seen to do for this long is reported, so that the user reads it within a minute."""
LOG_BYTES = 2**16
"""How much of the end of the log is read."""


class Supervisor:
    """The parent of a job's processes on this node."""

    def __init__(self, plan: Plan, job_dir: str, stop_times: list[float], start: Start) -> None:
        """Do nothing yet. ``stop_times`` are when a stop was requested, on the monotonic clock; more are added."""
        self._job_dir = job_dir
        self._plan = plan
        self._name = start.gang.name
        self._gang: Gang | None = start.gang  # None once it has failed
        self._summary: dict[str, Any] = {}  # what was written down of the gang
        self._found_at: dict[str, float] = {}  # when the head found out what its notices say, by the node's clock
        self._failure = ""  # why there is no gang any more
        self._stop_times = stop_times
        # By the name in state.json of what is looked for.
        self._observers: dict[str, FileReadObserver | RendezvousObserver] = {}
        self._start = start
        self._attempt = start.attempt
        self._orphan_was_killed = False  # in this attempt: a process that the script had started, and not by us
        self._has_killed = False  # this supervisor, in this attempt
        self._log_before = 0  # bytes that the attempts before have printed
        self._state = start.state

    def run(self) -> None:
        """Wait for the script's end, start it again as often as the gang says, and write down how the job ended."""
        while True:
            outcome, why, has_fault = self._await_end()
            if not self._plan.retries:  # nothing can follow, whatever the others say
                self._save(**outcome)
            if not self._start_next_attempt(outcome["state"], why, has_fault):
                break
        if self._plan.retries:
            if outcome["state"] == SPARE:
                outcome = {"state": UNUSED, "ended": self._now()}
            self._save(**outcome)

    def _await_end(self) -> tuple[dict[str, Any], str, bool]:
        """Wait for the end of an attempt here, tell the other nodes, and end what it left.

        Returns:
            How it ended, for state.json; if it failed, why, a clause; whether the job may be tried again because of it.
        """
        if self._attempt.script is None:
            if not self._attempt.error:
                return {"state": SPARE}, "", False
            error = f"did not start: {self._attempt.error}"
            self._note_gang(last=True)
            return {"state": "failed", "ended": self._now(), "error": error}, f"{self._name} {error}", False
        self._observe_script(self._attempt.script)
        code = os.waitstatus_to_exitcode(self._wait_for_script(self._attempt.script))
        ended, oom = self._now(), count_oom_kills() - self._attempt.oom_kills
        state = "stopped" if "stopping" in self._state else "succeeded" if code == 0 else "failed"
        why = f"{self._name} {how_it_ended(code)}" if state == "failed" else ""
        if why and self._gang:  # at once: the others would wait for this rank
            self._gang.end(why)
            self._pause(0)
        self._note_gang(last=True)
        if not self._end_leftover_processes() and self._gang:
            self._gang.call_off(f"a process of {self._name} could not be ended")
        exit_code, number = (code, None) if code >= 0 else (128 - code, -code)
        outcome = {"state": state, "ended": ended, "oom": oom, "exit_code": exit_code, "signal": number}
        has_fault = self._plan.retries > 0 and (self._is_going_down() or self._is_fault(state, code))
        return {**outcome, **self._observe(last=True)}, why, has_fault

    def _is_fault(self, state: str, code: int) -> bool:
        """Return whether the job may be tried again, as far as that depends on how this rank has ended."""
        if state != "failed" or self._orphan_was_killed:
            return state != "succeeded" and self._orphan_was_killed
        from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.judge_ending import (
            fails_again,
            was_killed,
        )

        log = b""
        with suppress(OSError):
            printed = os.fstat(1).st_size - self._log_before  # in this attempt
            log = read_end(os.path.join(self._job_dir, "log"), max(0, min(LOG_BYTES, printed)))
        return was_killed(code, log) or (self._plan.retries_any and not fails_again(code, log))

    def _is_going_down(self) -> bool:
        """Return whether this machine shuts down, and not the head's: a spare may take its place, or is one less."""
        is_stopped = bool(self._stop_times) and not self._failure and not os.path.exists(reason_path(self._job_dir))
        return self._plan.spares > 0 and self._plan.rank > 0 and is_stopped

    def _start_next_attempt(self, state: str, why: str, has_fault: bool) -> bool:
        """Stay as long as the others need this supervisor; start the script again if another attempt begins."""
        if self._gang and self._gang.is_spare and state == "failed":  # it could not even wait
            self._gang.withdraw()
        if not self._stay_in_gang(state, why, has_fault) or not self._gang:
            return False
        for name in ("stopping", "because", *self._observers):
            self._state.pop(name, None)
        if self._attempt.checkpoint:
            self._attempt.checkpoint.close()
        number, checkpoint, start = self._gang.attempt, self._gang.checkpoint, self._start
        roster, members, is_spare = self._gang.roster, self._start.members, self._gang.is_spare
        self._name = self._gang.name
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        following = f"goes on from {checkpoint}" if checkpoint else "starts as the first did"
        replacements = [f"with {node_name(rank, members[one].host)}" for rank, one in enumerate(roster) if one != rank]
        about = ", ".join([following, *replacements, *(["without this node"] if is_spare else []), begun])
        with suppress(OSError):  # a full disk
            os.write(1, f"{ATTEMPT_BEGINS} {number} {about}\n".encode(errors="surrogateescape"))
        self._log_before = os.fstat(1).st_size
        self._attempt = start_attempt(
            self._plan, start.facts, members, roster, start.user, number=number, checkpoint=checkpoint
        )
        state = SPARE if is_spare else "running"
        if state != self._state["state"]:
            with suppress(OSError):
                self._save(state=state)
        return True

    def _now(self) -> float:
        """Return the time, seconds since 1970, by the clock as it was when the job began here."""
        return float(self._state["started"]) + time.monotonic() - self._start.attempt.moment

    def _observe_script(self, script: int) -> None:
        """Begin to observe an attempt's script."""
        self._observers = {}
        self._orphan_was_killed = self._has_killed = False
        if self._attempt.checkpoint:
            self._observers["checkpoint_read"] = self._attempt.checkpoint
        if self._plan.gang and self._plan.world_size > 1:
            self._observe_rendezvous(script)

    def _observe_rendezvous(self, script: int) -> None:
        plan = self._plan
        torchrun = plan.launcher == "torchrun"
        self._observers["met"] = RendezvousObserver(
            plan.master_port, plan.rank == 0 and not torchrun, script if torchrun else None
        )

    def _observe(self, last: bool = False) -> dict[str, bool | None]:
        """Return what is new for state.json; what was not seen, or is not known, only at the end (``last``) or late."""
        late = last or time.monotonic() - self._attempt.moment > NOTICE_SECONDS
        news: dict[str, bool | None] = {}
        for name, one in self._observers.items():
            one.update(last)
            if self._state.get(name, "") != one.seen and (one.seen or late):
                news[name] = one.seen
        if news and self._gang:
            self._gang.observed(news)
        return news

    def _wait_for_script(self, script: int) -> int:
        """Wait for the script and return its status; once it is to stop: TERM to all processes, the grace, KILL."""
        since: float | None = None  # when it was to stop
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)  # orphans of the job too
            if pid and pid != script:
                self._note_orphan(status)
            if pid == script:
                if os.waitstatus_to_exitcode(status) == -signal.SIGTERM and since is None:
                    self._pause(SHUTDOWN_SECONDS)
                    if self._stop_times:  # it was sent to both
                        self._begin_to_stop()
                return status
            has_to_stop = self._stop_times or (self._gang and self._gang.verdict is not None)
            if has_to_stop and since is None:
                since = time.monotonic()
                self._begin_to_stop()
            elif since is not None and time.monotonic() - since > self._plan.grace_seconds:
                self._has_killed = True
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
            if pid:
                continue
            self._note_gang()
            news = self._observe()
            if news:
                with suppress(OSError):  # a full disk: written at the end
                    self._save(**news)
            self._wait(since is not None)

    def _note_orphan(self, status: int) -> None:
        """Take note of how a process ended that the script had started and left behind.

        So it is seen that a local rank was killed where the script's own process then fails by itself.
        """
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL and not self._has_killed:
            self._orphan_was_killed = True

    def _end_leftover_processes(self) -> bool:
        """End what the script left behind: TERM, a second to comply, KILL; return whether all of it has ended."""
        began = time.monotonic()
        signal_processes(descendants(os.getpid()), signal.SIGTERM)
        while time.monotonic() < began + 5:  # a setuid child may stay; the unit's control group holds it
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid:
                self._note_orphan(status)
            if time.monotonic() > began + 1:
                self._has_killed = True
                signal_processes(descendants(os.getpid()), signal.SIGKILL)
            if not pid:
                self._pause(0.01)
        return False

    def _begin_to_stop(self) -> None:
        """Note why this node's part has to end, send TERM to all of its processes, and tell the gang."""
        self._state["stopping"] = time.monotonic() - self._start.attempt.moment
        self._state["because"] = self._reason()
        signal_processes(descendants(os.getpid()), signal.SIGTERM)
        if self._gang:
            self._gang.end(self._state["because"])

    def _wait(self, is_stopping: bool) -> None:
        # Heartbeats are a fifth of the time-out apart.
        idle = min(MOST_IDLE_SECONDS, max(POLL_SECONDS, self._plan.node_timeout_seconds / 60))
        idle = POLL_SECONDS if is_stopping or not self._gang else idle
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
        return self._gang.verdict if self._gang and self._gang.verdict is not None else self._reason_of_stop()

    def _reason_of_stop(self) -> str:
        """Return why this supervisor has to stop; "" for a stop on request."""
        if self._failure:
            return self._failure
        with suppress(OSError), open(reason_path(self._job_dir), errors="replace") as file:
            return cut_reason(file.read(LONGEST_REASON))
        return f"{self._name} was stopped by its own node, as at a shutdown"

    def _stay_in_gang(self, state: str, why: str, has_fault: bool) -> bool:
        """Tell the gang how this rank has ended, and stay until another attempt begins, or nobody needs this node.

        Returns:
            Whether another attempt begins.
        """
        begins = False
        if self._gang:
            self._gang.script_ended(state, why, has_fault)
            try:
                begins = self._gang.stay(self._reason_to_leave)
                if not begins:
                    self._gang.leave()
                self._note_gang(last=True)
            except Exception as error:
                self._end_without_gang(error)
        return begins

    def _reason_to_leave(self) -> str | None:
        """Return why the job has to end while this supervisor waits for the others, if there is a reason."""
        self._note_gang(last=True)
        if self._gang and self._is_going_down():
            self._gang.withdraw()
            return None
        return self._reason_of_stop() if self._stop_times else None

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
