# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.prepare import listen
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import watch_other_nodes as watching
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.watch_other_nodes import (
    Head,
    Peer,
    Watch,
    make_proof,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from local_nodes import SLEEP, Altered, LocalNode, by_rank, code, gang_of, until

KEY = bytes(range(32))

# ------------------------------------------------------------------------------------ the messages, without supervisors


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECONNECT_SECONDS", "LAST_MESSAGE_SECONDS", "PROOF_SECONDS"):
        monkeypatch.setattr(watching, name, 0.4)
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(watching, "READ_SECONDS", 0.2)


class Place:
    """A head, its peers, and strangers, all in this process."""

    def __init__(self, timeout: float = 5, world_size: int = 3) -> None:
        listener = listen("127.0.0.1")
        self.port = listener.getsockname()[1]
        self.timeout = timeout
        self.head = Head(listener, KEY, timeout, world_size)
        self.listener = self.head._listener
        self.peers: list[Peer] = []
        self.strangers: list[socket.socket] = []

    def peer(self, rank: int, key: bytes = KEY) -> Peer:
        name, head_name = f"rank {rank} (node{rank})", "rank 0 (node0)"
        self.peers.append(Peer("127.0.0.1", self.port, key, self.timeout, rank, name, head_name))
        return self.peers[-1]

    def stranger(self) -> socket.socket:
        self.strangers.append(socket.create_connection(("127.0.0.1", self.port), timeout=5))
        return self.strangers[-1]

    def pass_time(self, condition: Callable[[], Any], *asleep: Watch) -> None:
        """Let all but those asleep wait in turn until the condition holds."""

        def turn() -> bool:
            for watch in (self.head, *self.peers):
                if watch not in asleep:
                    watch.wait(0.005)
            return bool(condition())

        until(turn)

    def seconds(self, seconds: float, *asleep: Watch) -> None:
        end = time.monotonic() + seconds
        self.pass_time(lambda: time.monotonic() > end, *asleep)

    def join(self) -> None:
        self.pass_time(lambda: all(peer._welcome for peer in self.peers))

    def verdicts(self) -> list[str | None]:
        return [watch.verdict for watch in (self.head, *self.peers)]

    def vanish(self, watch: Watch) -> None:
        """End as a process that is killed: all its sockets are closed."""
        if watch is self.head:
            self.listener.close()
            for connection in self.head._connections:
                connection.socket.close()
        elif isinstance(watch, Peer) and watch._connection:
            watch._connection.socket.close()

    def close(self) -> None:
        for one in (self.listener, *self.strangers):
            one.close()
        for connection in [*self.head._connections, *(peer._connection for peer in self.peers)]:
            if connection:
                connection.close()


@pytest.fixture
def place(_hasty: None) -> Iterator[Place]:
    one = Place()
    yield one
    one.close()


def leaving(watch: Watch, stop_requested: Callable[[], bool] = lambda: False) -> threading.Thread:
    thread = threading.Thread(target=watch.leave, args=(stop_requested,))
    thread.start()
    return thread


@pytest.mark.parametrize("who", [0, 1, 2])
@pytest.mark.parametrize("why", ["rank 2 (node2) exited with code 1", "", "a\ttab\nand ü"])
def test_one_message_ends_it_everywhere(place: Place, who: int, why: str) -> None:
    place.peer(1)
    place.peer(2)
    place.join()
    (place.head, *place.peers)[who].end(why)
    place.pass_time(lambda: None not in place.verdicts())
    received = why.replace("\n", " ").partition("\t")[0]
    assert [verdict for number, verdict in enumerate(place.verdicts()) if number != who] == [received, received]


def test_the_first_verdict_stays(place: Place) -> None:
    place.peer(1)
    place.join()
    place.peers[0].end("first")
    place.pass_time(lambda: place.head.verdict)
    place.head.end("second")
    place.seconds(0.1)
    assert place.verdicts() == ["first", "first"]


def test_a_verdict_waits_for_those_who_come_late(place: Place) -> None:
    place.head.end("why")
    place.peer(1)
    place.pass_time(lambda: place.peers[0].verdict == "why")


def test_a_verdict_of_one_who_comes_late(place: Place) -> None:
    place.peer(1)
    place.join()
    place.peer(2).end("why")
    place.pass_time(lambda: place.verdicts() == ["why"] * 3)


def test_signs_of_life_keep_it_going(_hasty: None) -> None:
    place = Place(timeout=0.5)
    place.peer(1)
    place.join()
    place.seconds(1.5)
    assert place.verdicts() == [None, None]
    place.close()


def test_a_silent_peer(_hasty: None) -> None:
    place = Place(timeout=0.6)
    first, second = place.peer(1), place.peer(2)
    place.join()
    place.seconds(0.3, second)
    place.seconds(0.2)
    assert place.verdicts() == [None, None, None], "back in time"
    place.pass_time(lambda: place.head.verdict and first.verdict, second)
    assert place.head.verdict == first.verdict == "the node of rank 2 (node2) sent no heartbeat for 1 s"
    place.seconds(0.1)
    assert second.verdict == place.head.verdict, "it learns it when it is back"
    place.close()


def test_a_silent_head(_hasty: None) -> None:
    place = Place(timeout=0.6)
    peer = place.peer(1)
    place.join()
    place.pass_time(lambda: peer.verdict, place.head)
    assert peer.verdict == "the node of rank 0 (node0), the head, sent no heartbeat for 1 s"
    place.close()


def test_a_peer_that_vanished(place: Place) -> None:
    gone = place.peer(1)
    place.peer(2)
    place.join()
    place.vanish(gone)
    place.pass_time(lambda: place.head.verdict and place.peers[1].verdict, gone)
    assert place.peers[1].verdict == "rank 1 (node1) lost its supervisor process"


def test_the_head_vanished(place: Place) -> None:
    peer = place.peer(1)
    place.join()
    place.vanish(place.head)
    place.pass_time(lambda: peer.verdict, place.head)
    assert peer.verdict == "rank 0 (node0), the head, lost its supervisor process"


@pytest.mark.parametrize("side", ["head", "peer"])
def test_a_connection_that_broke_is_made_again(place: Place, side: str) -> None:
    peer = place.peer(1)
    place.join()
    connection = peer._connection if side == "peer" else place.head._members[1].connection
    assert connection
    connection.socket.shutdown(socket.SHUT_RDWR)
    place.pass_time(lambda: peer._connection is not connection and peer._welcome)
    place.seconds(0.6)
    assert place.verdicts() == [None, None]
    place.head.end("why")
    place.pass_time(lambda: peer.verdict == "why")


def test_a_peer_that_ended_well_leaves_the_others_alone(place: Place) -> None:
    first, _second = place.peer(1), place.peer(2)
    place.join()
    first.leave(lambda: False)
    place.peers.remove(first)
    place.seconds(0.8)
    assert place.verdicts() == [None, None]
    assert place.head._members[1].done


def test_the_head_lives_on_until_the_others_have_ended(place: Place) -> None:
    first, second = place.peer(1), place.peer(2)
    place.join()
    thread = leaving(place.head)
    threads = [leaving(first)]
    threads[0].join(5)
    time.sleep(0.6)
    assert thread.is_alive()
    second.end("rank 2 (node2) exited with code 1")
    second.leave(lambda: False)
    thread.join(5)
    assert not thread.is_alive()
    assert place.head.verdict == "rank 2 (node2) exited with code 1"


def test_a_head_that_waits_for_the_others_is_stopped_on_request(place: Place) -> None:
    peer = place.peer(1)
    place.join()
    requested = threading.Event()
    thread = leaving(place.head, requested.is_set)
    for _turn in range(20):
        peer.wait(0.01)
    requested.set()
    until(lambda: peer.wait(0.01) or peer.verdict == "")
    peer.leave(lambda: False)
    thread.join(5)
    assert not thread.is_alive()


def test_the_last_word_of_a_head_that_ends_early_reaches_those_who_come_later(place: Place) -> None:
    """Supervisors take up the watch a second after the start: that must not be too late."""
    place.head.end("rank 0 (node0) exited with code 1")
    thread = leaving(place.head)
    time.sleep(0.1)
    peer = place.peer(1)
    until(lambda: peer.wait(0.01) or peer.verdict, 3)
    assert peer.verdict == "rank 0 (node0) exited with code 1"
    thread.join(5)


def test_without_a_network_nobody_is_judged(_hasty: None) -> None:
    place = Place(timeout=0.3)
    place.listener.close()
    peer = place.peer(1)
    until_when = time.monotonic() + 1
    while time.monotonic() < until_when:
        peer.wait(0.01)
    assert peer.verdict is None
    began = time.monotonic()
    peer.leave(lambda: False)
    assert time.monotonic() - began < 2


def test_an_address_that_does_not_answer(_hasty: None) -> None:
    """A firewall that drops: here a listener whose backlog is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    filling = [socket.socket() for _number in range(4)]
    for one in filling:
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
    peer = Peer("127.0.0.1", listener.getsockname()[1], KEY, 0.3, 1, "rank 1 (n)", "rank 0 (m)")
    end = time.monotonic() + 1
    while time.monotonic() < end:
        peer.wait(0.01)
    assert peer.verdict is None
    peer.leave(lambda: False)
    for one in (listener, *filling):
        one.close()


# ------------------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize("key", [bytes(32), KEY[:-1], b""])
def test_a_peer_with_another_key(place: Place, key: bytes) -> None:
    other = place.peer(1, key)
    other.end("I am evil")
    place.peer(2)
    place.pass_time(lambda: place.peers[1]._welcome)
    place.seconds(0.3)
    assert place.head.verdict is None
    assert list(place.head._members) == [2]
    assert not other._welcome


def test_a_head_with_another_key(_hasty: None) -> None:
    place = Place()
    place.head._key = bytes(32)
    peer = place.peer(1)
    place.head.end("I am evil")
    place.seconds(0.5)
    assert peer.verdict is None and peer._last_message is None
    place.close()


def test_a_head_that_cannot_prove_itself_says_nothing(_hasty: None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    peer = Peer("127.0.0.1", listener.getsockname()[1], KEY, 5, 1, "rank 1 (n)", "rank 0 (m)")
    peer.wait(0.01)
    fake = listener.accept()[0]
    fake.sendall(b"end\tI am evil\nwelcome\tno\nend\tI am evil\nhello\tabc\n\n\t\t\nalive\n")
    for _turn in range(20):
        peer.wait(0.01)
    assert peer.verdict is None and peer._last_message is None
    for one in (fake, listener):
        one.close()


def member(rank: int, key: bytes, nonce: str, name: str = "x") -> bytes:
    return f"join\t{rank}\t{name}\tn\t{make_proof(key, 'peer', [nonce, 'n'], f'{rank} {name}')}\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        b"end\tI am evil\n",
        b"done\n",
        b"join\n",
        b"join\t1\tx\tn\t\n",
        b"join\t1\tx\tn\t" + b"0" * 64 + b"\nend\tI am evil\n",
        b"join\t-1\tx\tn\t" + b"0" * 64 + b"\n",
        b"join\t\xc2\xb2\tx\tn\t" + b"0" * 64 + b"\n",
        b"\n\n\n",
        bytes(range(256)) * 100,
        b"x" * 100_000,
        b"\xff\xfe\n" * 10_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda data: ascii(data[:20]),
)
def test_what_strangers_send(place: Place, data: bytes) -> None:
    place.peer(1)
    place.join()
    stranger = place.stranger()
    stranger.settimeout(0.1)
    with contextlib.suppress(OSError):  # its connection may be closed before it has sent all
        stranger.sendall(data)
    place.seconds(0.2)
    assert place.verdicts() == [None, None]
    assert list(place.head._members) == [1]
    place.seconds(0.5)
    assert len(place.head._connections) == 1, "it was sent away"


def test_a_message_cannot_be_replayed(place: Place) -> None:
    stranger = place.stranger()
    place.pass_time(lambda: place.head._connections)
    old = place.head._connections[0].nonce
    other = place.stranger()
    place.pass_time(lambda: len(place.head._connections) == 2)
    assert stranger.recv(99).decode() == f"hello\t{old}\n"
    other.sendall(member(1, KEY, old))
    place.seconds(0.1)
    assert place.head._members == {}
    stranger.sendall(member(1, KEY, old))
    place.pass_time(lambda: place.head._members)


def test_a_peer_cannot_claim_to_be_the_head(place: Place) -> None:
    """The two sides prove different things, so neither's proof serves for the other."""
    assert make_proof(KEY, "peer", ["a", "b"], "") != make_proof(KEY, "head", ["a", "b"], "")


def test_a_message_that_arrives_byte_by_byte(place: Place) -> None:
    stranger = place.stranger()
    place.pass_time(lambda: place.head._connections)
    for byte in member(1, KEY, place.head._connections[0].nonce):
        stranger.sendall(bytes([byte]))
        place.head.wait(0)
    assert list(place.head._members) == [1]


def test_many_connections_leave_room_for_the_others(place: Place) -> None:
    crowd = [place.stranger() for _number in range(100)]
    place.peer(1)
    place.peer(2)
    open_files = len(os.listdir("/proc/self/fd"))
    place.join()
    assert len(os.listdir("/proc/self/fd")) < open_files + 60
    place.peers[0].end("why")
    place.pass_time(lambda: None not in place.verdicts())
    for one in crowd:
        one.close()


def test_one_that_never_reads_does_not_hold_up_the_others(_hasty: None) -> None:
    place = Place(timeout=60)
    stranger = place.stranger()
    place.pass_time(lambda: place.head._connections)
    stranger.sendall(member(1, KEY, place.head._connections[0].nonce))
    place.peer(2)
    place.join()
    place.pass_time(lambda: len(place.head._members) == 2)
    for _message in range(1000):
        place.head._send("x" * 4000)
    began = time.monotonic()
    place.head.wait(0)
    assert time.monotonic() - began < 1
    place.close()


# ------------------------------------------------------------------------------------- real supervisors, nobody follows


def launched(nodes: list[LocalNode], folder: Path, script: str, node_timeout_seconds: int = 5) -> Launch:
    for node in nodes:
        node.connection = Altered(
            ("WATCH_AFTER_SECONDS = 1", "WATCH_AFTER_SECONDS = 0"), ("RECONNECT_SECONDS = 5", "RECONNECT_SECONDS = 1")
        )
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
    become = "    user.become()\n    os.umask(0o022)\n"
    for node in nodes:
        node.connection = Altered((become, f"{become}    sys.path.clear()\n"))
    launch = gang_of(nodes, code(tmp_path / "code", by_rank("time.sleep(600)", "time.sleep(2); raise SystemExit(3)")))
    launch.prepare()
    launch.start()
    assert ended(*nodes) == [("stopped", "rank 1 (node1) exited with code 3"), ("failed", "")]
    freed(*nodes)


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


def test_a_script_that_cannot_start_ends_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    launch._prepared["node1"]["python"] = "/no/such/python"
    launch.start()
    note = "did not start: No such file or directory: /no/such/python"
    assert ended(*nodes) == [("stopped", f"rank 1 (node1) {note}"), ("failed", "")]
    assert nodes[1].state()["error"] == note


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
    freed(three[1])
    time.sleep(1.5)
    assert [node.state()["state"] for node in three] == ["running", "succeeded", "running"]
    for node in (three[0], three[2]):
        (node.job_dir() / "work" / "go").touch()
    assert ended(*three) == [("succeeded", "")] * 3
    freed(*three)


def test_a_head_that_ends_first_watches_on(three: list[LocalNode], tmp_path: Path) -> None:
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
            ("WATCH_AFTER_SECONDS = 1", "WATCH_AFTER_SECONDS = 0"),
            ("LAST_MESSAGE_SECONDS = 3", "LAST_MESSAGE_SECONDS = 1"),
        )
    launch = gang_of(nodes, code(tmp_path / "code", script), node_timeout_seconds=1)
    launch.prepare()
    with socket.create_server(("127.0.0.1", 0)) as nowhere:
        launch._prepared["node0"]["watch_port"] = nowhere.getsockname()[1]
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
    port = launch._prepared["node0"]["watch_port"]
    crowd = [socket.create_connection(("127.0.0.1", port)) for _number in range(40)]
    for one in crowd[::2]:
        one.sendall(b"end\tI am evil\n")
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
    key = launch._watch_key.encode()
    files = [path for node in nodes for path in node.directory.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if key in path.read_bytes()] == []
