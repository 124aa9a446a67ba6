# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""On the way to a node: a bastion that lets few in at once, and an account that does not get its rights there."""

import time
from collections.abc import Iterator

import pytest
from machines import REPOSITORY, Cluster, Node
from measuring import Timeline

BASTION_PORT = 2222


@pytest.fixture
def behind_bastion(cluster: Cluster) -> Iterator[Cluster]:
    """The nodes, behind an sshd of the first one that lets in one connection at once that has not logged in yet."""
    bastion = cluster.nodes[0]
    bastion.execute(
        *("/usr/sbin/sshd", "-p", str(BASTION_PORT), "-o", "MaxStartups=1:100:1", "-o", "PidFile=/run/bastion.pid")
    )
    jump = f"ssh -F {REPOSITORY}/.cache/ssh/config -p {BASTION_PORT} -W [%h]:%p {bastion.address}"
    cluster.disconnect()
    cluster.describe(**{node.name: {"ansible_ssh_common_args": f'-o ProxyCommand="{jump}"'} for node in cluster.nodes})
    yield cluster
    cluster.describe()
    cluster.disconnect()
    bastion.execute("sh", "-c", "kill $(cat /run/bastion.pid)")


def test_a_bastion_that_lets_few_in_at_once(behind_bastion: Cluster, timeline: Timeline) -> None:
    took = []
    for _round in range(5):
        behind_bastion.disconnect()
        run = behind_bastion.run("succeeds.py")
        run.await_line(r"MASTER_ADDR", 60)
        took.append(time.monotonic() - run.started_at)
        assert run.wait() == 0, run.text
    timeline.note("3 nodes behind a bastion with MaxStartups 1:100:1 (5 times)", "all start", None, max(took))


def test_a_start_behind_it_that_cannot_be_leaves_no_node_held(behind_bastion: Cluster) -> None:
    before = behind_bastion.everywhere(Node.jobs)
    behind_bastion.disconnect()
    run = behind_bastion.run("succeeds.py", "-e", "cluster_master_port=22")
    assert run.wait() == 2
    assert "Nothing was started on any node" in run.words and "could not be released" not in run.words
    assert behind_bastion.everywhere(Node.jobs) == before


def test_an_account_without_rights(cluster: Cluster, timeline: Timeline) -> None:
    password, terminal, absent = cluster.nodes
    sudoers = "/etc/sudoers.d/admin"
    faults = {
        password: (f"echo 'admin ALL=(ALL) ALL' > {sudoers}", "echo 'admin ALL=(ALL) NOPASSWD:ALL' > {0}"),
        terminal: (f"echo 'Defaults requiretty' >> {sudoers}", "sed -i /requiretty/d {0}"),
        absent: ("mv /usr/bin/sudo /usr/bin/sudo.away", "mv /usr/bin/sudo.away /usr/bin/sudo"),
    }
    for node, (fault, remedy) in faults.items():
        node.execute("sh", "-c", fault)
        node._broken.append(lambda node=node, remedy=remedy: node.execute("sh", "-c", remedy.format(sudoers)))
    run = cluster.run("succeeds.py")
    assert run.wait() == 2
    for sentence in (
        "node0 asks for a password for sudo, and none was given: set ansible_become_password",
        "node1 does not let sudo be used without a terminal (sudo: sorry, you must have a tty to run sudo): take",
        "node2 has no sudo, which Ansible's account needs to become another account: install it there",
        "Nothing was started on any node.",
    ):
        assert sentence in run.words, run.text
    timeline.note(
        "a password, requiretty, no sudo", "each is named with the setting that helps, and nothing is started"
    )
