# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Things that are wrong with real clusters, each planted on the machines and taken away again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from machines import Cluster, Node

DIRECTORY = "/opt/thunderhead"
# In place of a node's Python: the agent there reads a clock that is an hour ahead. A container has its host's.
LATE_PYTHON = """\
#!/bin/sh
exec python3 "$1" "$2" "$3" "import time; real = time.time; time.time = lambda: real() + 3600
$4"
"""
SQUATTER = "import socket, time; here = socket.create_server(('', 29500)); time.sleep(600)"


@contextmanager
def done(node: Node, plant: str, undo: str) -> Iterator[None]:
    """Run a shell script on a node, and later another."""
    node.execute("sh", "-ec", plant)
    try:
        yield
    finally:
        node.execute("sh", "-ec", undo)


@contextmanager
def described(cluster: Cluster, host: str, **variables: str) -> Iterator[None]:
    """Have the inventory say something else of a host."""
    cluster.describe(**{host: variables})
    try:
        yield
    finally:
        cluster.describe()


def loopback_name(cluster: Cluster) -> AbstractContextManager[None]:
    node = cluster.nodes[1]
    plant = f"cp /etc/hosts /tmp/hosts.before; (echo 127.0.1.1 {node}; cat /tmp/hosts.before) >/etc/hosts"
    return done(node, plant, "cat /tmp/hosts.before >/etc/hosts")


@contextmanager
def loopback_name_unpinned(cluster: Cluster) -> Iterator[None]:
    plant = "cp -p node.env node.env.before; sed -i /SOCKET_IFNAME/d node.env"
    undo = "mv node.env.before node.env"
    with loopback_name(cluster), done(cluster.nodes[1], f"cd {DIRECTORY}; {plant}", f"cd {DIRECTORY}; {undo}"):
        yield


def filtered(node: Node, rule: str) -> AbstractContextManager[None]:
    """Drop what arrives at a node and fits the rule."""
    table = f"table inet planted {{ chain in {{ type filter hook input priority -400; {rule} drop; }}; }}"
    return done(node, f"nft '{table}'", "nft delete table inet planted")


def dropped_range(cluster: Cluster) -> AbstractContextManager[None]:
    return filtered(cluster.nodes[2], f"ip saddr {cluster.nodes[1].address} tcp dport 32768-60999")


def small_link(cluster: Cluster) -> AbstractContextManager[None]:
    return filtered(cluster.nodes[2], f"ip saddr {cluster.nodes[1].address} meta length > 1300")


def other_torch(cluster: Cluster) -> AbstractContextManager[None]:
    packages = f"cd {DIRECTORY}/env/lib/python3*/site-packages"
    plant = "mv torch-2.13.0*.dist-info torch-2.12.1.dist-info; sed -i.before 's/2[.]13[.]0/2.12.1/' torch/version.py"
    undo = "mv torch/version.py.before torch/version.py; mv torch-2.12.1.dist-info torch-2.13.0+cpu.dist-info"
    return done(cluster.nodes[2], f"{packages}; {plant}", f"{packages}; {undo}")


def small_shm(cluster: Cluster) -> AbstractContextManager[None]:
    remount = "mount -o remount,size={} /dev/shm"
    return done(cluster.nodes[1], remount.format("64m"), remount.format("1g"))


@contextmanager
def late_clock(cluster: Cluster) -> Iterator[None]:
    node = cluster.nodes[2]
    node.execute("sh", "-c", "cat >/usr/local/bin/late; chmod 755 /usr/local/bin/late", text=LATE_PYTHON)
    with described(cluster, "node2", ansible_python_interpreter="/usr/local/bin/late"):
        yield


def full_disk(cluster: Cluster) -> AbstractContextManager[None]:
    plant = (
        f"mkdir -p /real; mount --bind {DIRECTORY} /real; mount -t tmpfs -o size=16m,mode=755 tmpfs {DIRECTORY}; "
        f"for entry in /real/*; do ln -s $entry {DIRECTORY}/; done"
    )
    return done(cluster.nodes[1], plant, f"umount {DIRECTORY} /real")


def foreign_address(cluster: Cluster) -> AbstractContextManager[None]:
    return described(cluster, "node1", cluster_address="198.18.30.99")


def taken_port(cluster: Cluster) -> AbstractContextManager[None]:
    wait = "until ss -ltn | grep -q :29500; do sleep 0.1; done"
    plant = f'systemd-run --quiet --unit=squatter python3 -c "{SQUATTER}"; {wait}'
    return done(cluster.nodes[0], plant, "systemctl stop squatter")


@contextmanager
def two_names(cluster: Cluster) -> Iterator[None]:
    second = "198.18.30.77"
    with (
        done(cluster.nodes[1], f"ip addr add {second}/24 dev eth0", f"ip addr del {second}/24 dev eth0"),
        described(cluster, "node2", ansible_host=second),
    ):
        yield


@contextmanager
def few_files(cluster: Cluster) -> Iterator[None]:
    limits = "/etc/security/limits.d/few.conf"
    with done(cluster.nodes[1], f"echo 'admin - nofile 256' >{limits}", f"rm {limits}"):
        cluster.disconnect()  # limits are a login's
        yield


def unreadable(cluster: Cluster) -> AbstractContextManager[None]:
    return done(cluster.nodes[2], f"chmod 700 {DIRECTORY}/envs", f"chmod 755 {DIRECTORY}/envs")


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    Attributes:
        plant: makes it so, for a while.
        check: finds it.
        words: stand in its sentence, the remedy among them.
        status: of its verdict.
        besides: what else cannot be well then.
    """

    plant: Callable[[Cluster], AbstractContextManager[None]]
    check: str
    words: tuple[str, ...]
    status: str = "failed"
    besides: frozenset[str] = field(default=frozenset())


DEFECTS = {
    "loopback name": Defect(
        *(loopback_name, "names.hostname"),
        ("node1 resolves its own name to 127.0.1.1", "take the name off the 127.0.x.x line of /etc/hosts"),
        "warning",
    ),
    "loopback name, not pinned": Defect(
        *(loopback_name_unpinned, "names.hostname"),
        ("node1 resolves its own name to 127.0.1.1", "pin the interface in node.env (run: ansible-playbook setup.yml)"),
    ),
    "dropped range between two nodes": Defect(
        *(dropped_range, "reach.ephemeral"),
        ("node1 gets no answer from node2", "node2 gets no answer from node1", "a firewall drops it; run:"),
    ),
    "small MTU on one link": Defect(
        *(small_link, "reach.mtu"), ("node1 gets only small packets through to node2", "ping -M do -s BYTES")
    ),
    "another torch on one node": Defect(
        *(other_torch, "software.versions"),
        ("torch is 2.13.0+cpu (node0, node1), 2.12.1 (node2)", "remove envs in the cluster_dir, and run:"),
        besides=frozenset({"software.lock"}),
    ),
    "64 MB of /dev/shm": Defect(
        *(small_shm, "hardware.shm"), ("node1 has 67.1 MB of /dev/shm", "docker run --shm-size=8g", "mount -o remount")
    ),
    "clock an hour ahead": Defect(
        *(late_clock, "time.clocks"), ("node2 has a clock that is 60 min ahead of the others", "start a time service")
    ),
    "full disk": Defect(
        *(full_disk, "hardware.disk"), (f"node1 has 16.8 MB free in {DIRECTORY}", "ansible-playbook clean.yml")
    ),
    "foreign cluster_address": Defect(
        *(foreign_address, "inventory.address"),
        ("node1 does not hold the address 198.18.30.99 on any interface", "set cluster_address"),
    ),
    "MASTER_PORT taken": Defect(
        *(taken_port, "inventory.master_port"),
        ("MASTER_PORT 29500 is taken by python3 (process", "end that process, or set cluster_master_port"),
    ),
    "one machine under two names": Defect(
        *(two_names, "inventory.machines"),
        ("node1, node2 are the same machine under several names", "remove all but one from the inventory"),
        besides=frozenset({"inventory.ranks"}),
    ),
    "nofile 256": Defect(
        *(few_files, "hardware.nofile"), ("node1 lets a job open 256 files", "raise nofile for the account")
    ),
    "unreadable environment": Defect(
        *(unreadable, "software.environment"), ("node2 has an environment that thunderhead may not use", "chmod it")
    ),
}
