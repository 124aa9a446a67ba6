# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import clean as cleaning
from left_jobs import job_id, nested
from left_jobs import leave as leave_job
from local_nodes import SLEEP, LocalNode, code, until

OLD = time.time() - 2 * 86400
JOBS = [f"20261122-17300{number}-job-0a0a" for number in range(4)]
ENVS = [str(number) * 16 for number in range(4)]
FREED = {"jobs": [], "bundles": [], "envs": [], "left": []}


def clean(node: LocalNode, keep: int = 0, dry: bool = False, owner: str | None = None) -> dict[str, Any]:
    """What a node removed, without the bytes."""
    reply = node.ask("clean", keep=keep, dry=dry, seconds=60, owner=owner)
    assert reply.pop("more") is False
    del reply["bytes"]
    return reply


def leave(node: LocalNode, job: str = JOBS[1], *about: Any, **more: Any) -> Path:
    """Leave a job's folder on a node; return its working directory."""
    return leave_job(node, job, *about, **more)


def bundle(node: LocalNode, digit: str, mtime: float = OLD) -> str:
    """Put a bundle on a node; return its name."""
    path = node.directory / "bundles" / (digit * 64)
    path.write_bytes(b"code")
    os.utime(path, (mtime, mtime))
    return path.name


def spec(bundle: str = "", env: Path = Path("/elsewhere")) -> dict[str, Any]:
    """What the controller writes about a job, as far as it counts here."""
    return {"id": "job", "ranks": [], "bundle": bundle, "python": str(env / "bin" / "python")}


def env(node: LocalNode, name: str, mtime: float = OLD, marked: float | None = OLD) -> Path:
    """Put an environment on a node, complete if it is ``marked``."""
    path = node.directory / "envs" / name
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    if marked is not None:
        (path / "installed.txt").write_text("torch\n")
        os.utime(path / "installed.txt", (marked, marked))
    os.utime(path, (mtime, mtime))
    return path


@contextlib.contextmanager
def held(node: LocalNode, job: str) -> Iterator[None]:
    """Hold a node as the supervisor of a job does."""
    (node.directory / "jobs" / "current").write_text(f"{job}\ntrainer\n2026\n{os.getpid()}\n")
    with open(node.directory / "jobs" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize(("keep", "gone"), [(0, 4), (1, 3), (3, 1), (4, 0), (99, 0)])
def test_all_but_the_newest_go(node: LocalNode, keep: int, gone: int) -> None:
    for number in (2, 0, 3, 1):  # the folders' own times are in another order
        leave(node, job_id(number), {"out/model": b"x"}, spec=spec())
    assert clean(node, keep)["jobs"] == [job_id(number) for number in reversed(range(gone))]
    assert node.jobs == []  # none has "job" in its name
    left = sorted(path.name for path in (node.directory / "jobs").iterdir())
    assert left == [job_id(number) for number in range(gone, 4)]
    assert not (node.directory / "trash").exists()


@pytest.mark.parametrize("state", ["succeeded", "failed", "stopped", "running", ""])
def test_a_job_that_ended_in_any_way(node: LocalNode, state: str) -> None:
    """One that is running or prepared but has no supervisor is lost."""
    leave(node, state=state)
    for suffix in (".start", ".start.part", ".because", ".log"):
        Path(f"{node.job_dir(JOBS[1])}{suffix}").write_text("")
    assert clean(node) == {**FREED, "jobs": [JOBS[1]]}
    assert node.jobs == []


def test_only_the_owners_jobs_count_and_go(node: LocalNode) -> None:
    """Whose a job is says a file that only root can write; what the job has written into its own does not count."""
    for number, user in enumerate(("ana@laptop", "bob@context", "ana@laptop", "ana@context", "bob@context")):
        leave(node, job_id(number), spec={**spec(), "user": "ana@laptop"})
        Path(f"{node.job_dir(job_id(number))}.started").write_text(user)
    leave(node, job_id(5), state="")  # never started, so nobody's
    leave(node, job_id(6), spec={**spec(), "user": "ana@laptop"})
    Path(f"{node.job_dir(job_id(6))}.started").touch()  # by a version that did not say
    assert clean(node, 1, dry=True, owner="ana@laptop")["jobs"] == [job_id(2), job_id(0)]
    assert clean(node, 0, owner="ana@laptop")["jobs"] == [job_id(5), job_id(2), job_id(0)]
    assert clean(node, 0, owner="eve@laptop") == FREED
    assert clean(node, 1)["jobs"] == [job_id(4), job_id(3), job_id(1)]


def test_what_is_no_job_stays(node: LocalNode, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    jobs = node.directory / "jobs"
    (jobs / "linked").symlink_to(tmp_path / "elsewhere")
    (jobs / "file").write_text("")
    before = sorted(os.listdir(jobs))
    assert clean(node) == FREED
    assert sorted(os.listdir(jobs)) == before


def test_a_running_job_stays_whatever_is_kept(node: LocalNode, tmp_path: Path) -> None:
    leave(node, JOBS[0], spec=spec())
    leave(node, JOBS[2], spec=spec())
    node.start(code(tmp_path / "code", SLEEP), JOBS[1])
    until(lambda: (node.job_dir(JOBS[1]) / "spec.json").exists())
    assert clean(node)["jobs"] == [JOBS[2], JOBS[0]]
    assert node.jobs == [JOBS[1]]
    assert node.follow(job=JOBS[1], wait_seconds=0)[0]["state"] == "running"
    assert len(os.listdir(node.directory / "bundles")) == 1
    os.kill(node.supervisor() or 0, signal.SIGTERM)
    assert node.wait(JOBS[1])[0]["state"] == "stopped"
    until(lambda: not node.supervisor())
    assert clean(node)["jobs"] == [JOBS[1]]
    assert os.listdir(node.directory / "bundles") == []


def test_a_prepared_job_stays_with_all_code(node: LocalNode, tmp_path: Path) -> None:
    leave(node, JOBS[0], spec=spec("a" * 64))
    bundle(node, "a")
    node.prepare(code(tmp_path / "code", "print(1)"), JOBS[1])
    env(node, ENVS[1])
    assert clean(node) == {**FREED, "jobs": [JOBS[0]]}
    assert node.jobs == [JOBS[1]]


def test_a_job_whose_processes_outlived_its_supervisor(node: LocalNode) -> None:
    leave(node, state="running")
    variables = {**os.environ, "JOB_DIR": str(node.job_dir(JOBS[1]))}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=variables) as process:
        marker = f"JOB_DIR={node.job_dir(JOBS[1])}".encode()
        until(lambda: marker in Path(f"/proc/{process.pid}/environ").read_bytes())
        remedy = "end them with: ansible-playbook stop.yml -e job=" + JOBS[1]
        words = f"it has processes that its supervisor left behind; {remedy}"
        assert clean(node) == {**FREED, "left": [[f"jobs/{JOBS[1]}", words]]}
        process.communicate(b"\n")
    assert clean(node) == {**FREED, "jobs": [JOBS[1]]}


def test_a_node_that_was_never_set_up(tmp_path: Path) -> None:
    assert clean(LocalNode(tmp_path / "nowhere")) == FREED


# ------------------------------------------------------------------------------------------------------ a hostile job


def test_links_out_of_a_job_lead_nowhere(node: LocalNode, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    work = leave(node)
    (work / "folder").symlink_to(tmp_path / "mine")
    (work / "file").symlink_to(tmp_path / "mine" / "thesis")
    (node.job_dir(JOBS[1]) / "spec.json").symlink_to(tmp_path / "mine" / "thesis")
    assert clean(node)["jobs"] == [JOBS[1]]
    assert (tmp_path / "mine" / "thesis").read_text() == "x"


@pytest.mark.parametrize(
    "made_up", ["pipe", "folder", "[" * 100_000, '{"bundle": ["a"], "python": 7}', '{"bundle": ""}', "null", '"x"', ""]
)
def test_a_spec_that_a_job_has_made_up(node: LocalNode, made_up: str) -> None:
    leave(node)
    path = node.job_dir(JOBS[1]) / "spec.json"
    if made_up == "pipe":
        os.mkfifo(path)
    elif made_up == "folder":
        path.mkdir()
    else:
        path.write_text(made_up)
    with held(node, JOBS[1]):
        env(node, ENVS[1])
        assert clean(node)["jobs"] == []
    assert clean(node)["jobs"] == [JOBS[1]]


def test_folders_nested_deeper_than_a_path_is_long(node: LocalNode) -> None:
    with nested(leave(node), 2500):
        assert clean(node) == {**FREED, "jobs": [JOBS[1]]}
        assert sorted(os.listdir(node.directory)) == [".thunderhead", "bundles", "env", "jobs", "tools"]


def test_of_a_job_that_stays_nothing_goes(node: LocalNode) -> None:
    leave(node, JOBS[1])
    beside = [Path(f"{node.job_dir(JOBS[1])}.{kind}") for kind in ("started", "log")]
    for path in beside:
        path.touch()
    (node.directory / "jobs").chmod(0o777)
    assert clean(node)["left"] == [[f"jobs/{JOBS[1]}", "others than root and this account may write in jobs"]]
    assert all(path.exists() for path in beside)
    (node.directory / "jobs").chmod(0o711)
    assert clean(node)["jobs"] == [JOBS[1]]
    assert not any(path.exists() for path in beside)


def test_what_cannot_be_removed_is_said(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(node, JOBS[1])
    leave(node, JOBS[2])
    remove = cleaning.remove

    def refuse(path: str, workshop: str) -> None:
        if JOBS[1] in path:
            raise PermissionError(1, "Operation not permitted", path)
        remove(path, workshop)

    monkeypatch.setattr(cleaning, "remove", refuse)
    reply, _payload = cleaning.clean(
        {"directory": str(node.directory), "keep": 0, "dry": False, "seconds": 60, "owner": None}, b""
    )
    ((path, why),) = reply["left"]
    assert path == f"trash/jobs.{JOBS[1]}.{os.getpid()}"
    assert why == f"Operation not permitted: {node.directory}/{path}"
    monkeypatch.undo()
    assert clean(node) == FREED  # what an earlier one did not come to
    assert not (node.directory / "trash").exists()


def test_what_takes_long_is_done_in_several_goes(node: LocalNode) -> None:
    for number in range(3):
        leave(node, job_id(number), {"out/model": b"x"})
    first = node.ask("clean", keep=1, dry=False, seconds=-1, owner=None)
    assert (first["jobs"], first["bytes"], first["more"]) == ([job_id(1), job_id(0)], 0, True)
    assert os.listdir(node.directory / "jobs") == [job_id(2)]  # gone all the same
    second = node.ask("clean", keep=1, dry=False, seconds=60, owner=None)
    assert (second["jobs"], second["bytes"] > 0, second["more"]) == ([], True, False)
    assert not (node.directory / "trash").exists()


# ------------------------------------------------------------------------------------------------------------- bundles


def test_bundles_of_no_remaining_job_go(node: LocalNode) -> None:
    used, unused, fresh = bundle(node, "a"), bundle(node, "b"), bundle(node, "c", time.time())
    leave(node, job_id(1), spec=spec(used))
    leave(node, job_id(0), spec=spec(unused))
    assert clean(node, 2) == {**FREED, "bundles": [fresh]}
    assert clean(node, 1) == {**FREED, "jobs": [job_id(0)], "bundles": [unused]}
    assert os.listdir(node.directory / "bundles") == [used]


def test_a_job_of_which_nothing_is_known_keeps_the_younger_bundles(node: LocalNode) -> None:
    old, fresh = bundle(node, "a"), bundle(node, "b", time.time())
    leave(node)
    assert clean(node, 1) == {**FREED, "bundles": [old]}
    assert clean(node, 0) == {**FREED, "jobs": [JOBS[1]], "bundles": [fresh]}


def test_a_bundle_that_is_being_written_stays(node: LocalNode) -> None:
    folder = node.directory / "bundles"
    for name, mtime in (("a" * 64 + ".123", time.time()), ("b" * 64 + ".124", OLD)):
        (folder / name).write_bytes(b"half of it")
        os.utime(folder / name, (mtime, mtime))
    assert clean(node)["bundles"] == ["b" * 64 + ".124"]


def test_beside_a_running_job_bundles_go_but_its_own(node: LocalNode) -> None:
    own, other = bundle(node, "a"), bundle(node, "b")
    leave(node, JOBS[1], spec=spec(own), state="running")
    with held(node, JOBS[1]):
        assert clean(node) == {**FREED, "bundles": [other]}
    assert clean(node) == {**FREED, "jobs": [JOBS[1]], "bundles": [own]}


def test_while_a_job_is_prepared_no_bundle_goes(node: LocalNode) -> None:
    """It may be about to take any of them: its spec.json is not there yet, nor perhaps its folder."""
    bundle(node, "a")
    env(node, ENVS[1])
    leave(node, JOBS[1], spec=spec("b" * 64), state="running")
    with held(node, JOBS[2]):
        assert clean(node) == {**FREED, "jobs": [JOBS[1]]}
        leave(node, JOBS[2], state="")
        assert clean(node) == FREED


def taken(node: LocalNode, names: list[str], current: str | None) -> list[str]:
    trash = cleaning.RemovalQueue(str(node.directory), dry=False)
    cleaning.remove_unused_bundles(str(node.directory), [], names, current, trash)
    return trash.taken["bundles"]


def test_a_job_that_comes_after_the_look_keeps_all_bundles(node: LocalNode) -> None:
    name = bundle(node, "a")
    (node.directory / "jobs" / "lock").touch()
    leave(node, JOBS[2])
    assert taken(node, [JOBS[1]], None) == []
    with held(node, JOBS[3]):
        assert taken(node, [JOBS[2]], None) == []
    assert taken(node, [JOBS[2]], None) == [name]


def test_bundles_are_put_back_if_the_job_beside_which_they_went_has_ended(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bundle(node, "a")
    monkeypatch.setattr(cleaning, "holder_of", lambda directory: JOBS[2])
    with held(node, JOBS[1]):
        assert taken(node, [], JOBS[1]) == []
    assert (node.directory / "bundles" / name).read_bytes() == b"code"


def test_a_job_that_is_prepared_meanwhile_is_not_kept_out(node: LocalNode, tmp_path: Path) -> None:
    """Jobs come and go, with the same code, while the node is cleaned again and again."""
    project = code(tmp_path / "code", "print(1)")
    over = threading.Event()
    failures: list[Exception] = []

    def keep_cleaning() -> None:
        try:
            while not over.is_set():
                clean(node)
        except Exception as error:
            failures.append(error)

    cleaner = threading.Thread(target=keep_cleaning)
    cleaner.start()
    try:
        for number in range(4):
            prepare_and_discard(node, project, JOBS[number])
    finally:
        over.set()
        cleaner.join()
    assert failures == []


def prepare_and_discard(node: LocalNode, project: Any, job: str) -> None:
    node.prepare(project, job)
    assert (node.job_dir(job) / "work" / "train.py").exists()
    node.ask("discard", job=job)


# -------------------------------------------------------------------------------------------------------- environments


@pytest.fixture
def linked(node: LocalNode) -> LocalNode:
    """A node whose environment is what setup makes of it."""
    (node.directory / "env" / "bin" / "python").unlink()
    (node.directory / "env" / "bin").rmdir()
    (node.directory / "env").rmdir()
    env(node, ENVS[0])
    (node.directory / "env").symlink_to(f"envs/{ENVS[0]}")
    (node.directory / "envs" / "constraints.txt").write_text("")
    return node


def test_environments_that_nothing_uses_go(linked: LocalNode) -> None:
    for name in ENVS[1:3]:
        env(linked, name)
    assert clean(linked) == {**FREED, "envs": ENVS[1:3]}
    assert sorted(os.listdir(linked.directory / "envs")) == [ENVS[0], "constraints.txt"]


def test_a_running_job_keeps_its_environment(linked: LocalNode) -> None:
    own = env(linked, ENVS[1])
    env(linked, ENVS[2])
    leave(linked, spec=spec("", own), state="running")
    with held(linked, JOBS[1]):
        assert clean(linked) == {**FREED, "envs": [ENVS[2]]}
    assert clean(linked) == {**FREED, "jobs": [JOBS[1]], "envs": [ENVS[1]]}


@pytest.mark.parametrize(
    ("mtime", "marked", "stays"),
    [
        (OLD, OLD, False),
        (OLD, None, False),  # half made, and nobody went on with it
        (time.time(), None, True),  # being built
        (OLD, time.time(), True),  # complete; the link is about to be switched
        (time.time(), OLD, True),
    ],
    ids=["old", "half made", "being built", "complete", "changed"],
)
def test_an_environment_of_today_stays(linked: LocalNode, mtime: float, marked: float | None, stays: bool) -> None:
    env(linked, ENVS[1], mtime, marked)
    assert clean(linked)["envs"] == ([] if stays else [ENVS[1]])


def test_a_cluster_directory_behind_a_link(linked: LocalNode, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(linked.directory)
    env(linked, ENVS[1])
    other = LocalNode(tmp_path / "link")
    assert clean(other) == {**FREED, "envs": [ENVS[1]]}


def test_an_environment_on_a_disk_of_its_own(linked: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    path = env(linked, ENVS[1])
    leave(linked)

    def rename(source: str, target: str, **more: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    reply, _payload = cleaning.clean(
        {"directory": str(linked.directory), "keep": 0, "dry": False, "seconds": 60, "owner": None}, b""
    )
    assert (reply["jobs"], reply["envs"], reply["left"]) == ([JOBS[1]], [ENVS[1]], [])
    assert not path.exists() and linked.jobs == []


# ------------------------------------------------------------------------------------------------- what it amounts to


def test_a_look_changes_nothing(linked: LocalNode) -> None:
    for number in range(3):
        leave(linked, job_id(number), {"a": bytes(50_000)}, spec=spec(bundle(linked, str(number))))
    env(linked, ENVS[1])
    before = sorted(linked.directory.rglob("*"))
    seen = linked.ask("clean", keep=1, dry=True, seconds=60, owner=None)
    assert sorted(linked.directory.rglob("*")) == before
    assert seen["bytes"] > 100_000
    assert linked.ask("clean", keep=1, dry=False, seconds=60, owner=None) == seen
    assert (
        seen["jobs"] == [job_id(1), job_id(0)] and seen["bundles"] == ["0" * 64, "1" * 64] and seen["envs"] == [ENVS[1]]
    )
    assert clean(linked, 1) == FREED


def test_bytes_are_those_that_become_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    empty = cleaning.used_bytes(str(tmp_path))
    (tmp_path / "a" / "file").write_bytes(bytes(100_000))
    with_file = cleaning.used_bytes(str(tmp_path))
    assert 100_000 <= with_file - empty < 120_000
    (tmp_path / "link").symlink_to("/")
    os.link(tmp_path / "a" / "file", tmp_path / "b")  # as uv's cache shares its files with environments
    assert cleaning.used_bytes(str(tmp_path)) == pytest.approx(empty, abs=8192)


def test_nobody_else_may_look_into_the_trash(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(cleaning, "remove", lambda path, workshop: seen.append(stat.S_IMODE(os.stat(workshop).st_mode)))
    leave(node)
    cleaning.clean({"directory": str(node.directory), "keep": 0, "dry": False, "seconds": 60, "owner": None}, b"")
    assert seen == [0o700]
