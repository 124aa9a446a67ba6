# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import processes
from local_nodes import PYTHON, alive, until

FAMILY = """\
import os, sys, time
if os.fork() == 0:
    os.fork()
    time.sleep(600)
time.sleep(600)
"""


def test_a_command_and_what_it_says() -> None:
    assert processes.run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\nerr")
    assert processes.run_command(["sh", "-c", "kill -9 $$"])[0] == -9


def test_descendants_and_their_end() -> None:
    root = subprocess.Popen([PYTHON, "-I", "-S", "-c", FAMILY])
    until(lambda: len(processes.descendants(root.pid)) == 2)
    below = processes.descendants(root.pid)
    assert all(map(alive, below))
    assert set(below) < set(processes.descendants(os.getpid()))
    processes.signal_processes([*below, root.pid], signal.SIGKILL)
    assert root.wait() == -9
    until(lambda: not any(map(alive, below)))
    processes.signal_processes(below, signal.SIGKILL)  # those that have ended are no error


def test_marked_are_those_of_this_job_alone(tmp_path: Path) -> None:
    sleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen(sleep, env={"JOB_DIR": str(tmp_path / "job-1")})
    other = subprocess.Popen(sleep, env={"JOB_DIR": str(tmp_path / "job-11")})
    try:
        until(lambda: processes.marked(str(tmp_path / "job-1")) == [ours.pid])
        until(lambda: processes.marked(str(tmp_path / "job-11")) == [other.pid])
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("kills", "only", "excluded", "is_told"),
    [
        ("b true", "as 0", 'as 1 "root"', True),
        ("b true", 'as 1 "me"', "as 0", True),
        ("b true", 'as 1 "you"', "as 0", False),
        ("b true", "as 0", 'as 2 "root" "me"', False),
        ("b false", "as 0", "as 0", False),
        ("", "", "", False),
    ],
)
def test_a_session_that_ends_jobs(
    monkeypatch: pytest.MonkeyPatch, kills: str, only: str, excluded: str, is_told: bool
) -> None:
    answers = {"KillUserProcesses": kills, "KillOnlyUsers": only, "KillExcludeUsers": excluded}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr(processes, "has_systemd", lambda: True)
    monkeypatch.setattr(processes, "run_command", lambda words: (0 if answers[words[-1]] else 1, answers[words[-1]]))
    words = processes.end_of_session()
    assert words.startswith("ends every process of me with its last SSH session, jobs too") is is_told
    assert ("KillExcludeUsers=me" in words) is is_told
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert processes.end_of_session() == ""
