# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real supervisors of several nodes, whose job nobody follows."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from local_nodes import NO_PYTHON, SLEEP, Altered, LocalNode, by_rank, code, gang_of, until


def launched(nodes: list[LocalNode], folder: Path, script: str, node_timeout_seconds: int = 5) -> Launch:
    for node in nodes:
        node.connection = Altered(("RECONNECT_SECONDS = 5.0", "RECONNECT_SECONDS = 1.0"))
    launch = gang_of(nodes, code(folder / "code", script), node_timeout_seconds=node_timeout_seconds)
    launch.prepare()
    launch.start()
    until(lambda: all((node.job_dir() / "spec.json").exists() for node in nodes))
    return launch


def ended(*nodes: LocalNode) -> list[tuple[str, str]]:
    """Wait until the job has ended on these nodes; return state and reason of each."""
    until(lambda: all("ended" in node.state() for node in nodes))
    return [(node.state()["state"], node.state().get("because", "")) for node in nodes]


def freed(*nodes: LocalNode) -> None:
    until(lambda: not any(node.supervisor() for node in nodes))


def test_a_job_s_user_who_cannot_read_the_supervisor_s_python(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Its library may lie in a home that is closed to that user: all that is needed has been imported before."""
    become = "        user.become()\n        os.umask(0o022)\n"
    for node in nodes:
        node.connection = Altered((become, f"{become}        __import__('sys').path.clear()\n"))
    launch = gang_of(nodes, code(tmp_path / "code", by_rank("time.sleep(600)", "time.sleep(2); raise SystemExit(3)")))
    launch.prepare()
    launch.start()
    assert ended(*nodes) == [("stopped", "rank 1 (node1) exited with code 3"), ("failed", "")]
    freed(*nodes)


def test_the_head_keeps_the_gang_s_state(three: list[LocalNode], tmp_path: Path) -> None:
    launched(three, tmp_path, by_rank("time.sleep(3)", "time.sleep(0.5)", "time.sleep(3)"))
    path = three[0].job_dir() / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text()).get("unreached") == [])
    until(
        lambda: [one["state"] for one in json.loads(path.read_text())["ranks"]] == ["running", "succeeded", "running"]
    )
    assert ended(*three) == [("succeeded", "")] * 3
    freed(*three)
    last = json.loads(path.read_text())
    assert [one["state"] for one in last["ranks"]] == ["succeeded"] * 3
    assert [one["met"] for one in last["ranks"]] == [False] * 3, "no script took part in a rendezvous"
    assert (last["ending"], last["notices"]) == (False, [])
    assert not any((node.job_dir() / "gang.json").exists() for node in three[1:])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("seconds", [0, 1.5])
def test_a_rank_that_fails_ends_the_others(three: list[LocalNode], tmp_path: Path, rank: int, seconds: float) -> None:
    scripts = ["time.sleep(600)"] * 3
    scripts[rank] = f"time.sleep({seconds}); raise SystemExit(3)"
    launched(three, tmp_path, by_rank(*scripts))
    expected = [("stopped", f"rank {rank} (node{rank}) exited with code 3")] * 3
    expected[rank] = ("failed", "")
    assert ended(*three) == expected
    freed(*three)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_at_once_with_the_usual_delays(nodes: list[LocalNode], tmp_path: Path, rank: int) -> None:
    scripts = ["time.sleep(600)"] * 2
    scripts[rank] = "raise SystemExit(3)"
    launch = gang_of(nodes, code(tmp_path / "code", by_rank(*scripts)))
    launch.prepare()
    launch.start()
    assert ended(nodes[1 - rank]) == [("stopped", f"rank {rank} (node{rank}) exited with code 3")]


def test_a_rank_that_is_killed_ends_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    launched(nodes, tmp_path, by_rank("time.sleep(600)", "time.sleep(0.5); os.kill(os.getpid(), 9)"))
    assert ended(*nodes) == [("stopped", "rank 1 (node1) was killed by SIGKILL"), ("failed", "")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_script_that_cannot_start_ends_the_others(nodes: list[LocalNode], tmp_path: Path, rank: int) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    nodes[rank].connection = Altered(NO_PYTHON)
    launch.prepare()
    launch.start()
    note = "did not start: No such file or directory: /no/such/python"
    assert ended(nodes[rank], nodes[1 - rank]) == [("failed", ""), ("stopped", f"rank {rank} (node{rank}) {note}")]
    assert nodes[rank].state()["error"] == note


def script_of(node: LocalNode) -> int:
    until(lambda: (node.job_dir() / "log").read_text().endswith("\n"))
    return int((node.job_dir() / "log").read_text().split()[0])


def supervisor_of(node: LocalNode) -> int:
    pid = node.supervisor()
    assert pid
    return pid


TELLS = "import os, time\nprint(os.getpid())\ntime.sleep(600)\n"


def joined(nodes: list[LocalNode]) -> None:
    """Wait until every supervisor has its connection to the head's."""
    until(lambda: sockets(supervisor_of(nodes[0])) >= len(nodes))  # the listener and one per peer
    time.sleep(0.3)  # for the proofs


def sockets(pid: int) -> int:
    count = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
    return count


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_supervisor_that_is_killed_ends_the_others(three: list[LocalNode], tmp_path: Path, rank: int) -> None:
    launched(three, tmp_path, TELLS)
    joined(three)
    os.kill(supervisor_of(three[rank]), signal.SIGKILL)
    others = [node for node in three if node is not three[rank]]
    role = ", the head," if rank == 0 else ""
    assert ended(*others) == [("stopped", f"rank {rank} (node{rank}){role} lost its supervisor process")] * 2
    freed(*others)
    assert three[rank].follow(wait_seconds=0)[0]["state"] == "lost"
    os.kill(script_of(three[rank]), signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_supervisor_is_noticed_within_the_node_timeout(
    nodes: list[LocalNode], tmp_path: Path, rank: int
) -> None:
    launched(nodes, tmp_path, TELLS, node_timeout_seconds=1)
    joined(nodes)
    frozen, other = nodes[rank], nodes[1 - rank]
    pid = supervisor_of(frozen)
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        name = "rank 0 (node0), the head," if rank == 0 else "rank 1 (node1)"
        assert ended(other) == [("stopped", f"the node of {name} sent no heartbeat for 1 s")]
        assert 0.7 < time.monotonic() - began < 4
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ended(frozen)[0][0] == "stopped", "once it is back it ends its own part too"
    freed(*nodes)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_supervisor_that_thaws_in_time_has_missed_nothing(nodes: list[LocalNode], tmp_path: Path, rank: int) -> None:
    script = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    launched(nodes, tmp_path, script, node_timeout_seconds=3)
    joined(nodes)
    pid = supervisor_of(nodes[rank])
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)
    assert [node.state()["state"] for node in nodes] == ["running", "running"]
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()
    assert ended(*nodes) == [("succeeded", ""), ("succeeded", "")]
    freed(*nodes)


def test_a_rank_that_ends_well_leaves_the_others_alone(three: list[LocalNode], tmp_path: Path) -> None:
    script = "while not os.path.exists('go'): time.sleep(0.01)"
    launched(three, tmp_path, by_rank(script, "time.sleep(0.5)", script), node_timeout_seconds=1)
    assert ended(three[1]) == [("succeeded", "")]
    time.sleep(1.5)
    assert [node.state()["state"] for node in three] == ["running", "succeeded", "running"]
    assert all(node.supervisor() for node in three), "a gang holds its nodes until all of it has ended"
    for node in (three[0], three[2]):
        (node.job_dir() / "work" / "go").touch()
    assert ended(*three) == [("succeeded", "")] * 3
    freed(*three)


def test_a_head_that_ends_first_leads_on(three: list[LocalNode], tmp_path: Path) -> None:
    script = "while not os.path.exists('go'): time.sleep(0.01)\nraise SystemExit(3)"
    launched(three, tmp_path, by_rank("time.sleep(0.7)", script, "time.sleep(600)"))
    assert ended(three[0]) == [("succeeded", "")]
    assert supervisor_of(three[0])
    (three[1].job_dir() / "work" / "go").touch()
    assert ended(*three) == [
        ("succeeded", ""),
        ("failed", ""),
        ("stopped", "rank 1 (node1) exited with code 3"),
    ]
    freed(*three)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_on_request_at_one_node_reaches_all(three: list[LocalNode], tmp_path: Path, rank: int) -> None:
    launched(three, tmp_path, TELLS)
    joined(three)
    three[rank].ask("stop", grace_seconds=2)
    assert ended(*three) == [("stopped", "")] * 3
    freed(*three)


def test_the_reason_of_the_controller_reaches_all(nodes: list[LocalNode], tmp_path: Path) -> None:
    launched(nodes, tmp_path, TELLS)
    joined(nodes)
    nodes[1].ask("stop", grace_seconds=2, because="it stands still")
    assert ended(*nodes) == [("stopped", "it stands still")] * 2


def test_ranks_that_cannot_reach_each_other_are_not_judged(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    for node in nodes:
        node.connection = Altered(
            ("LEAVE_SECONDS = 3.0", "LEAVE_SECONDS = 1.0"),
        )
    launch = gang_of(nodes, code(tmp_path / "code", script), node_timeout_seconds=1)
    launch.prepare()
    with socket.create_server(("127.0.0.1", 0)) as nowhere:
        for reply in launch._prepared.values():
            reply["gang_port"] = nowhere.getsockname()[1]
    launch.start()
    until(lambda: all(node.state() for node in nodes))
    time.sleep(2)
    assert [node.state()["state"] for node in nodes] == ["running", "running"]
    for node in nodes:
        (node.job_dir() / "work" / "go").touch()
    assert ended(*nodes) == [("succeeded", "")] * 2
    freed(*nodes)


def test_strangers_at_a_real_head(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(nodes, tmp_path, TELLS)
    joined(nodes)
    port = launch._prepared["node0"]["gang_port"]
    crowd = [socket.create_connection(("127.0.0.1", port)) for _number in range(40)]
    for one in crowd[::2]:
        one.sendall(b"thunderhead-gang-1 " + bytes(16).hex().encode() + b'\n15 0 {"join": 1}\n')
    for one in crowd[1::4]:
        one.sendall(bytes(range(256)) * 50)
    time.sleep(0.5)
    assert [node.state()["state"] for node in nodes] == ["running", "running"]
    assert "key" not in json.dumps([node.state() for node in nodes])
    os.kill(script_of(nodes[1]), signal.SIGKILL)
    assert ended(*nodes)[0] == ("stopped", "rank 1 (node1) was killed by SIGKILL")
    for one in crowd:
        one.close()


def test_the_key_is_in_no_file_and_no_environment(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = launched(nodes, tmp_path, "import os, time\nprint(os.environ, flush=True)\ntime.sleep(600)\n")
    joined(nodes)
    key = launch._gang_key.encode()
    files = [path for node in nodes for path in node.directory.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if key in path.read_bytes()] == []
