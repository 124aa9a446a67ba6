# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What else goes wrong in networks, each planted on the machines and taken away again."""

from contextlib import AbstractContextManager

import pytest
from defects import Defect, done, filtered
from machines import Cluster, Node, until
from test_defects import alarms, preflight

SETUP = "run: ansible-playbook setup.yml"
NEW = "tcp flags & (syn|ack) == syn"


def one_way(cluster: Cluster) -> AbstractContextManager[None]:
    return filtered(cluster.nodes[2], f"ip saddr {cluster.nodes[1].address} tcp dport 32768-60999 {NEW}")


def closed_master_port(cluster: Cluster) -> AbstractContextManager[None]:
    return filtered(cluster.nodes[0], "tcp dport 29500")


def rejected_master_port(cluster: Cluster) -> AbstractContextManager[None]:
    rule = "table inet planted { chain in { type filter hook input priority -400; tcp dport 29500 reject; }; }"
    return done(cluster.nodes[0], f"nft '{rule}'", "nft delete table inet planted")


def other_mtu(cluster: Cluster) -> AbstractContextManager[None]:
    return done(cluster.nodes[1], "ip link set dev eth0 mtu 1400", "ip link set dev eth0 mtu 1500")


def slow_link(cluster: Cluster) -> AbstractContextManager[None]:
    plant = "tc qdisc add dev eth0 root tbf rate 10mbit burst 64kb latency 50ms"
    return done(cluster.nodes[1], plant, "tc qdisc del dev eth0 root")


def lost_on_the_way_to_head(cluster: Cluster) -> AbstractContextManager[None]:
    return filtered(cluster.nodes[0], f"ip saddr {cluster.nodes[1].address} meta length > 1300")


DEFECTS = {
    "one way only": Defect(
        *(one_way, "reach.ephemeral"), ("node1 gets no answer from node2 (port ", f"a firewall drops it; {SETUP}")
    ),
    "MASTER_PORT closed": Defect(
        *(closed_master_port, "reach.master_port"),
        ("node1, node2 cannot connect to MASTER_PORT 29500 on node0", f"a firewall drops it; {SETUP}"),
    ),
    "MASTER_PORT rejected": Defect(
        *(rejected_master_port, "reach.master_port"),
        ("node1, node2 cannot connect to MASTER_PORT 29500 on node0", f"a firewall rejects it; {SETUP}"),
    ),
    "large packets lost on the way to the head": Defect(
        *(lost_on_the_way_to_head, "reach.mtu"),
        ("node1 gets only small packets through to node0 (port ", "find out how much with ping -M do -s BYTES"),
    ),
    "another MTU": Defect(
        *(other_mtu, "reach.mtu"),
        ("the interfaces' MTUs differ: 1500 (node0, node2), 1400 (node1)", "ip link set dev eth0 mtu BYTES"),
        "warning",
    ),
    "slow link": Defect(
        *(slow_link, "collective.slow_node"),
        ("node1 reaches ", " with its fastest peer, and the median of all nodes' fastest is ", "look at the link"),
        "warning",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect(cluster: Cluster, name: str) -> None:
    defect = DEFECTS[name]
    with defect.plant(cluster):
        status, found = preflight(cluster)
    verdict = found[defect.check]
    assert verdict["status"] == defect.status, verdict
    assert [words for words in defect.words if words not in verdict["sentence"]] == [], verdict["sentence"]
    assert alarms(found).keys() == {defect.check}
    assert status == (2 if defect.status == "failed" else 0)


def running(node: Node) -> str:
    """What runs there as the account of jobs."""
    return node.execute("ps", "--no-headers", "-o", "pid,args", "-u", "thunderhead", check=False)


def test_an_all_reduce_whose_controller_is_killed(cluster: Cluster) -> None:
    playbook = cluster.playbook("preflight.yml", "-e", "skip=software")
    until(lambda: all(cluster.everywhere(running)), "all nodes run the program")
    playbook.kill()
    cluster.disconnect()  # the connections outlive it, for the next one
    until(lambda: not any(cluster.everywhere(running)), "nothing runs any more", 20)
