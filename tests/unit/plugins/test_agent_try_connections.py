# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis import connection_test
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.try_connections import (
    try_connections,
)
from local_nodes import LocalNode, free_port, until


def hosts(count: int) -> dict[str, str]:
    return {f"node{number}": f"127.0.0.{number + 1}" for number in range(count)}


def request(host: str, peers: dict[str, str], port: int | dict[str, int], **more: Any) -> dict[str, Any]:
    job = {"id": "job-1"}
    ports = port if isinstance(port, dict) else dict.fromkeys(peers, port)
    about = {"name": host, "address": peers[host], "interface": "lo", "port": ports[host], "seconds": 20}
    places = {peer: [address, ports[peer]] for peer, address in peers.items()}
    return {"job": job, "user": "", **about, "peers": places, "master": None, "head": None, **more}


def meet(
    peers: dict[str, str], port: int | dict[str, int], absent: tuple[str, ...] = (), **more: Any
) -> dict[str, dict[str, Any]]:
    """What each node says after all have tried at the same time."""
    replies: dict[str, dict[str, Any]] = {}

    def hold(host: str) -> None:
        replies[host] = try_connections(request(host, peers, port, **more), b"")[0]
        replies[host].pop("trips")  # differ each time

    threads = [threading.Thread(target=hold, args=(host,)) for host in peers if host not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


MET = {"failed": {}, "master": None, "taken": None, "mtu": 65536}


def test_nodes_that_meet(nodes: list[LocalNode]) -> None:
    peers = {node.host: node.address for node in nodes}
    port = free_port()
    replies: dict[str, dict[str, Any]] = {}

    def ask(node: LocalNode) -> None:
        replies[node.host] = node.ask("try_connections", **request(node.host, peers, port) | {"job": "job-1"})

    threads = [threading.Thread(target=ask, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for host, other in (("node0", "node1"), ("node1", "node0")):
        median, slowest = replies[host].pop("trips")
        assert slowest == {other: median}
        assert 0 < median < 1e6
    assert replies == {"node0": MET, "node1": MET}


def test_many_nodes() -> None:
    peers = hosts(24)
    assert meet(peers, free_port()) == dict.fromkeys(peers, MET)


def test_nodes_that_listen_at_different_ports() -> None:
    peers = hosts(4)
    ports = {host: free_port() for host in peers}
    assert meet(peers, ports, master=[peers["node0"], free_port()], head="node0") == dict.fromkeys(peers, MET)


def test_a_node_alone() -> None:
    assert meet(hosts(1), free_port()) == {"node0": MET}


def test_nodes_that_come_late() -> None:
    peers = hosts(2)
    port = free_port()
    replies = {}
    early = threading.Thread(target=lambda: replies.update(meet(peers, port, absent=("node1",))))
    early.start()

    def tried() -> bool:  # a refusal behind it, node0 listens
        with socket.socket() as probe:
            return probe.connect_ex((peers["node0"], port)) == 0

    until(tried)
    replies.update(meet(peers, port, absent=("node0",)))
    early.join()
    assert replies == {"node0": MET, "node1": MET}


def test_a_node_that_does_not_come() -> None:
    peers = hosts(3)
    replies = meet(peers, free_port(), absent=("node2",), seconds=1)
    expected = {**MET, "failed": {"node2": "refused"}}
    assert replies == {"node0": expected, "node1": expected}


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """Where nothing answers: the queue of a listener that accepts nothing is full."""
    with socket.create_server(("127.0.0.9", free_port()), backlog=0) as listener:
        fillers = [socket.socket() for _number in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()
        for filler in fillers:
            filler.close()


def test_no_answer(deaf: tuple[str, int]) -> None:
    peers = {"node0": "127.0.0.1", "node1": deaf[0]}
    assert meet(peers, deaf[1], absent=("node1",), seconds=1, master=deaf) == {
        "node0": {**MET, "failed": {"node1": "no answer"}, "master": "no answer"}
    }


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\n", b"x" * 10000, b""])
def test_another_program_does_not_count(said: bytes) -> None:
    peers = hosts(2)
    with socket.create_server((peers["node1"], free_port())) as stranger:
        port = stranger.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    connection = stranger.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        reply = meet(peers, port, absent=("node1",), seconds=1)["node0"]
        stranger.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert reply["failed"] == {"node1": "answered by another program" if said else "no answer"}


def test_strangers_do_not_disturb() -> None:
    peers = hosts(2)
    port = free_port()
    replies: dict[str, Any] = {}
    early = threading.Thread(target=lambda: replies.update(meet(peers, port, absent=("node1",))))
    early.start()
    strangers = []
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9000, b'["thunderhead", "job-2", "node1"]\n', b""):
        stranger = socket.socket()
        until(lambda stranger=stranger: stranger.connect_ex((peers["node0"], port)) in (0, 106))  # EISCONN
        stranger.sendall(words)
        strangers.append(stranger)
    replies.update(meet(peers, port, absent=("node0",)))
    early.join()
    for stranger in strangers:
        stranger.close()
    assert replies == {"node0": MET, "node1": MET}


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other, pytest.raises(Refusal) as caught:
        try_connections(request("node0", hosts(2), other.getsockname()[1]), b"")
    first, last = ephemeral_ports()
    assert first <= caught.value.facts["taken"] <= last
    assert str(caught.value).startswith("cannot listen at 127.0.0.1, port ")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_master(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, free_port()), family=family) as master:
        at = list(master.getsockname()[:2])
        assert meet({"node0": address}, free_port(), master=at) == {"node0": MET}
    refused = meet({"node0": address}, free_port(), master=at, seconds=0.5)["node0"]
    assert refused == {**MET, "master": "refused"}


def test_a_head_that_listens_at_master_port_for_the_meeting() -> None:
    peers = hosts(3)
    port = free_port()
    replies = meet(peers, free_port(), master=[peers["node0"], port], head="node0")
    assert replies == dict.fromkeys(peers, MET)
    with socket.create_server((peers["node0"], port)):  # it is free again
        pass


def test_a_head_that_cannot_listen_at_master_port() -> None:
    peers = hosts(2)
    with socket.create_server((peers["node0"], free_port())) as other:
        replies = meet(peers, free_port(), master=list(other.getsockname()), head="node0", seconds=0.5)
    # What else listens there does not answer.
    assert replies == {"node0": {**MET, "taken": "Address already in use"}, "node1": {**MET, "master": "no answer"}}


def test_a_head_whom_not_all_find_at_master_port_stays(deaf: tuple[str, int]) -> None:
    peers = hosts(2)
    port = free_port()
    replies: dict[str, Any] = {}
    head = threading.Thread(
        target=lambda: replies.update(
            meet(peers, port, absent=("node1",), master=[peers["node0"], free_port()], head="node0", seconds=2)
        )
    )
    head.start()
    replies.update(meet(peers, port, absent=("node0",), master=deaf, head="node0", seconds=1))
    head.join()
    assert replies == {"node0": MET, "node1": {**MET, "master": "no answer"}}


def only_hello() -> dict[str, Any]:
    """What node0 says after it has met one that says hello, and not that the large packet has arrived."""
    peers = hosts(2)
    port = free_port()
    with socket.create_server((peers["node1"], port)) as peer:
        replies: dict[str, Any] = {}
        thread = threading.Thread(target=lambda: replies.update(meet(peers, port, absent=("node1",), seconds=1)))
        thread.start()
        connection, _address = peer.accept()
        connection.sendall(b'["thunderhead", "job-1", "node1"]\n')
        thread.join()
        connection.close()
    return dict(replies["node0"])


# On loopback no packet is lost; containers whose link loses the large ones are in tests/preflight.
def test_large_packets_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_test, "has_arrived", lambda connection: False)
    assert only_hello() == {**MET, "failed": {"node1": "only small packets"}}


def test_a_peer_that_is_too_busy_to_say_that_they_arrived() -> None:
    assert only_hello() == {**MET}


def test_a_peer_of_a_family_that_this_node_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *more: Any, **others: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *more, **others)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    peers = {"node0": "127.0.0.1", "node1": "127.0.0.2", "node2": "::1"}
    replies = meet(peers, free_port(), absent=("node2",), seconds=1)
    expected = {**MET, "failed": {"node2": "Address family not supported by protocol"}}
    assert replies == {"node0": expected, "node1": expected}
    with pytest.raises(Refusal) as caught:
        try_connections(request("node2", peers, 47011), b"")
    assert (str(caught.value), caught.value.facts) == (
        "cannot listen at ::1, port 47011: Address family not supported by protocol",
        {"taken": 0},
    )


def test_no_file_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    meet(hosts(4), free_port(), absent=("node3",), seconds=0.5)
    assert len(os.listdir("/proc/self/fd")) == len(before)
