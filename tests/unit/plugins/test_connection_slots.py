# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How connections are made: in waves, again where an sshd had too many, and not at all where this machine cannot."""

import errno
import os
import random
import re
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport import channel as channel_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    Channel,
    NodeError,
    Unable,
    Unreachable,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import (
    ConnectionSlots,
    HostSlots,
    renew_deadline,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out
from local_nodes import LocalNode
from playing import play

CLOSED_BEFORE_LOGIN = """\
kex_exchange_identification: Connection closed by remote host
Connection closed by 198.18.61.9 port 22
Connection closed by UNKNOWN port 65535
"""


class Sshd:
    """Lets in so many connections at once, as MaxStartups N:100:N does."""

    become = None

    def __init__(self, most: int, seconds: float = 0.02, until: int = 0) -> None:
        """Keep every connection for so long, after so many have been there at once."""
        self.most, self.seconds, self.until = most, seconds, until
        self.now = self.highest = self.turned_away = 0
        self._lock = threading.Lock()
        self._is_reached = threading.Event()

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        with self._lock:
            self.now += 1
            self.highest = max(self.highest, self.now)
            is_welcome = self.now <= self.most
            if self.highest == self.until:
                self._is_reached.set()
        if self.until:
            self._is_reached.wait(30)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1
        if not is_welcome:
            self.turned_away += 1
            raise AnsibleConnectionFailure(f"Failed to connect to the host via ssh: {CLOSED_BEFORE_LOGIN}")
        return 0, b"", b""


def connect_all(sshd: Sshd, count: int, most: int) -> dict[str, NodeError]:
    waves = ConnectionSlots()
    channels = {
        str(number): Channel(str(number), sshd, "python3", "/bin/sh", HostSlots(waves, most)) for number in range(count)
    }
    return fan_out(channels, lambda one: one.put("/x", b""), 60)[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CONNECT_PAUSE_SECONDS", 0.02)
    random.seed(1)


@pytest.mark.parametrize("most", [1, 4, 32])
def test_no_more_are_in_the_making_than_allowed(most: int) -> None:
    sshd = Sshd(99, until=most)
    assert connect_all(sshd, 40, most) == {}
    assert sshd.highest == most


def test_an_sshd_with_too_many_connections_is_tried_again_by_fewer_at_once() -> None:
    for _round in range(5):
        sshd = Sshd(2)
        assert connect_all(sshd, 24, 32) == {}
        assert 0 < sshd.turned_away < 80


def test_an_sshd_that_never_lets_in_is_given_up_with_a_reason() -> None:
    sshd = Sshd(0)
    (error,) = connect_all(sshd, 1, 32).values()
    assert sshd.turned_away == channel_module.CONNECT_TRIES
    assert error.facts == {"unsent": True}
    assert str(error) == (
        "0 is unreachable: an sshd, its own or that of a machine on the way, closed the connection before it began, 12 "
        "times (kex_exchange_identification: Connection closed by remote host); it may let in few new connections at "
        "once (MaxStartups): set cluster_connections in the inventory to fewer, or raise MaxStartups in that machine's "
        "sshd_config"
    )


def test_once_a_request_came_through_nothing_waits_for_a_turn() -> None:
    sshd, waves = Sshd(99, until=5), ConnectionSlots()
    entrances = [HostSlots(waves, 1) for _number in range(5)]
    for slots in entrances:
        slots.is_open = True
    channels = {str(n): Channel(str(n), sshd, "python3", "/bin/sh", one) for n, one in enumerate(entrances)}
    fan_out(channels, lambda one: one.put("/x", b""), 60)
    assert sshd.highest == 5


def test_who_waits_for_a_turn_is_not_late() -> None:
    assert connect_all_within(1, Sshd(99, 0.15), 12) == {}


def connect_all_within(seconds: float, sshd: Sshd, count: int) -> dict[str, NodeError]:
    waves = ConnectionSlots()
    channels = {str(n): Channel(str(n), sshd, "python3", "/bin/sh", HostSlots(waves, 1)) for n in range(count)}
    return fan_out(channels, lambda one: one.put("/x", b""), seconds)[1]


def test_a_call_from_which_something_comes_is_not_late() -> None:
    def slowly(_item: int) -> str:
        for _piece in range(5):
            time.sleep(0.1)
            renew_deadline()
        return "done"

    assert fan_out({"a": 0}, slowly, 0.3) == ({"a": "done"}, {})


@pytest.mark.parametrize(
    ("said", "line", "unsent"),
    [
        (
            CLOSED_BEFORE_LOGIN.replace("kex_exchange_identification: ", "x"),
            "Connection closed by 198.18.61.9 port 22",
            True,
        ),
        (
            f"ssh: connect to host bastion port 22: Connection refused\r\n{CLOSED_BEFORE_LOGIN}",
            "ssh: connect to host bastion port 22: Connection refused",
            True,
        ),
        (
            "Warning: Permanently added 'x'\r\nadmin@gpu-1: Permission denied (publickey).\r\nConnection closed by "
            "UNKNOWN port 65535\n",
            "admin@gpu-1: Permission denied (publickey).",
            True,
        ),
        (
            "channel 0: open failed: connect failed: Connection refused\r\nstdio forwarding failed\r\n"
            "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535",
            "channel 0: open failed: connect failed: Connection refused",
            True,
        ),
        ("Connection to gpu-1 closed by remote host.\r\n", "Connection to gpu-1 closed by remote host.", False),
        ("Timeout, server gpu-1 not responding.\n", "Timeout, server gpu-1 not responding.", False),
        ("client_loop: send disconnect: Broken pipe", "client_loop: send disconnect: Broken pipe", False),
    ],
)
def test_the_line_of_ssh_s_that_names_the_cause_is_shown(said: str, line: str, unsent: bool) -> None:
    class Failing:
        become = None

        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            raise AnsibleConnectionFailure(f"Failed to connect to the host via ssh: {said}")

    with pytest.raises(Unreachable) as caught:
        Channel("gpu-1", Failing(), "python3", "/bin/sh").put("/x", b"")
    assert str(caught.value) == f"gpu-1 is unreachable: {line}"
    assert caught.value.facts.get("unsent", False) is unsent


# -------------------------------------------------------------------------------------------------------- this machine


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            "this machine cannot start what connects to a node: Too many open files; raise the number of files a "
            "program may have open: ulimit -n 4096",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "ssh"),
            "this machine cannot start what connects to a node: No such file or directory (ssh); install it here",
        ),
    ],
)
def test_what_this_machine_cannot_is_no_fault_of_a_node(error: OSError, why: str, wrapped: bool) -> None:
    class Failing:
        become = None

        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if wrapped:
                raise AnsibleError("Unable to execute ssh command line on a controller.") from error
            raise error

    errors = fan_out(
        {host: Channel(host, Failing(), "python3", "/bin/sh") for host in ("a", "b")}, lambda one: one.put("/x", b""), 5
    )[1]
    assert all(isinstance(error, Unable) for error in errors.values())
    assert str(errors["a"]) == f"a was not asked: {why}"
    assert str(join_errors(errors.values(), "Nothing was started.")) == f"{why}. Nothing was started."


def test_too_few_files_are_seen_before_anything_is_prepared(tmp_path: Path) -> None:
    nodes = [LocalNode(tmp_path / f"node{n}", f"node{n}", f"127.0.0.{n + 1}").set_up() for n in range(16)]
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{tmp_path}/{{{{ inventory_hostname }}}}",
        "job_user": "",
    }
    hosts = {node.host: {"cluster_address": node.address} for node in nodes}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    (tmp_path / "train.py").write_text("print('trained')")
    arguments = ["-e", "script=train.py", "-e", f"project_dir={tmp_path}"]
    result = play(tmp_path, "run.yml", *arguments, within=("prlimit", "--nofile=40:40"))
    assert result.returncode == 2
    assert re.search(
        r"this machine cannot open enough files: a program may have 40 here, and these nodes take (\d+); raise that "
        r"with ulimit -n \1, or in /etc/security/limits.conf. Nothing was started on any node.",
        result.stdout + result.stderr,
    )
    assert [node.jobs for node in nodes] == [[]] * 16


@pytest.mark.parametrize("spare", [0, 20])
def test_a_soft_limit_is_raised(spare: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        next_free = os.dup(0)
        os.close(next_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + spare, limits[1]))
        fan_out({str(n): n for n in range(16)}, lambda n: n, 5)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 16 * 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
