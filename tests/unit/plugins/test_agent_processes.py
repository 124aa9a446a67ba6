import os
import signal
import subprocess
import sys
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent import processes
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
