# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles in a playbook of somebody's own, on hosts of another group."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from playing import play

PLACE = {"rank": 0, "world_size": 3, "master_addr": "127.0.0.1", "master_port": 29500, "interface": "lo"}
ROLE = {
    "node_env_directory": "{{ inventory_dir }}/nodes/{{ inventory_hostname }}",
    "node_env_node": PLACE,
    "node_env_variables": {"TOKEN": "{{ token }}"},
}


def played(folder: Path, content: dict[str, Any], **hosts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a play of three hosts on this machine."""
    (folder / "nodes").mkdir(exist_ok=True)
    about = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    machines = {"machines": {"hosts": {name: hosts.get(name, {}) for name in "abc"}, "vars": about}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(machines))
    (folder / "own.yml").write_text(yaml.safe_dump([{"hosts": "machines", "gather_facts": False, **content}]))
    return play(folder, str(folder / "own.yml"), ANSIBLE_STDOUT_CALLBACK="default")


def include(**more: Any) -> dict[str, Any]:
    task = {"ansible.builtin.include_role": {"name": "thunderhead.cluster.node_env"}, "vars": ROLE, **more}
    return {"tasks": [task]}


def set_up(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("nodes/*/node.env"))


def test_a_role_that_is_included_for_some_hosts(tmp_path: Path) -> None:
    """The others are asked, too, but what is wrong with them is nobody's affair."""
    result = played(tmp_path, include(when="token is defined"), b={"token": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert set_up(tmp_path) == ["b"]


def test_one_host_that_cannot_be_looked_at(tmp_path: Path) -> None:
    token = {"token": "1"}
    wrong = {**token, "ansible_python_interpreter": "/no/python"}
    result = played(tmp_path, include(), a=token, b=wrong, c=token)
    assert result.returncode == 2
    assert set_up(tmp_path) == ["a", "c"]
    assert (
        "fatal: [b]" in result.stdout and "b has no usable Python: /no/python was not found; install" in result.stdout
    )


FIREWALL = {"firewall_provider": "none", "firewall_peers": [], "firewall_ports": []}


@pytest.mark.parametrize(("name", "variables"), [("node_env", ROLE), ("firewall", FIREWALL)])
def test_a_role_that_leaves_the_first_host_out(tmp_path: Path, name: str, variables: dict[str, Any]) -> None:
    role = {"role": f"thunderhead.cluster.{name}", "when": "inventory_hostname != 'a'", "vars": variables}
    result = played(tmp_path, {"roles": [role]}, **{host: {"token": "1"} for host in "abc"})
    assert result.returncode == 2
    assert result.stdout.count("fatal: ") == 2
    assert f"not checked, because the first host of the play does not have the role {name}" in result.stdout


@pytest.mark.parametrize(("name", "variables"), [("node_env", ROLE), ("firewall", FIREWALL)])
def test_a_role_that_leaves_all_hosts_out(tmp_path: Path, name: str, variables: dict[str, Any]) -> None:
    role = {"role": f"thunderhead.cluster.{name}", "when": "inventory_hostname == 'd'", "vars": variables}
    result = played(tmp_path, {"roles": [role]}, **{host: {"token": "1"} for host in "abc"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("changed=0") == 3


@pytest.mark.parametrize("given", [{"A": "b"}, '{"A": "b"}', "A: b"])
def test_variables_as_a_mapping_or_as_its_text(tmp_path: Path, given: Any) -> None:
    content = include()
    content["tasks"][0]["vars"] = {**ROLE, "node_env_variables": given}
    for changed in ("changed=2", "changed=0"):
        result = played(tmp_path, content)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.count(changed) == 3
    assert "\nA=b\n" in (tmp_path / "nodes" / "c" / "node.env").read_text()
