# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an inventory says to the roles, held against their argument specs before anything is changed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.role_settings import (
    ROLES,
    require_valid,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from playing import ROOT, play

NAMES = ["python_env", "firewall", "node_env"]


def check(**hosts: dict[str, Any]) -> None:
    def resolve(host: str, name: str, others: Mapping[str, Any]) -> Any:
        return Templar(DataLoader(), variables={**others, **hosts[host]}).template(hosts[host][name])

    require_valid(NAMES, hosts, resolve)


def complaints(**hosts: dict[str, Any]) -> Iterator[str]:
    with pytest.raises(JobError) as caught:
        check(**hosts)
    yield from str(caught.value).splitlines()


def test_setup_has_all_roles_checked() -> None:
    _required, looks, changes = yaml.safe_load((ROOT / "playbooks" / "setup.yml").read_text())
    (look,) = looks["tasks"]
    imported = [task["ansible.builtin.import_role"] for task in changes["tasks"]]
    assert look["thunderhead.cluster.cluster_info"]["roles"] == NAMES
    assert [role["name"] for role in imported] == [f"thunderhead.cluster.{name}" for name in NAMES]
    assert sorted(path.name for path in ROLES.iterdir()) == sorted(NAMES)


def test_the_roles_own_defaults_are_right() -> None:
    defaults: dict[str, Any] = {}
    for name in NAMES:
        defaults |= DataLoader().load_from_file(str(ROLES / name / "defaults" / "main.yml"), trusted_as_template=True)
    check(node0={}, node1=defaults)


def test_what_the_playbook_gives_is_not_looked_at() -> None:
    """It counts more than the inventory, where these names may be somebody else's."""
    check(node0={"firewall_ports": {"ssh": 22}, "node_env_node": "a"})


def test_a_fault_is_told_once_for_all_hosts_that_have_it() -> None:
    bogus = {"firewall_provider": "bogus"}
    size, provider = complaints(node0=bogus, node1={**bogus, "python_env_cache_max_mb": "much"}, node2={}, node3=bogus)
    assert size.startswith("node1: argument 'python_env_cache_max_mb' is of type str and we were unable to convert to")
    assert provider == (
        "node0, node1, node3: value of firewall_provider must be one of: auto, firewalld, ufw, iptables, nftables, "
        "none, got: bogus; correct it in the inventory"
    )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("python_env_cache_max_mb", None),
        ("python_env_uv_settings", None),
        ("python_env_uv_settings", ["no mapping"]),
        ("python_env_extras", {"a": "b"}),
        ("python_env_torch_backend", None),
        ("python_env_torch_backend", "cu999"),
        ("firewall_provider", None),
    ],
)
def test_what_ansible_refuses_too(name: str, given: Any) -> None:
    (line,) = complaints(node0={name: given})
    assert name in line and line.endswith("; correct it in the inventory")


def test_values_that_cannot_be_resolved() -> None:
    nowhere = {"python_env_extras": trust_as_template("{{ nowhere }}")}
    unresolved, provider = complaints(node0=nowhere, node1=nowhere, node2={"firewall_provider": "bogus"})
    assert unresolved == (
        "node0, node1: python_env_extras cannot be resolved: 'nowhere' is undefined; correct it in the inventory"
    )
    assert provider.startswith("node2: value of firewall_provider")


def test_values_that_are_made_of_others() -> None:
    check(node0={"python_env_find_links": [trust_as_template("{{ python_env_directory }}/wheels")]})
    backend = trust_as_template("{{ 'cu999' if python_env_index_url == '' else 'cpu' }}")
    (line,) = complaints(node0={"python_env_torch_backend": backend})
    assert line.endswith(", got: cu999; correct it in the inventory")


def test_setup_refuses_before_it_reaches_any_node(tmp_path: Path) -> None:
    hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(3)}
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": "/no/python",
        "cluster_dir": f"{tmp_path}/nodes/{{{{ inventory_hostname }}}}",
        "firewall_provider": "iptabels",
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    setup = play(tmp_path, "setup.yml", "--tags", "node_env")
    assert setup.returncode == 2
    assert "node0, node1, node2: value of firewall_provider must be one of: auto, firewalld" in setup.stdout
    assert "no usable Python" not in setup.stdout
    teardown = play(tmp_path, "teardown.yml", "--check")
    assert "no usable Python" in teardown.stdout, "what it does not use keeps nobody from taking away"
