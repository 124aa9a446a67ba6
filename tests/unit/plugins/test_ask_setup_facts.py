# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import active_firewalls, machine, ports
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.ask_setup_facts import inspect_cluster
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel
from local_nodes import Altered, Connection, LocalNode, free_port


def three(tmp_path: Path) -> list[LocalNode]:
    port = free_port()
    return [LocalNode(tmp_path / f"node{n}", f"node{n}", f"127.0.0.{n + 1}", port) for n in range(3)]


def opener(nodes: list[LocalNode], reached: list[str]) -> Callable[[str], Channel]:
    def open_channel(host: str) -> Channel:
        reached.append(host)
        return next(node for node in nodes if node.host == host).channel()

    return open_channel


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder in reach of every account, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_the_whole_cluster_changes_nothing(open_path: Path) -> None:
    tmp_path = open_path
    nodes, reached = three(tmp_path), list[str]()
    nodes[1].user = "train"
    for node in nodes:
        node.variables = {"A": node.host}
    settings = [node.settings() for node in nodes]
    found = inspect_cluster(NodeGroup(settings, opener(nodes, reached)), ["node0", "node1", "node2"])
    assert found == {
        "warnings": [],
        "world_size": 3,
        "head": "node0",
        "master_addr": "127.0.0.1",
        "master_port": nodes[0].master_port,
        "addresses": ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        "on_loopback": True,
        "peers": ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        "nodes": {
            f"node{rank}": {
                "place": {
                    "rank": rank,
                    "world_size": 3,
                    "master_addr": "127.0.0.1",
                    "master_port": nodes[0].master_port,
                    "interface": "lo",
                },
                "address": f"127.0.0.{rank + 1}",
                "directory": str(tmp_path / f"node{rank}"),
                "user": "train" if rank == 1 else "",
                "port_range": list(ports.ephemeral_ports()),
                "firewalls": active_firewalls.managed_firewalls(),
                "job": "",
            }
            for rank in range(3)
        },
    }
    assert sorted(reached) == ["node0", "node1", "node2"]
    assert list(tmp_path.iterdir()) == []


def test_those_left_out_keep_their_rank_and_are_not_asked(tmp_path: Path) -> None:
    nodes, reached = three(tmp_path), list[str]()
    found = inspect_cluster(NodeGroup([node.settings() for node in nodes], opener(nodes, reached)), ["node2"])
    assert (found["world_size"], found["head"], found["addresses"]) == (
        3,
        "node0",
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
    )
    assert {host: node["place"]["rank"] for host, node in found["nodes"].items()} == {"node2": 2}
    assert reached == ["node2"]


def test_those_left_out_are_asked_for_an_address_that_nobody_wrote_down(tmp_path: Path) -> None:
    own = machine.default_route_address()
    if own is None:
        pytest.skip("this machine has no network")
    nodes, reached = three(tmp_path), list[str]()
    settings = [node.settings() for node in nodes]
    settings[1] = dataclasses.replace(settings[1], address=None)
    found = inspect_cluster(NodeGroup(settings, opener(nodes, reached)), ["node0"])
    assert found["addresses"] == ["127.0.0.1", own, "127.0.0.3"]
    assert set(found["peers"]) >= set(found["addresses"])
    assert sorted(reached) == ["node0", "node1"]
    assert list(found["nodes"]) == ["node0"]
    assert found["on_loopback"]
    assert not inspect_cluster(NodeGroup(settings, opener(nodes, reached)), ["node0", "node1"])["on_loopback"]


def test_every_node_that_cannot_is_named(tmp_path: Path) -> None:
    class Gone(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            return 255, b"", b"ssh: connect to host 198.18.0.3 port 22: No route to host\r\n"

    nodes = three(tmp_path)
    nodes[1].python = "/no/such/python"
    nodes[2].connection = Gone()
    with pytest.raises(JobError) as caught:
        inspect_cluster(
            NodeGroup([node.settings() for node in nodes], opener(nodes, [])), [node.host for node in nodes]
        )
    assert str(caught.value) == (
        "node1 has no usable Python: /no/such/python was not found; install Python 3.10 to 3.13 there, or set "
        "ansible_python_interpreter for it in the inventory\n"
        "node2 is unreachable: ssh: connect to host 198.18.0.3 port 22: No route to host\n"
        "Nothing was changed on any node."
    )


def test_the_port_matters_on_the_head_only(tmp_path: Path) -> None:
    first, last = ports.ephemeral_ports()
    nodes = three(tmp_path)
    nodes[0].master_port, nodes[1].master_port = nodes[1].master_port, last
    hosts = [node.host for node in nodes]
    assert (
        inspect_cluster(NodeGroup([node.settings() for node in nodes], opener(nodes, [])), hosts)["master_port"]
        == nodes[0].master_port
    )
    nodes[0].master_port = last
    with pytest.raises(JobError) as caught:
        inspect_cluster(NodeGroup([node.settings() for node in nodes], opener(nodes, [])), hosts)
    assert str(caught.value) == (
        f"node0 uses ports {first} to {last} for outgoing connections (net.ipv4.ip_local_port_range), and MASTER_PORT "
        f"is {last}, so another program can take it; set cluster_master_port in the inventory to a port below {first}. "
        "Nothing was changed on any node."
    )


@pytest.mark.parametrize(
    ("address", "pattern"),
    [
        (
            "127.0.0.1",
            r"node0 and node1 have the same address 127\.0\.0\.1, but every node needs its own; fix ansible_host or "
            r"cluster_address in the inventory, or remove one of them",
        ),
        (
            "198.18.255.254",
            r"node1 does not hold the address 198\.18\.255\.254 on any interface \(it has: .+\); set cluster_address "
            r"for it in the inventory to the address its peers reach\. Nothing was changed on any node\.",
        ),
    ],
)
def test_addresses_that_cannot_be(tmp_path: Path, address: str, pattern: str) -> None:
    nodes, reached = three(tmp_path), list[Any]()
    nodes[1].address = address
    with pytest.raises(JobError) as caught:
        inspect_cluster(
            NodeGroup([node.settings() for node in nodes], opener(nodes, reached)), [node.host for node in nodes]
        )
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)
    assert bool(reached) is (address != "127.0.0.1"), "what the inventory shows costs no connection"


def test_two_nodes_with_one_folder(tmp_path: Path) -> None:
    nodes, reached = three(tmp_path), list[str]()
    nodes[2].directory = tmp_path / "link" / "below"
    (tmp_path / "link").symlink_to(tmp_path)
    nodes[0].directory = tmp_path / "below"
    with pytest.raises(JobError) as caught:
        inspect_cluster(
            NodeGroup([node.settings() for node in nodes], opener(nodes, reached)), [node.host for node in nodes]
        )
    assert str(caught.value) == (
        f"node0 and node2 have the same folder as their cluster_dir, {tmp_path}/link/below, because they are the same "
        "machine or share that disk, but each needs its own; set cluster_dir in the inventory to a folder on a local "
        f"disk, or to one per host: {tmp_path}/link/below/{{{{ inventory_hostname }}}}. Nothing was changed on any node"
    )
    found = inspect_cluster(NodeGroup([node.settings() for node in nodes], opener(nodes, reached)), ["node0", "node1"])
    assert list(found["nodes"]) == ["node0", "node1"]


def test_a_session_that_ends_jobs_is_told_of(tmp_path: Path) -> None:
    """What a result calls warnings is shown by Ansible itself."""
    nodes = three(tmp_path)
    nodes[1].connection = Altered(('"session": end_of_session()', '"session": "ends every process with its session"'))
    found = inspect_cluster(
        NodeGroup([node.settings() for node in nodes], opener(nodes, [])), [node.host for node in nodes]
    )
    assert found["warnings"] == ["node1 ends every process with its session"]


def test_accounts_that_cannot_change_each_others_files_are_told_of(tmp_path: Path) -> None:
    """M11."""
    nodes = three(tmp_path)
    for number, node in enumerate(nodes[:2]):
        disk = ('"network_disks": network_disks()', '"network_disks": ["nfs4 nas:/home"]')
        node.connection = Altered(disk, ('"uid": uid_of(request["user"])', f'"uid": {1000 + number}'))
    found = inspect_cluster(
        NodeGroup([node.settings() for node in nodes], opener(nodes, [])), [node.host for node in nodes]
    )
    assert found["warnings"] == [
        "the account that jobs run as has uid 1000 (node0), 1001 (node1), and these nodes share a disk (nfs4 "
        "nas:/home): what one of them writes there, the others may not change; give it the same uid everywhere "
        "(usermod --uid), or set job_user in the inventory to an account that has one"
    ]
