# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import owner_of
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import (
    activity,
    members,
    work,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.take_stacks import (
    Snapshot,
    is_roots,
    take_snapshot,
)
from local_nodes import IS_ROOT, LocalNode, code, until

PY_SPY = Path(sys.executable).parent / "py-spy"

# A script with a rank of its own beside it, a data loader's worker, and something that is no Python.
SCRIPT = """\
import os, subprocess, sys, time

def work(what):
    print("ready", what, flush=True)
    time.sleep(600)

def main():
    if "LOCAL_RANK" not in os.environ:
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": "1"})
        subprocess.Popen(["sleep", "600"])
    elif os.fork() == 0:
        work("worker")
    work("rank")

main()
"""


@pytest.fixture
def running(node: LocalNode, tmp_path: Path) -> LocalNode:
    """A node with py-spy whose job has come to rest."""
    (node.directory / "tools" / "env" / "bin" / "py-spy").symlink_to(PY_SPY)
    node.start(code(tmp_path / "code", SCRIPT))
    until(lambda: (node.job_dir() / "log").read_text().count("ready") == 3)
    until((node.job_dir() / "spec.json").exists)
    return node


def taken(node: LocalNode, seconds: float = 0) -> Snapshot:
    return take_snapshot(node.supervisor(), str(node.directory), owner_of(str(node.job_dir())), seconds)


def is_dumped(text: str) -> bool:
    return "Thread " in text and "State:" not in text


def test_stacks(running: LocalNode) -> None:
    found = taken(running)
    assert found.missing == ""
    first, *others = found.processes
    assert (first.parent, first.local_rank, first.state, first.python) == (running.supervisor(), None, "S", True)
    head = first.text.partition("\n")[0]
    assert head.startswith(f"==== process {first.pid}, state S: ") and head.endswith("python train.py")
    assert sorted((one.python, is_dumped(one.text), one.local_rank is None) for one in others) == [
        (False, False, True),
        (True, True, False),
        (True, True, False),
    ]
    assert {one.local_rank for one in others} == {None, 1}
    ranks = members(found.processes)
    assert [rank.local_rank for rank in ranks] == [None, 1]
    assert [activity(rank).description for rank in ranks] == ["in work at train.py:5"] * 2
    asleep = next(process for process in found.processes if not process.python)
    assert re.search(r"\nState:\s+S \(sleeping\)\n", asleep.text)
    assert found.text == "\n".join(process.text for process in found.processes)


def test_what_processes_use_meanwhile(node: LocalNode, tmp_path: Path) -> None:
    """A rank that computes, one whose short-lived children do, one that writes, and one that waits."""
    script = """\
import os, subprocess, sys, time
kind = os.environ.get("LOCAL_RANK", "")
if not kind:
    for number in range(3):
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": str(number + 1)})
print("ready", flush=True)
while kind == "1":
    pass
while kind == "2":
    subprocess.run([sys.executable, "-S", "-c", "sum(range(2_000_000))"])
while kind == "3":
    with open("written", "wb") as file:
        file.write(bytes(100_000))
    time.sleep(0.05)
time.sleep(600)
"""
    (node.directory / "tools" / "env" / "bin" / "py-spy").symlink_to(PY_SPY)
    node.start(code(tmp_path / "code", script))
    until(lambda: (node.job_dir() / "log").read_text().count("ready") == 4)
    found = taken(node, seconds=3)
    assert found.seconds >= 3
    processes = found.processes
    ranks = members(processes)
    used = [work(processes, ranks)[rank.pid] for rank in ranks]
    assert [rank.local_rank for rank in ranks] == [None, 1, 2, 3]
    (waiting, quiet, _), (computing, _io, _), (starting, _more, _), (_cpu, written, _) = used
    assert waiting < computing / 10 and quiet < 1000
    assert starting > computing / 2, "what children that have ended used counts"
    assert written > 500_000


def test_without_py_spy_the_kernel_is_asked(running: LocalNode) -> None:
    (running.directory / "tools" / "env" / "bin" / "py-spy").unlink()
    found = taken(running)
    assert found.missing == str(running.directory / "tools" / "env" / "bin" / "py-spy")
    for process in found.processes:
        assert "Waits in the kernel at: " in process.text
        assert "State:" in process.text


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "#!/bin/sh\necho 'Error: Failed to copy PyFrame' >&2\necho 'Stack backtrace:' >&2\nexit 1\n",
            "py-spy: Error: Failed to copy PyFrame\n",
        ),
        ("#!/bin/sh\nexec sleep 60\n", "py-spy: it took too long\n"),
        ("#!/no/such/shell\n", "No such file or directory"),
    ],
)
def test_a_py_spy_that_fails(running: LocalNode, script: str, expected: str) -> None:
    spy = running.directory / "tools" / "env" / "bin" / "py-spy"
    spy.unlink()
    spy.write_text(script)
    spy.chmod(0o755)
    text = taken(running).processes[0].text
    assert expected in text
    assert "State:" in text


def test_a_process_that_changes_is_looked_at_again(running: LocalNode) -> None:
    spy = running.directory / "tools" / "env" / "bin" / "py-spy"
    spy.unlink()
    spy.write_text(f'#!/bin/sh\nmkdir "{running.directory}/$5" 2>/dev/null && exit 1\nexec {PY_SPY} "$@"\n')
    spy.chmod(0o755)
    assert [is_dumped(one.text) for one in taken(running).processes if one.python] == [True] * 3


def test_what_a_process_prints_of_itself_is_made_printable(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import os\nos.execv('/bin/sh', ['a\\x1b[31m\\x07', '-c', 'sleep 600; :'])\n"))
    until(lambda: any(re.match(r"==== process \d+, state S: a ", one.text) for one in taken(node).processes))
    assert "\x1b" not in taken(node).text and "\x07" not in taken(node).text


def test_root_runs_only_what_root_installed(tmp_path: Path) -> None:
    program = tmp_path / "py-spy"
    shutil.copy("/bin/true", program)
    assert not is_roots(str(program))  # /tmp is everybody's
    if IS_ROOT:
        assert is_roots(os.path.realpath("/bin/sh"))
