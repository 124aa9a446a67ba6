# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import node_facts
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import LARGEST, fit_to_limits
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import (
    preflight_facts as agent_facts,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import trial
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import is_size
from local_nodes import SLEEP, Altered, LocalNode, code, free_port

NODE_ENV = """\
MASTER_ADDR=127.0.0.1
MASTER_PORT=29500
NODE_RANK=0
WORLD_SIZE=2
GLOO_SOCKET_IFNAME=lo
API_KEY='secret; with "quotes"'
"""


def ask(node: LocalNode, **more: Any) -> dict[str, Any]:
    return node.ask("preflight_facts", **{"variables": [], "imports": None, "seconds": 30.0, **more})


def files(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_what_a_node_says(node: LocalNode) -> None:
    (node.directory / "node.env").write_text(NODE_ENV)
    (node.directory / "requirements.txt").write_text("torch==2.13.0\n")
    (node.directory / "env/lib/python3.11/site-packages/torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    before = files(node.directory)
    said = ask(node, master_port=node.master_port)
    assert files(node.directory) == before
    assert said["clock"][0] < said["clock"][1]
    assert said["address"] == {"address": "127.0.0.1", "interface": "lo"}
    assert ["lo", "127.0.0.1", True] in [list(one) for one in said["addresses"]]
    first, last = ephemeral_ports()
    assert first <= said["free_port"] <= last
    assert said["hostname"] == socket.gethostname()
    assert said["node_env"] == {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "NODE_RANK": "0", "WORLD_SIZE": "2"},
        **{"GLOO_SOCKET_IFNAME": "lo"},
    }
    assert "secret" not in str(said)
    assert said["master"] == ["127.0.0.1"]
    assert (said["master_port"], said["job"]) == (None, None)
    assert said["packages"] == {"python": "3.11", "installed": ["torch-2.13.0+cpu"], "locked": "torch==2.13.0\n"}
    assert said["environment"] == {"failed": {}}
    assert said["cpus"] == len(os.sched_getaffinity(0))
    assert 0 < said["memory"]["free"] <= said["memory"]["total"]
    assert said["disk"]["free"] > 0 and said["shm"].keys() == {"size", "free"}
    assert said["limits"]["nofile"] > 0 and said["limits"]["memlock"] != 0


def test_one_machine_under_two_names(nodes: list[LocalNode]) -> None:
    first, second = map(ask, nodes)
    assert first["machine"] == second["machine"]
    assert first["folder"] != second["folder"]
    link = nodes[0].directory.with_name("link")
    link.symlink_to(nodes[0].directory)
    assert ask(LocalNode(link))["folder"] == first["folder"]


def test_whose_disks_and_sessions_are_told(node: LocalNode, tmp_path: Path) -> None:
    """What preflight judges of accounts, network disks and sessions is what the node sees."""
    mounts = tmp_path / "mounts"
    mounts.write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / /shared rw - nfs4 nas:/export rw,vers=4.2\n")
    ends = "ends every process with its session"
    node.connection = Altered(
        ("/proc/self/mountinfo", str(mounts)), ('"session": end_of_session()', f'"session": "{ends}"')
    )
    said = ask(node)
    assert (said["uid"], said["network_disks"], said["session"]) == (os.geteuid(), ["nfs4 nas:/export"], ends)
    node.user = "no-such-account"
    assert ask(node)["uid"] is None


def test_a_node_that_was_never_set_up(tmp_path: Path) -> None:
    said = ask(LocalNode(tmp_path / "nothing", address="198.18.255.254"), imports=trial(None))
    assert said["address"]["problem"].startswith("does not hold the address 198.18.255.254 on any interface")
    assert (said["node_env"], said["master"], said["job"]) == (None, [], None)
    assert said["packages"] == {"python": "", "installed": [], "locked": ""}
    python = tmp_path / "nothing/env/bin/python"
    problem = f"has no environment: there is no {python}; run: ansible-playbook setup.yml"
    assert said["environment"]["problem"] == problem
    assert said["disk"]["free"] > 0


def test_a_port_that_a_stranger_has(node: LocalNode) -> None:
    with socket.create_server(("127.0.0.1", node.master_port)):
        said = ask(node, master_port=node.master_port)
    assert said["master_port"]["by_job"] is False
    assert f"MASTER_PORT {node.master_port} is taken by " in said["master_port"]["problem"]


def test_a_port_that_our_job_has(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    listens = f"import socket\nhere = socket.create_server(('127.0.0.1', {port}))\n{SLEEP}"
    node.start(code(tmp_path / "code", listens))
    while b"ready" not in node.follow()[1]:
        pass
    said = ask(node, master_port=port)
    assert said["job"] == {"id": "job-1", "user": "trainer", "start": "2026-11-22T17:30:00+01:00"}
    assert said["master_port"]["by_job"] is True


def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(name: str, *_arguments: Any, **_more: Any) -> list[Any]:
        if name == "slow":
            time.sleep(5)
        if name == "unknown":
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", ("127.0.1.1", 0)), (0, 0, 0, "", ("127.0.1.1", 0)), (0, 0, 0, "", ("198.18.0.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(agent_facts, "RESOLVE_SECONDS", 0.2)
    began = time.monotonic()
    assert agent_facts._resolve(["slow", "known", "unknown", ""]) == [[], ["127.0.1.1", "198.18.0.7"], [], []]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("limit", "used", "cached", "expected"),
    [
        ("max", "5", 0, (2000, 1000)),
        ("1500", "600", 0, (1500, 900)),
        ("9999999", "1", 0, (2000, 1000)),
        ("1200", "10", 0, (1200, 1000)),
        ("1500", "1500", 700, (1500, 700)),
        ("1500", "1500", None, (1500, 0)),
        ("1500", "1501", 0, (1500, 0)),
        ("1500", "600", 600, (1500, 1000)),
    ],
)
def test_the_memory_of_a_container(
    monkeypatch: pytest.MonkeyPatch, limit: str, used: str, cached: int | None, expected: tuple[int, int]
) -> None:
    kilobyte = 1024
    texts = {
        "/proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n",
        "/sys/fs/cgroup/memory.max": str(int(limit) * kilobyte) if limit.isdigit() else limit,
        "/sys/fs/cgroup/memory.current": str(int(used) * kilobyte),
        "/sys/fs/cgroup/memory.stat": "" if cached is None else f"anon 5\ninactive_file {cached * kilobyte}\n",
    }
    monkeypatch.setattr(agent_facts, "_read", lambda path: texts[path])
    total, free = expected
    assert agent_facts._memory() == {"total": total * kilobyte, "free": free * kilobyte}


@pytest.mark.parametrize(
    ("blocks", "inodes", "expected"),
    [
        (2**43, (100, 2**64 - 1), {"free": LARGEST, "files": None}),  # EFS; CephFS, which counts no free inodes
        (5, (100, 7), {"free": 5 * 2**20, "files": 7}),
        (5, (100, 0), {"free": 5 * 2**20, "files": 0}),
        (5, (0, 0), {"free": 5 * 2**20, "files": None}),
    ],
)
def test_a_disk_without_end(
    monkeypatch: pytest.MonkeyPatch, blocks: int, inodes: tuple[int, int], expected: dict[str, int | None]
) -> None:
    room = SimpleNamespace(f_blocks=blocks, f_bavail=blocks, f_frsize=2**20, f_files=inodes[0], f_favail=inodes[1])
    monkeypatch.setattr(os, "statvfs", lambda _path: room)
    found = fit_to_limits(agent_facts._disk("/"))
    assert found == expected
    sizes = (*found.values(), *fit_to_limits(node_facts.shared_memory()).values())
    assert all(size is None or is_size(size) for size in sizes)


def test_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", absent)
    assert node_facts.shared_memory() == {"size": 0, "free": 0}


def test_limits_are_raised_as_far_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {resource.RLIMIT_MEMLOCK: (8, 64), resource.RLIMIT_NOFILE: (1024, 4096)}

    def set_limit(limit: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > limits[limit][1] or wanted[1] == resource.RLIM_INFINITY:
            raise ValueError("not allowed to raise maximum limit")
        limits[limit] = wanted

    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert node_facts.raise_limits() == 4096
    assert limits == {resource.RLIMIT_MEMLOCK: (64, 64), resource.RLIMIT_NOFILE: (4096, 4096)}
