# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import io
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import active_firewalls, machine
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import setup_facts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import find_flaw
from local_nodes import SLEEP, Altered, LocalNode, code, until

INTERFACES = [
    *(("lo", "127.0.0.1", True), ("eth0", "198.18.0.7", False), ("eth1", "198.19.0.7", False)),
    *(("eth0", "198.18.0.6", False), ("eth0", "fd00::7", False), ("lo", "::1", True)),
]


def facts_of(monkeypatch: pytest.MonkeyPatch, address: str, interfaces: list[tuple[str, str, bool]]) -> dict[str, Any]:
    for module in (setup_facts, machine):
        monkeypatch.setattr(module, "network_addresses", lambda: interfaces)
    request = {"op": "setup_facts", "directory": "/none", "user": "nobody", "address": address, "master_port": None}
    reply, payload = setup_facts.setup_facts(request, b"")
    assert find_flaw(request, {"ok": True, **json.loads(json.dumps(reply))}, payload) is None
    return reply


@pytest.mark.parametrize(
    ("address", "addresses"),
    [
        ("198.18.0.7", ["198.18.0.7", "198.18.0.6", "fd00::7"]),
        ("198.19.0.7", ["198.19.0.7"]),
        ("127.0.0.2", ["127.0.0.2"]),
    ],
)
def test_all_that_peers_may_see(monkeypatch: pytest.MonkeyPatch, address: str, addresses: list[str]) -> None:
    assert facts_of(monkeypatch, address, INTERFACES)["addresses"] == addresses


def many(count: int) -> list[tuple[str, str, bool]]:
    return [("eth0", f"198.18.{number // 256}.{number % 256}", False) for number in range(count)]


def test_as_many_addresses_as_can_be_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(facts_of(monkeypatch, "198.18.0.7", many(1024))["addresses"]) == 1024
    with pytest.raises(Refusal) as caught:
        facts_of(monkeypatch, "198.18.0.7", many(1025))
    assert str(caught.value) == (
        "has 1025 addresses on eth0, and its peers' firewalls let in 1024 at most; set cluster_address for it in the "
        "inventory to an address on an interface with fewer"
    )


def test_a_job_that_hides(node: LocalNode, tmp_path: Path) -> None:
    """What it writes into its own folder does not count: while its supervisor lives, it holds the node."""
    node.connection = Altered(("EXIT_SECONDS = 8", "EXIT_SECONDS = 1"))
    assert node.ask("setup_facts")["job"] is None
    node.start(code(tmp_path / "code", SLEEP))
    until(lambda: node.follow(wait_seconds=0)[1])
    (node.job_dir() / "state.json").write_text(json.dumps({"state": "succeeded", "ended": 1.0}))
    (node.job_dir() / "spec.json").write_text(json.dumps({"rank": 7, "world_size": 1}))
    owner = {"id": "job-1", "user": "trainer", "start": "2026-11-22T17:30:00+01:00"}
    assert node.ask("setup_facts")["job"] == owner
    node.end_all()
    assert node.ask("setup_facts")["job"] is None


def test_a_supervisor_that_says_good_bye_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = iter([{"id": "job-1"}, {"id": "job-1"}, None])
    monkeypatch.setattr(setup_facts, "running_job", lambda _directory: next(held))
    (tmp_path / "jobs" / "job-1").mkdir(parents=True)
    (tmp_path / "jobs" / "job-1" / "state.json").write_text('{"state": "succeeded", "ended": 1.0}')
    assert setup_facts.lasting_job(str(tmp_path)) is None


def test_jobs_that_cannot_be_looked_at(tmp_path: Path) -> None:
    assert setup_facts.lasting_job(str(tmp_path)) is None
    (tmp_path / "jobs").symlink_to("jobs")  # also root is refused
    with pytest.raises(Refusal) as caught:
        setup_facts.lasting_job(str(tmp_path))
    assert str(caught.value) == (
        f"cannot tell whether a job runs there: {tmp_path}/jobs cannot be read (Too many levels of symbolic links); "
        "make it readable for the account that Ansible uses there"
    )


@pytest.mark.parametrize(
    ("settings", "command", "active"),
    [
        ("# ENABLED=yes\nENABLED=no\n", b"nginx\0", []),
        ("LOGLEVEL=low\nENABLED=yes\n", b"nginx\0", ["ufw"]),
        ('# since the audit\n ENABLED = "Yes" # at boot\n', b"nginx\0", ["ufw"]),
        ("ENABLED=no\n", b"/usr/bin/python3\0/usr/sbin/firewalld\0--nofork\0", ["firewalld"]),
    ],
)
def test_firewalls_that_need_a_collection(
    monkeypatch: pytest.MonkeyPatch, settings: str, command: bytes, active: list[str]
) -> None:
    def opened(path: str, mode: str = "r", **_more: Any) -> Any:
        return io.StringIO(settings) if path == "/etc/ufw/ufw.conf" else io.BytesIO(command)

    monkeypatch.setattr(active_firewalls, "open", opened, raising=False)
    assert active_firewalls.managed_firewalls() == active
