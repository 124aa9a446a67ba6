# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import supervise
from local_nodes import DAEMON, SLEEP, Altered, LocalNode, alive, code, daemon_of, gang_of, until

DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n"


def test_stop_ends_everything_at_once(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DAEMON + SLEEP))
    until(lambda: node.follow(wait_seconds=1)[1])
    daemon, supervisor = daemon_of(node), node.follow(wait_seconds=0)[0]["pid"]
    assert alive(daemon) and alive(supervisor)
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=20)
    assert time.monotonic() - began < 5
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 143, 15)
    assert not alive(daemon) and not alive(supervisor)


def test_what_ignores_sigterm_is_killed_after_the_grace(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DEAF), grace_seconds=0.5)
    until(lambda: node.follow(wait_seconds=1)[1])
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 137, 9)


def test_what_was_stopped_has_not_succeeded(node: LocalNode, tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('ready')\ntime.sleep(600)\n"
    node.start(code(tmp_path / "code", polite))
    until(lambda: node.follow(wait_seconds=1)[1])
    state = node.ask("stop", grace_seconds=5)
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 0, None)


def test_stop_after_the_end_changes_nothing(node: LocalNode, tmp_path: Path) -> None:
    before, _log = node.run("raise SystemExit(4)", tmp_path / "code")
    state = node.ask("stop", grace_seconds=5)
    assert state == {"left": [], **{key: value for key, value in before.items() if key not in ("offset", "more")}}
    assert state["state"] == "failed"


def test_why_it_was_stopped_is_kept(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP))
    until(lambda: node.follow(wait_seconds=1)[1])
    why = "rank 3 (gpu-4) exited with code 1; ü " + "x" * 1000
    state = node.ask("stop", grace_seconds=5, because=why)
    assert state["because"] == why[: supervise.LONGEST_REASON]
    assert 0 < state["stopping"] < 60
    assert node.jobs == ["job-1"], "no file is left beside its folder"


def test_a_prepared_job_is_discarded(node: LocalNode, tmp_path: Path) -> None:
    node.prepare(code(tmp_path / "code", ""))
    assert node.ask("stop", grace_seconds=5) == {"state": "prepared", "left": []}
    assert node.jobs == []
    assert node.supervisor() is None


def test_a_job_that_was_just_told_to_start_is_stopped(node: LocalNode, tmp_path: Path) -> None:
    for attempt in range(5):
        job = f"job-{attempt}"
        node.start(code(tmp_path / "code", SLEEP), job=job)
        assert node.ask("stop", job=job, grace_seconds=5)["state"] == "stopped"
        assert node.supervisor() is None


def test_a_stop_that_comes_before_the_word_to_start_is_read(node: LocalNode, tmp_path: Path) -> None:
    """The script is started, and stopped: "lost" would be a failure."""
    launch = gang_of([node], code(tmp_path / "code", SLEEP))
    launch.prepare()
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGSTOP)
    launch.start()
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(node.ask, "stop", grace_seconds=5)
        until(lambda: is_told(supervisor))
        os.kill(supervisor, signal.SIGCONT)
        state = stopping.result()
    assert (state["state"], state["left"]) == ("stopped", [])


def is_told(process: int) -> bool:
    """Return whether a TERM waits for a process."""
    pending = re.findall(r"(?m)^(?:Sig|Shd)Pnd:\s(\w+)$", Path(f"/proc/{process}/status").read_text())
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in pending)


def test_what_outlived_a_supervisor_is_ended(node: LocalNode, tmp_path: Path) -> None:
    supervisor, script = running(node, tmp_path)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not node.supervisor())
    assert alive(script)
    state = node.ask("stop", grace_seconds=5)
    assert (state["state"], state["left"]) == ("lost", [])
    assert not alive(script)


def test_a_frozen_supervisor_is_killed_with_all_it_has(node: LocalNode, tmp_path: Path) -> None:
    supervisor, script = running(node, tmp_path)
    os.kill(supervisor, signal.SIGSTOP)
    node.connection = Altered(("EXIT_SECONDS = 8", "EXIT_SECONDS = 0"))
    state = node.ask("stop", grace_seconds=0.5)
    assert (state["state"], state["left"]) == ("lost", [])
    assert not alive(script) and not alive(supervisor)


def running(node: LocalNode, tmp_path: Path) -> tuple[int, int]:
    """Start a job; return its supervisor and its script."""
    node.start(code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP))
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    supervisor = node.supervisor()
    assert supervisor
    return supervisor, int(node.follow(wait_seconds=0)[1].split()[0])


def test_stopping_one_job_leaves_another_alone(node: LocalNode, tmp_path: Path) -> None:
    node.run("pass", tmp_path / "code")
    node.start(code(tmp_path / "code", SLEEP), job="job-2")
    until(lambda: node.follow(wait_seconds=1, job="job-2")[1])
    assert node.ask("stop", grace_seconds=5)["state"] == "succeeded"
    assert node.follow(wait_seconds=0, job="job-2")[0]["state"] == "running"


def test_a_job_that_has_ended_keeps_its_files_though_its_mark_of_a_start_is_gone(
    node: LocalNode, tmp_path: Path
) -> None:
    node.run("open('model.ckpt', 'w').write('weights')", tmp_path / "code")
    os.unlink(f"{node.job_dir()}.started")
    assert node.ask("stop", grace_seconds=5)["state"] == "succeeded"
    assert (node.job_dir() / "work" / "model.ckpt").read_text() == "weights"
