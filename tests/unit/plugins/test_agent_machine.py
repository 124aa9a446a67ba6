# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import io
import os
import pwd
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import errors, job_user, machine
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import ports as ports_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import is_address
from local_nodes import LocalNode, as_root, code, free_port, full, node_of_nobody, refused


def test_an_address_that_is_not_here(tmp_path: Path) -> None:
    message = refused(LocalNode(tmp_path, address="198.18.255.254"), "setup_facts")
    assert re.fullmatch(
        r"node0 does not hold the address 198\.18\.255\.254 on any interface \(it has: .+\); set cluster_address for "
        "it in the inventory to the address its peers reach",
        message,
    )


INTERFACES = [
    ("lo", "127.0.0.1", True),
    ("lo", "198.18.9.7", False),
    ("eth0", "198.18.0.7", False),
    ("eth1", "198.19.0.7", False),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("198.19.0.7", ("198.19.0.7", "eth1")),
        (None, ("198.18.0.7", "eth0")),
        ("127.0.0.1", ("127.0.0.1", "lo")),
        ("127.0.0.77", ("127.0.0.77", "lo")),
        (
            "198.18.0.8",
            "does not hold the address 198.18.0.8 on any interface (it has: 198.18.9.7 (lo), 198.18.0.7 "
            "(eth0), 198.19.0.7 (eth1)); set cluster_address for it in the inventory to the address its peers reach",
        ),
        (
            "198.18.9.7",
            "holds its address 198.18.9.7 on lo, where gloo and NCCL take 127.0.0.1 instead and find no peer; set "
            "cluster_address in the inventory to an address on another interface, or give this one an interface of its "
            "own: ip addr del 198.18.9.7 dev lo; ip link add cluster0 type dummy; ip addr add 198.18.9.7 dev cluster0; "
            "ip link set cluster0 up",
        ),
    ],
)
def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch, wanted: str | None, found: Any) -> None:
    monkeypatch.setattr(machine, "network_addresses", lambda: INTERFACES)
    monkeypatch.setattr(machine, "default_route_address", lambda: "198.18.0.7")
    if isinstance(found, tuple):
        assert machine.locate_address(wanted) == found
    else:
        with pytest.raises(errors.Refusal) as caught:
            machine.locate_address(wanted)
        assert str(caught.value) == found


def test_a_node_without_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "default_route_address", lambda: None)
    with pytest.raises(errors.Refusal) as caught:
        machine.locate_address(None)
    assert str(caught.value) == "has no network address besides loopback; set cluster_address for it in the inventory"


def test_addresses_are_those_of_this_machine() -> None:
    found = machine.network_addresses()
    assert ("lo", "127.0.0.1", True) in found
    assert all(interface in os.listdir("/sys/class/net") for interface, _address, _loopback in found)
    route = machine.default_route_address()
    assert route is None or route in [address for _interface, address, _loopback in found]


@pytest.mark.parametrize("where", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_port_that_is_taken_names_the_process(node: LocalNode, tmp_path: Path, where: str) -> None:
    port, family = free_port(), socket.AF_INET6 if ":" in where else socket.AF_INET
    try:
        listener = socket.create_server((where, port), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        name = Path("/proc/self/comm").read_text().strip()
        message = refused(node, "prepare", code(tmp_path / "code", ""), master_port=port)
    assert message == (
        f"node0 cannot be the head: MASTER_PORT {port} is taken by {name} (process {os.getpid()}); end that process, "
        "or set cluster_master_port in the inventory to a free port"
    )
    assert node.jobs == []


def test_a_port_that_is_bound_but_not_listened_on(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", port))
        message = refused(node, "prepare", code(tmp_path / "code", ""), master_port=port)
    assert message == (
        f"node0 cannot be the head: MASTER_PORT {port} is taken by a socket that does not listen; end that process, or "
        "set cluster_master_port in the inventory to a free port"
    )


def test_a_port_just_left_by_the_last_job_is_free(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _address = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.recv(1)
    node.ask("prepare", code(tmp_path / "code", ""), master_port=port)


def test_only_the_head_needs_the_port(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        node.ask("prepare", code(tmp_path / "code", ""), master_port=None)


@pytest.mark.parametrize("op", ["prepare", "setup_facts"])
def test_a_port_of_outgoing_connections(node: LocalNode, tmp_path: Path, op: str) -> None:
    first, last = ports_module.ephemeral_ports()
    port = next(port for port in range(last, first, -1) if port not in ports_module.reserved_ports())
    assert refused(node, op, code(tmp_path / "code", ""), master_port=port) == (
        f"node0 uses ports {first} to {last} for outgoing connections (net.ipv4.ip_local_port_range), and MASTER_PORT "
        f"is {port}, so another program can take it; set cluster_master_port in the inventory to a port "
        f"below {first}"
    )


@pytest.mark.parametrize(
    ("port", "allowed"), [(32767, True), (32768, False), (60999, False), (61000, True), (40000, True)]
)
def test_the_bounds_of_that_range(monkeypatch: pytest.MonkeyPatch, port: int, allowed: bool) -> None:
    monkeypatch.setattr(ports_module, "ephemeral_ports", lambda: (32768, 60999))
    monkeypatch.setattr(ports_module, "reserved_ports", lambda: {40000})
    with contextlib.nullcontext() if allowed else pytest.raises(errors.Refusal):
        ports_module.check_port_range(port)


@pytest.mark.parametrize(
    ("text", "ports"),
    [("\n", set()), ("8080\n", {8080}), ("8080,40000-40003\n", {8080, 40000, 40001, 40002, 40003})],
)
def test_reserved_ports(monkeypatch: pytest.MonkeyPatch, text: str, ports: set[int]) -> None:
    monkeypatch.setattr(ports_module, "open", lambda _path: io.StringIO(text), raising=False)
    assert ports_module.reserved_ports() == ports


def test_a_privileged_port() -> None:
    with pytest.raises(errors.Refusal) as caught:
        ports_module.check_port_free(1, uid=1000)
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    assert str(caught.value) == (
        "cannot be the head: an unprivileged job may not listen on port 1; set cluster_master_port in the "
        f"inventory to a port of {first} or more"
    )


@pytest.mark.parametrize(
    ("free_mb", "inodes", "allowed"),
    [(17, (100, 10), True), (16, (100, 10), True), (15, (100, 10), False), (17, (100, 0), False), (17, (0, 0), True)],
)
def test_space(monkeypatch: pytest.MonkeyPatch, free_mb: int, inodes: tuple[int, int], allowed: bool) -> None:
    room = SimpleNamespace(f_bavail=free_mb * 256, f_frsize=4096, f_files=inodes[0], f_favail=inodes[1])
    monkeypatch.setattr(machine.os, "statvfs", lambda _path: room)
    if allowed:
        machine.check_space("/opt", 2**24)
    else:
        with pytest.raises(errors.Refusal) as caught:
            machine.check_space("/opt", 2**24)
        assert str(caught.value) == full("/opt", free_mb, 16)


def test_a_user_that_does_not_exist(node: LocalNode) -> None:
    node.user = "no-such-user"
    assert refused(node, "prepare") == "node0 has no user no-such-user; run: ansible-playbook setup.yml"


def test_a_user_that_one_may_not_become(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(machine.os, "geteuid", lambda: nobody.pw_uid)
    with pytest.raises(errors.Refusal) as caught:
        job_user.User("root")
    assert str(caught.value) == (
        "cannot run jobs as root: the connection's user is nobody and may not become another; allow sudo "
        "(ansible_become), or set job_user to that name"
    )


def test_root_runs_no_jobs_as_root_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(job_user, "has_systemd", lambda: True)
    with pytest.raises(errors.Refusal) as caught:
        job_user.User("")
    assert str(caught.value) == (
        "would run jobs as root, but they run unprivileged; set job_user in the inventory to another account, or "
        "ansible_become to false to run them as the account Ansible connects as"
    )


NUMBER = 54321
"""Of no account."""


@as_root
def test_the_job_of_an_account_that_was_deleted(tmp_path: Path) -> None:
    with node_of_nobody() as node:
        node.run("open('result', 'w').close()\nprint('done')", tmp_path / "code")
        for path in (node.job_dir(), *node.job_dir().rglob("*")):
            os.chown(path, NUMBER, NUMBER)
        state, log = node.wait()
        assert (state["state"], log) == ("succeeded", "done\n")
        assert b"result\0" in node.channel().call(node.request("list_artifacts", after="", most=9))[1]
        assert node.ask("list_checkpoints") == {"found": [], "refused": [], "others": []}
        assert node.ask("stop", grace_seconds=1)["state"] == "succeeded"
        owner = job_user.owner_of(str(node.job_dir()))
        assert owner and (owner.name, owner.uid, owner.gid) == (str(NUMBER), NUMBER, NUMBER)


def test_this_agent_may_be_nobody_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: NUMBER)
    with pytest.raises(errors.Refusal) as caught:
        job_user.User("")
    assert str(caught.value) == (
        f"is used as user id {NUMBER}, which no account there has; make one, or set ansible_user to one"
    )
    with pytest.raises(errors.Refusal, match=f"the connection's user is {NUMBER} and may not become another"):
        job_user.User("root")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(("10.0.0.1", True), ("127.0.0.1", True), ("0.0.0.0", False), ("224.0.0.1", False)),
        *(("fd00::1", True), ("::1", True), ("::", False), ("ff02::1", False)),
    ],
)
def test_an_interface_may_have_addresses_of_no_one_machine(address: str, expected: bool) -> None:
    """Which the controller takes for no node's."""
    assert machine.is_of_one_machine(address) == is_address(address) == expected
