# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import socket
import stat
import subprocess
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import processes, working_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import prepare
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from local_nodes import (
    DAEMON,
    IS_ROOT,
    PLAN,
    SLEEP,
    Altered,
    LocalNode,
    alive,
    closed,
    code,
    daemon_of,
    full,
    refused,
    until,
)


def test_a_job_from_start_to_end(node: LocalNode, tmp_path: Path) -> None:
    script = "import sys, pathlib\nprint('hello', *sys.argv[1:])\npathlib.Path('out/a').parent.mkdir()\n"
    bundle = code(tmp_path / "code", script + "pathlib.Path('out/a').write_bytes(bytes(range(256)))\n")
    prepared = node.ask("prepare", bundle)
    assert prepared.pop("clock")[0] == pytest.approx(time.time(), abs=10)
    assert prepared.pop("packages") == {"python": "", "installed": []}
    assert prepared.pop("shm")["free"] >= 0 and prepared.pop("limits")["nofile"] > 0
    assert prepared == {
        "address": "127.0.0.1",
        "interface": "lo",
        "python": str(node.directory / "env/bin/python"),
        "job_dir": str(node.job_dir()),
        "start_file": f"{node.job_dir()}.start",
        "has_bundle": False,
        "gpus": 0,
        "node_env": None,
        "gang_port": 0,
    }
    node.ask("receive_code", bundle, bundle.content)
    assert node.follow(wait_seconds=0)[0] == {"state": "prepared", "offset": 0, "more": False}
    node.ask("discard")
    node.start(bundle, args=["two words", "ü", "$$HOME", ""])
    state, log = node.wait()
    assert log == "hello two words ü $HOME \n"
    assert state == {
        "state": "succeeded",
        "pid": state["pid"],
        "started": state["started"],
        "ended": state["ended"],
        "exit_code": 0,
        "signal": None,
        "oom": state["oom"],
        "offset": len(log.encode()),
        "more": False,
    }
    assert time.time() - 30 < state["started"] < state["ended"] <= time.time()
    assert not alive(state["pid"])
    reply, data = node.channel().call(
        node.request("read_files", parts=[["out/a", 0, 2], ["out/a", 250, 99], ["no", 0, 5]])
    )
    assert [length for length, _size, _mtime_ns in reply["parts"]] == [2, 6, 0]
    assert data == bytes([0, 1, 250, 251, 252, 253, 254, 255])


def test_code_that_a_node_has_is_not_sent_again(node: LocalNode, tmp_path: Path) -> None:
    node.run("print(1)", tmp_path / "code")
    bundle = code(tmp_path / "elsewhere", "print(1)")
    assert node.ask("prepare", bundle, job="job-2")["has_bundle"] is True
    assert (node.job_dir("job-2") / "work" / "train.py").read_text() == "print(1)"


def test_each_job_has_its_own_copy_of_the_code(node: LocalNode, tmp_path: Path) -> None:
    script = "open('train.py', 'w').write('changed')"
    assert [node.run(script, tmp_path / "code", job=job)[0]["exit_code"] for job in ("job-1", "job-2")] == [0, 0]


def test_the_code_arrives_as_it_was(node: LocalNode, tmp_path: Path) -> None:
    project = tmp_path / "code"
    code(project, "")
    (project / "lib").mkdir()
    (project / "lib" / "tool.sh").write_text("#!/bin/sh\n")
    (project / "lib" / "tool.sh").chmod(0o700)
    (project / os.fsdecode(b"latin-\xe9")).write_bytes(b"\xff")
    for name, target in {"in": "train.py", "out": "/etc/hostname", "up": "../../../..", "folder": "lib"}.items():
        (project / name).symlink_to(target)
    node.prepare(make_bundle(project, "train.py", 1))
    work = node.job_dir() / "work"
    assert sorted(os.listdir(work)) == sorted(os.listdir(project))
    assert {name: os.readlink(work / name) for name in ("in", "out", "up", "folder")} == {
        "in": "train.py",
        "out": "/etc/hostname",
        "up": "../../../..",
        "folder": "lib",
    }
    assert os.access(work / "lib" / "tool.sh", os.X_OK)
    assert stat.S_IMODE((work / "train.py").stat().st_mode) & 0o111 == 0


@pytest.mark.parametrize(
    ("present", "missing"),
    [("", ""), (".", "/env/bin/python"), ("jobs", "/env/bin/python"), ("env/bin/python", "/env/bin/python")],
)
def test_a_node_that_was_never_set_up(tmp_path: Path, present: str, missing: str) -> None:
    directory = tmp_path / "node"
    if present == "env/bin/python":
        LocalNode(directory).set_up()
        (directory / "jobs").rmdir()
    elif present:
        (directory / present).mkdir(parents=True)
    assert refused(LocalNode(directory), "prepare") == (
        f"node0 is not set up: there is no {directory}{missing}; run: ansible-playbook setup.yml"
    )
    assert directory.exists() is bool(present)


@pytest.mark.parametrize("folder", ["env", "."])
def test_a_node_whose_folder_is_closed_to_ansible(node: LocalNode, folder: str) -> None:
    with closed(node.directory / folder), pytest.raises(Refusal) as caught:
        prepare.prepare(node.request("prepare"), b"")
    assert str(caught.value) == (
        f"cannot be used by the account that Ansible works as there: {node.directory}/env/bin/python or a folder "
        "above it is closed to it; chmod it"
    )


def test_a_look_changes_nothing(node: LocalNode, tmp_path: Path) -> None:
    before = sorted(node.directory.rglob("*"))
    node.ask("prepare", code(tmp_path / "code", ""), dry=True)
    node.ask("setup_facts")
    assert sorted(node.directory.rglob("*")) == before


@pytest.mark.parametrize("damage", ["other content", "half of it", "garbage", "nothing"])
def test_a_damaged_bundle_leaves_nothing(node: LocalNode, tmp_path: Path, damage: str) -> None:
    bundle = code(tmp_path / "code", "print(1)\n" * 500)
    payload = {
        "other content": code(tmp_path / "other", "print(2)").content,
        "half of it": bundle.content[: len(bundle.content) // 2],
        "garbage": b"\0" * 100,
        "nothing": b"",
    }[damage]
    refusal = "node0 received a bundle that does not match its SHA-256; run the playbook again"
    if payload:
        assert refused(node, "prepare", bundle, payload) == refusal
        assert node.jobs == list((node.directory / "bundles").iterdir()) == []
    node.ask("prepare", bundle)
    assert refused(node, "receive_code", bundle, payload) == refusal
    assert node.jobs == list((node.directory / "bundles").iterdir()) == []
    assert node.ask("prepare", bundle, bundle.content)["has_bundle"]
    assert (node.job_dir() / "work" / "train.py").read_text() == "print(1)\n" * 500
    assert node.ask("prepare", bundle, payload)["has_bundle"], "what is there is not stored again"
    if payload:  # as by a try that was given up when half of it was sent, and that ends after the next one
        (node.directory / "bundles" / bundle.sha256).unlink()
        holder = node.supervisor()
        assert refused(node, "prepare", bundle, payload) == refusal
        assert holder and node.supervisor() == holder


def test_a_job_larger_than_the_disk(node: LocalNode) -> None:
    message = refused(node, "prepare", size=2**60)
    assert re.fullmatch(re.escape("node0 " + full(node.directory, 0, 2**41 + 16)).replace("\\(0", r"\(\d+"), message)
    assert node.jobs == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "thunderhead-test", str(place)]
    if not IS_ROOT or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_while_the_code_arrives(tiny_disk: Path) -> None:
    node = LocalNode(tiny_disk / "node").set_up()
    data = os.urandom(25 * 2**20)
    node.ask("prepare")
    with pytest.raises(NodeError) as caught:
        node.ask(
            "receive_code",
            payload=zlib.compress(data, 0),
            bundle=Bundle(hashlib.sha256(data).hexdigest(), b"", 0, None, None),
        )
    assert str(caught.value) == (
        f"node0 has too little disk space in {node.directory} (No space left on device); free some there, or move "
        "cluster_dir to a larger disk"
    )
    assert node.jobs == list((node.directory / "bundles").iterdir()) == []


@pytest.mark.parametrize("kind", [b"file", b"link"])
def test_a_disk_to_which_two_names_are_one(node: LocalNode, kind: bytes) -> None:
    """As one does to which case means nothing; here the names are the same."""
    header = b"\0".join([b"Net.py", b"file", b"0", b"Net.py", kind, b"0"])
    data = b"%d\n%b" % (len(header), header)
    node.ask("prepare")
    bundle = Bundle(hashlib.sha256(data).hexdigest(), b"", 0, None, None)
    with pytest.raises(NodeError) as caught:
        node.ask("receive_code", payload=zlib.compress(data), bundle=bundle)
    assert str(caught.value) == (
        "node0 has a disk that does not distinguish Net.py of the project from another of its files, whose name "
        "differs in case only; rename one, or set cluster_dir to a folder on another disk"
    )
    assert node.jobs == []


def test_a_disk_that_is_full_before(tiny_disk: Path, tmp_path: Path) -> None:
    node = LocalNode(tiny_disk / "node").set_up()
    (tiny_disk / "data").write_bytes(bytes(10 * 2**20))
    message = refused(node, "prepare", code(tmp_path / "code", ""))
    assert re.fullmatch(re.escape("node0 " + full(node.directory, 0, 16)).replace("\\(0", r"\((9|10)"), message)


def test_discard_undoes_prepare(node: LocalNode, tmp_path: Path) -> None:
    node.prepare(code(tmp_path / "code", ""))
    assert node.ask("discard") == {}
    assert node.jobs == []
    assert node.ask("discard") == {}, "again, or of a job that never was"


def test_discard_leaves_a_job_alone_that_has_started(node: LocalNode, tmp_path: Path) -> None:
    node.run("print(1)", tmp_path / "code")
    node.ask("discard")
    assert node.wait()[1] == "1\n"


def test_code_has_a_time_that_tells_it_from_what_a_job_wrote(node: LocalNode, tmp_path: Path) -> None:
    node.prepare(code(tmp_path / "code", ""))
    assert (node.job_dir() / "work" / "train.py").stat().st_mtime == working_directory.BUNDLE_MTIME


def test_a_node_of_several_listens_for_the_others(node: LocalNode, tmp_path: Path) -> None:
    port = node.ask("prepare", code(tmp_path / "code", ""), plan={**PLAN, "world_size": 2})["gang_port"]
    with socket.create_connection(("127.0.0.1", port)):
        pass
    node.ask("discard")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_what_a_crashed_job_left_running_is_ended(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", DAEMON + SLEEP)
    node.start(bundle)
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not node.supervisor())
    node.ask("prepare", bundle, job="job-2", dry=True)
    assert alive(daemon_of(node)), "a look changes nothing"
    node.prepare(bundle, "job-2")
    assert not alive(daemon_of(node))
    assert processes.marked(str(node.job_dir())) == []


def test_a_preparation_that_is_taken_back_does_not_undo_the_next(node: LocalNode, tmp_path: Path) -> None:
    """Where systemd is slow to take the supervisor in, the first agent still runs when the job is prepared again."""
    slow = (
        "if unit:\n        move_to_unit(unit, pids)",
        "if True:\n        time.sleep(1.5)\n        raise Refusal('has no such process')",
    )
    bundle = code(tmp_path / "code", "print('trained')")
    first = dataclasses.replace(node, connection=Altered(slow))
    with contextlib.suppress(NodeError), ThreadPoolExecutor() as pool:
        lost = pool.submit(first.ask, "prepare", bundle)
        until(lambda: node.supervisor() is not None)
        time.sleep(0.5)
        node.prepare(bundle)
        lost.result()
    assert (node.jobs, bool(node.supervisor())) == (["job-1"], True)
