# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import os
import pwd
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import start_script, supervise
from local_nodes import (
    DAEMON,
    ME,
    NO_PYTHON,
    PYTHON,
    SLEEP,
    Altered,
    Connection,
    LocalNode,
    alive,
    as_root,
    code,
    daemon_of,
    until,
    within_reach_of_nobody,
)


@pytest.mark.parametrize(
    ("script", "state", "exit_code", "signal_number"),
    [
        ("pass", "succeeded", 0, None),
        ("raise SystemExit(3)", "failed", 3, None),
        ("raise SystemExit(255)", "failed", 255, None),
        ("import os; os.kill(os.getpid(), 9)", "failed", 137, 9),
        ("import os; os.kill(os.getpid(), 15)", "failed", 143, 15),
        ("import os; os.abort()", "failed", 134, 6),
    ],
)
def test_how_a_job_ended(
    node: LocalNode, tmp_path: Path, script: str, state: str, exit_code: int, signal_number: int | None
) -> None:
    ended, _log = node.run(script, tmp_path / "code")
    assert (ended["state"], ended["exit_code"], ended["signal"]) == (state, exit_code, signal_number)


def test_a_python_that_is_gone(node: LocalNode, tmp_path: Path) -> None:
    node.connection = Altered(NO_PYTHON)
    ended, _log = node.run("pass", tmp_path / "code")
    assert (ended["state"], ended["error"]) == ("failed", "did not start: No such file or directory: /no/such/python")


def test_a_defect_at_the_start(node: LocalNode, tmp_path: Path) -> None:
    spawn = "        script = os.posix_spawn("
    node.connection = Altered((spawn, f"        raise KeyError('CKPT_PATH')\n{spawn}"))
    ended, log = node.run("pass", tmp_path / "code")
    assert (ended["state"], ended["error"]) == ("failed", "did not start: KeyError('CKPT_PATH')")
    assert "Traceback" in log and "KeyError: 'CKPT_PATH'" in log


def test_a_defect_after_the_start_leaves_no_script(node: LocalNode, tmp_path: Path) -> None:
    run = "import_supervisor()(plan, facts.job_dir, stop_times, start).run()"
    waits = "import os, time\nwhile not os.path.exists('script.pid'): time.sleep(0.01)\n"
    defect = f"exec({waits!r}, {{}}); raise ZeroDivisionError(gc.isenabled())"
    node.connection = Altered((run, defect))
    script = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nos.rename('pid', 'script.pid')\n"
    node.start(code(tmp_path / "code", f"{script}time.sleep(600)"))
    until(lambda: not node.supervisor())
    script_pid = int((node.job_dir() / "work" / "script.pid").read_text())
    until(lambda: not alive(script_pid))  # it was killed, and takes a moment to go
    assert "ZeroDivisionError: True" in (node.job_dir() / "log").read_text()


def test_a_prepared_job_whose_controller_vanished_is_given_up(node: LocalNode, tmp_path: Path) -> None:
    late = tmp_path / "late"
    node.connection = Altered(("time.monotonic() - noticed", f"(os.path.exists({str(late)!r}) and float('inf'))"))
    bundle = code(tmp_path / "code", "")
    start_file = Path(node.prepare(bundle)["start_file"])
    start_file.with_name(start_file.name + ".part").write_bytes(b"half a word")
    late.touch()
    until(lambda: not node.supervisor())
    assert node.jobs == []
    assert sorted(path.name for path in start_file.parent.iterdir()) == ["current", "lock"]
    late.unlink()
    node.prepare(bundle, "job-2")


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_set_changes_nothing(node: LocalNode, tmp_path: Path, seconds: int) -> None:
    is_off = tmp_path / "off"
    is_off.touch()
    clock = f"time.time = lambda now=time.time: now() + {seconds} * os.path.exists({str(is_off)!r})"
    node.connection = Altered(("HEAD_POLL_SECONDS = 0.01\n", f"HEAD_POLL_SECONDS = 0.01\n{clock}\n"))
    ended, _log = node.run(f"import os; os.unlink({str(is_off)!r})", tmp_path / "code")
    assert ended["state"] == "succeeded"
    assert 0 <= ended["ended"] - ended["started"] < 60


def test_a_job_starts_from_a_clean_environment(node: LocalNode, tmp_path: Path) -> None:
    dirty = {"LOCAL_RANK": "0", "RANK": "0", "GROUP_RANK": "0", "SLURM_NTASKS": "2", "TORCHELASTIC_RUN_ID": "x"}
    node.connection = Connection({**os.environ, **dirty, "SECRET_OF_THE_LOGIN": "x", "LANG": "C", "PYTHONPATH": "/x"})
    script = "import json, os\nprint(json.dumps(dict(os.environ)))"
    _state, log = node.run(script, tmp_path / "code", variables={"TOKEN": "it's ü\n$1", "HOME": "/else where"})
    assert json.loads(log) == {
        "HOME": "/else where",
        "USER": ME,
        "LOGNAME": ME,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": f"{node.directory}/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(node.master_port),
        "WORLD_SIZE": "1",
        "NODE_RANK": "0",
        "NUM_NODES": "1",
        "PL_TRAINER_NUM_NODES": "1",
        "LT_NUM_NODES": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
        "JOB_ID": "job-1",
        "JOB_DIR": str(node.job_dir()),
        "JOB_ATTEMPT": "1",
        "JOB_GIT_COMMIT": "",
        "TOKEN": "it's ü\n$1",
    }


def test_nobody_else_may_read_what_a_job_has(node: LocalNode, tmp_path: Path) -> None:
    node.run("open('result', 'w').write('x')", tmp_path / "code", variables={"TOKEN": "hush-hush-31"})
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in node.job_dir().iterdir()}
    assert modes == {"node.env": 0o600, "spec.json": 0o600, "state.json": 0o600, "log": 0o600, "work": 0o700}
    assert stat.S_IMODE(node.job_dir().stat().st_mode) == 0o700
    others = [path for path in node.directory.rglob("*") if path.is_file() and b"hush-hush-31" in path.read_bytes()]
    assert others == [node.job_dir() / "node.env"]
    assert "\nTOKEN=hush-hush-31\n" in (node.job_dir() / "node.env").read_text()


def test_the_process_list_shows_no_values(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP), variables={"TOKEN": "very-secret"})
    until(lambda: node.follow(wait_seconds=0)[1])
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{node.directory}/env/bin/python train.py" in shown
    assert "very-secret" not in shown


def test_a_script_has_no_input_and_both_its_outputs_are_kept_in_order(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import sys\nfor n in range(3):\n    print('out', n)\n    print('err', n, file=sys.stderr)\n"
        "print(sys.stdin.read(), end='')"
    )
    _state, log = node.run(script, tmp_path / "code")
    assert log.splitlines() == ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every account can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


# An ordinary user has one account: there is nothing to be tested then. CI runs as root.
@as_root
def test_a_job_of_an_unprivileged_account(open_place: Path, tmp_path: Path) -> None:
    pythons = [python for python in (PYTHON, "/usr/bin/python3") if within_reach_of_nobody(python)]
    if not pythons:
        pytest.skip("no Python is within the reach of other accounts")
    node = LocalNode(open_place / "node", user="nobody", python=pythons[0]).set_up()
    os.chmod(node.directory / "bundles", 0o700)
    script = (
        "import os\n"
        "print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.environ['USER'], oct(os.umask(0)))\n"
        "open('result', 'w').write('x')\n"
        "os.symlink('/etc/shadow', 'shadow')\n"
        "try:\n"
        "    os.setuid(0)\n"
        "except PermissionError:\n"
        "    print('stays')\n"
    )
    try:
        state, log = node.run(script, tmp_path / "code", variables={"TOKEN": "x"})
    finally:
        node.end_all()
    account = pwd.getpwnam("nobody")
    assert state["state"] == "succeeded", log
    groups = os.getgrouplist("nobody", account.pw_gid)
    assert log == f"{account.pw_uid} {account.pw_uid} {account.pw_gid} {groups} nobody 0o22\nstays\n"
    owners = {path.lstat().st_uid for path in [node.job_dir(), *node.job_dir().rglob("*")]}
    assert owners == {account.pw_uid}
    # What is read is read with the job's own rights, and not through links.
    reply, data = node.channel().call(node.request("list_artifacts", after="", most=10))
    assert (data.split(b"\0")[0::3], reply["more"]) == ([b"result", b""], False)


def test_a_daemon_ends_with_its_script(node: LocalNode, tmp_path: Path) -> None:
    state, _log = node.run(DAEMON, tmp_path / "code")
    assert (state["state"], state["exit_code"]) == ("succeeded", 0)
    assert not alive(daemon_of(node))


def test_a_daemon_that_is_deaf_ends_with_its_script(node: LocalNode, tmp_path: Path) -> None:
    deaf = DAEMON.replace("os.setsid()", "os.setsid(); import signal; signal.signal(15, signal.SIG_IGN)")
    began = time.monotonic()
    node.run(deaf, tmp_path / "code")
    assert not alive(daemon_of(node))
    assert time.monotonic() - began < 5


def test_a_job_that_was_not_stopped_has_no_reason(node: LocalNode, tmp_path: Path) -> None:
    ended, _log = node.run("pass", tmp_path / "code")
    assert "because" not in ended and "stopping" not in ended


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-9, "was killed by SIGKILL"),
        (-15, "was killed by SIGTERM"),
        (-63, "was killed by signal 63"),
    ],
)
def test_how_it_ended_in_words(exit_code: int, expected: str) -> None:
    assert supervise.how_it_ended(exit_code) == expected


def test_what_the_kernel_killed_meanwhile_is_counted(node: LocalNode, tmp_path: Path) -> None:
    counter = node.directory / "vmstat"
    node.connection = Altered(("/proc/vmstat", str(counter)))
    counter.write_text("pgfault 9\noom_kill 5\n")
    node.start(code(tmp_path / "code", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"))
    until(node.state)
    counter.write_text("pgfault 9\noom_kill 7\n")
    (node.job_dir() / "work" / "go").touch()
    assert node.wait()[0]["oom"] == 2


def test_the_last_word_has_room_on_a_full_disk(node: LocalNode, tmp_path: Path) -> None:
    """state.json always has the size that its last word may need."""
    node.run("pass", tmp_path / "code")
    assert (node.job_dir() / "state.json").stat().st_size == start_script.STATE_BYTES + 1


@pytest.mark.parametrize(
    "deed",
    [
        "os.unlink('state.json'); os.makedirs('state.json/with/more')",
        "os.unlink('state.json'); os.symlink('/nowhere/at/all', 'state.json')",
        "os.unlink('state.json'); os.mkfifo('state.json')",
        "os.chmod('.', 0)",
        "os.system('rm -r *')",
        "shutil.rmtree(os.getcwd())",
    ],
)
def test_what_a_job_does_to_its_folder_does_not_hide_how_it_ended(node: LocalNode, tmp_path: Path, deed: str) -> None:
    node.start(code(tmp_path / "code", f"import os, shutil\nos.chdir('..')\n{deed}\nraise SystemExit(3)"))
    path = node.job_dir() / "state.json"
    until(lambda: path.is_file() and '"ended"' in path.read_text())
    state, _log = node.wait()
    assert (state["state"], state["exit_code"]) == ("failed", 3)
