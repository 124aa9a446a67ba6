"""What an inventory says to the roles, held against their argument specs before anything is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.role_settings import ROLES, require_valid
from playing import ROOT, play

NAMES = ["python_env", "firewall", "node_env"]


def check(**hosts: dict[str, Any]) -> None:
    def value(host: str, name: str) -> Any:
        return Templar(DataLoader(), variables=hosts[host]).template(hosts[host].get(name))

    require_valid(NAMES, list(hosts), value)


def complaints(**hosts: dict[str, Any]) -> Iterator[str]:
    with pytest.raises(JobError) as caught:
        check(**hosts)
    yield from str(caught.value).splitlines()


def test_setup_has_all_roles_checked() -> None:
    looks, changes = yaml.safe_load((ROOT / "playbooks" / "setup.yml").read_text())
    (look,) = looks["tasks"]
    imported = [task["ansible.builtin.import_role"] for task in changes["tasks"]]
    assert look["thunderhead.cluster.cluster_info"]["roles"] == NAMES
    assert [role["name"] for role in imported] == [f"thunderhead.cluster.{name}" for name in NAMES]
    assert sorted(path.name for path in ROLES.iterdir()) == sorted(NAMES)


def test_defaults_and_nothing_are_right() -> None:
    defaults: dict[str, Any] = {}
    for name in NAMES:
        defaults |= yaml.safe_load((ROLES / name / "defaults" / "main.yml").read_text())
    check(node0={}, node1={**defaults, "role_path": "/roles/python_env"}, node2=dict.fromkeys(defaults))


def test_a_fault_is_told_once_for_all_hosts_that_have_it() -> None:
    bogus = {"firewall_provider": "bogus"}
    size, provider = complaints(node0=bogus, node1={**bogus, "python_env_cache_max_mb": "much"}, node2={}, node3=bogus)
    assert size.startswith("node1: argument 'python_env_cache_max_mb' is of type str and we were unable to convert to")
    assert provider == (
        "node0, node1, node3: value of firewall_provider must be one of: auto, firewalld, ufw, iptables, nftables, "
        "none, got: bogus; correct it in the inventory"
    )


def test_a_value_that_cannot_be_resolved() -> None:
    (line,) = complaints(node0={"python_env_extras": trust_as_template("{{ nowhere }}")})
    assert line == "node0: python_env_extras cannot be resolved: 'nowhere' is undefined; correct it in the inventory"


def test_a_value_that_is_made_of_what_the_playbook_gives() -> None:
    check(node0={"python_env_find_links": [trust_as_template("{{ python_env_directory }}/wheels")]})


def test_setup_refuses_before_it_reaches_any_node(tmp_path: Path) -> None:
    hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(3)}
    variables = {"ansible_connection": "local", "cluster_dir": f"{tmp_path}/nodes", "firewall_provider": "iptabels"}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    result = play(tmp_path, "setup.yml", "--tags", "node_env")
    assert result.returncode == 2
    assert "node0, node1, node2: value of firewall_provider must be one of: auto, firewalld" in result.stdout
    assert not (tmp_path / "nodes").exists()
    teardown = play(tmp_path, "teardown.yml", "--check")
    assert "firewall_provider must" not in teardown.stdout, "what it does not use keeps nobody from taking away"
