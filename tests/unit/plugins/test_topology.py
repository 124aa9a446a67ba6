# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import (
    rank_nodes,
    require_distinct,
    require_hosts,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError


def settings(host: str) -> NodeSettings:
    return NodeSettings(host=host, address=None, directory="/opt/thunderhead", master_port=29500, user="", env={})


def located(*hosts: str) -> dict[str, dict[str, str]]:
    return {host: {"address": f"198.18.0.{number}", "interface": f"eth{number}"} for number, host in enumerate(hosts)}


@pytest.mark.parametrize("hosts", [["a"], ["b", "a", "c"], ["gpu-10", "gpu-9", "gpu-1"]])
def test_ranks_follow_the_order_and_are_dense(hosts: list[str]) -> None:
    topology = rank_nodes([settings(host) for host in hosts], located(*reversed(hosts)))
    assert [(node.rank, node.host) for node in topology.nodes] == list(enumerate(hosts))
    assert topology.world_size == len(hosts)
    assert topology.head is topology.nodes[0]
    assert {node.host: {"address": node.address, "interface": node.interface} for node in topology.nodes} == located(
        *reversed(hosts)
    )


@pytest.mark.parametrize(
    ("host", "stem"), [("gpu-1.example.org", "rank0-gpu-1.example.org"), ("a/../b c", "rank0-a_.._b_c")]
)
def test_a_host_in_a_file_name(host: str, stem: str) -> None:
    (node,) = rank_nodes([settings(host)], located(host)).nodes
    assert node.file_stem == stem


def test_hosts_that_do_not_take_part_leave_no_gap() -> None:
    topology = rank_nodes([settings("a"), settings("c")], located("a", "b", "c"))
    assert [(node.rank, node.host) for node in topology.nodes] == [(0, "a"), (1, "c")]


def test_two_hosts_that_turn_out_to_be_one() -> None:
    same = {host: {"address": "198.18.0.7", "interface": "eth0"} for host in "ab"}
    with pytest.raises(JobError) as caught:
        rank_nodes([settings("a"), settings("b")], same)
    assert str(caught.value) == (
        "a and b have the same address 198.18.0.7, but every node needs its own; fix ansible_host or cluster_address "
        "in the inventory, or remove one of them"
    )


@pytest.mark.parametrize(
    ("addresses", "first", "second"),
    [
        ({"a": "198.18.0.1", "b": "198.18.0.2", "c": "198.18.0.1"}, "a", "c"),
        ({"b": "2001:2::1", "a": "2001:2::1"}, "b", "a"),
    ],
)
def test_the_same_address_twice(addresses: dict[str, str], first: str, second: str) -> None:
    with pytest.raises(JobError) as caught:
        require_distinct(addresses)
    assert str(caught.value) == (
        f"{first} and {second} have the same address {addresses[first]}, but every node needs its own; fix "
        "ansible_host or cluster_address in the inventory, or remove one of them"
    )


def test_addresses_that_are_not_known_yet_are_not_the_same() -> None:
    require_distinct({"a": None, "b": None, "c": "198.18.0.1"})


def test_no_host() -> None:
    require_hosts(["a"])
    with pytest.raises(JobError) as caught:
        require_hosts([])
    assert str(caught.value) == (
        "no host is in group cluster; list your machines under cluster: in the inventory (inventory/sample shows how), "
        "or name another inventory with -i"
    )


def test_settings_are_not_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings("a").master_port = 1  # type: ignore[misc]


def test_spares_come_last_and_take_the_ranks_of_others() -> None:
    topology = rank_nodes([settings(host) for host in "abcd"], located(*"abcd"), spares=1)
    assert [node.name for node in topology.nodes] == ["rank 0 (a)", "rank 1 (b)", "rank 2 (c)", "spare d"]
    assert (topology.world_size, topology.nodes[-1].file_stem) == (3, "spare-d")
    assert topology.of_attempt([]) is topology
    later = topology.of_attempt([0, 3, 2])
    assert [node.name for node in later.nodes] == ["rank 0 (a)", "rank 1 (d)", "rank 2 (c)", "spare b"]
    assert [one["rank"] for one in later.ranks] == [0, 1, 2, None]
