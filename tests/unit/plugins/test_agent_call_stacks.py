# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.call_stacks import is_roots
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.call_stacks import (
    activity,
    members,
    parse,
    work,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
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


def stacks(node: LocalNode) -> tuple[dict[str, Any], bytes]:
    return node.channel().call(node.request("call_stacks"))


def test_stacks(running: LocalNode) -> None:
    reply, payload = stacks(running)
    first, last = ephemeral_ports()
    assert reply["missing"] is None
    assert first <= reply["free_port"] <= last
    first, *others = reply["processes"]
    assert first == {
        "pid": first["pid"],
        "parent": running.supervisor(),
        "command": first["command"],
        "local_rank": None,
        "state": "S",
        "python": True,
        "dumped": True,
        "bytes": first["bytes"],
        "cpu": first["cpu"],
        "io": first["io"],
    }
    assert first["command"].endswith("python train.py")
    assert sorted((one["python"], one["dumped"], one["local_rank"]) for one in others) == [
        (False, False, None),
        (True, True, 1),
        (True, True, 1),
    ]
    processes = parse(reply, payload)
    ranks = members(processes)
    assert [rank.local_rank for rank in ranks] == [None, 1]
    assert [activity(rank).description for rank in ranks] == ["in work at train.py:5"] * 2
    assert processes[0].text.startswith(f"==== process {first['pid']}, state S: {first['command']}\nProcess ")
    asleep = next(process for process in processes if not process.python)
    assert re.search(r"\nState:\s+S \(sleeping\)\n", asleep.text)


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
    reply, payload = node.channel().call(node.request("call_stacks", seconds=3))
    assert 3 <= reply["seconds"] < 10
    processes = parse(reply, payload)
    ranks = members(processes)
    used = [work(processes, ranks)[rank.pid] for rank in ranks]
    assert [rank.local_rank for rank in ranks] == [None, 1, 2, 3]
    (waiting, quiet, _), (computing, _io, _), (starting, _more, _), (_cpu, written, _) = used
    assert waiting < 0.03 and quiet < 1000
    assert computing > 0.3
    assert starting > 0.3
    assert written > 500_000


def test_without_py_spy_the_kernel_is_asked(running: LocalNode) -> None:
    (running.directory / "tools" / "env" / "bin" / "py-spy").unlink()
    reply, payload = stacks(running)
    assert reply["missing"] == str(running.directory / "tools" / "env" / "bin" / "py-spy")
    assert not any(one["dumped"] for one in reply["processes"])
    for process in parse(reply, payload):
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
    reply, payload = stacks(running)
    assert not any(one["dumped"] for one in reply["processes"])
    text = parse(reply, payload)[0].text
    assert expected in text
    assert "State:" in text


def test_a_process_that_changes_is_looked_at_again(running: LocalNode) -> None:
    spy = running.directory / "tools" / "env" / "bin" / "py-spy"
    spy.unlink()
    spy.write_text(f'#!/bin/sh\nmkdir "{running.directory}/$5" 2>/dev/null && exit 1\nexec {PY_SPY} "$@"\n')
    spy.chmod(0o755)
    reply, _payload = stacks(running)
    assert [one["dumped"] for one in reply["processes"] if one["python"]] == [True] * 3


def test_a_job_that_has_ended_has_no_stacks(node: LocalNode, tmp_path: Path) -> None:
    node.run("pass", tmp_path / "code")
    with pytest.raises(NodeError) as caught:
        stacks(node)
    assert str(caught.value) == "node0 does not run job job-1 any more"


def test_root_runs_only_what_root_installed(tmp_path: Path) -> None:
    program = tmp_path / "py-spy"
    shutil.copy("/bin/true", program)
    assert not is_roots(str(program))  # /tmp is everybody's
    if IS_ROOT:
        assert is_roots(os.path.realpath("/bin/sh"))
