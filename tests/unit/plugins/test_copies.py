# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks in copies of the repository that are not whole, and without the collections that `ansible` brings."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.action import cluster_info
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from playing import ROOT

PLAYBOOKS = sorted(
    path.stem for path in ROOT.glob("playbooks/*.yml") if path.stem not in ("incomplete", "require_nodes")
)
LINK = Path("collections", "ansible_collections", "thunderhead", "cluster")


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_every_playbook_looks_for_the_link_first(playbook: str) -> None:
    (play,) = yaml.safe_load((ROOT / f"{playbook}.yml").read_text())
    assert play["ansible.builtin.import_playbook"] == (
        f"playbooks/{{{{ '{playbook}' if (playbook_dir ~ '/{LINK}') is directory else 'incomplete' }}}}.yml"
    )


@pytest.mark.parametrize(("playbook", "arguments"), [("setup", []), ("run", ["--limit", "node1"])])
def test_a_copy_without_its_link(tmp_path: Path, playbook: str, arguments: list[str]) -> None:
    """As `git clone` leaves it on Windows, and many a program that unpacks a download."""
    shutil.copytree(ROOT / "playbooks", tmp_path / "playbooks")
    for name in (f"{playbook}.yml", "ansible.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / LINK.parent).mkdir(parents=True)
    (tmp_path / LINK).write_text(os.readlink(ROOT / LINK))
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": {"node0": {}, "node1": {}}}}))
    result = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", f"{playbook}.yml", *arguments],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path / "ansible"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert (
        f"{tmp_path / LINK} is no symbolic link to this copy's own folder, as after a download without links or a "
        "clone on Windows, and without it Ansible finds no plugin of Thunderhead; make it: ln -sfn ../../.. "
        f"{tmp_path / LINK}"
    ) in result.stdout + result.stderr
    assert "misspelling" not in result.stdout + result.stderr


def test_a_collection_that_a_firewall_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"ansible.posix.firewalld"}
    monkeypatch.setattr(cluster_info.module_loader, "find_plugin", lambda name: name if name in there else None)
    cluster_info.require_collections("node0", ["firewalld"], "auto")
    for provider in ("none", "nftables", "firewalld"):
        cluster_info.require_collections("node0", ["firewalld", "ufw"], provider)
    for provider in ("auto", "ufw"):
        with pytest.raises(JobError) as caught:
            cluster_info.require_collections("node0", ["firewalld", "ufw"], provider)
        assert str(caught.value) == (
            "node0 has ufw, which needs the collection community.general, and this machine does not have it; run: "
            "ansible-galaxy collection install community.general (the package ansible has it, ansible-core has not), "
            "or set firewall_provider in the inventory. Nothing was changed on any node"
        )


def test_setup_looks_for_it_before_it_changes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_info.module_loader, "find_plugin", lambda name: None)
    found = {"on_loopback": False, "nodes": {"node0": {"firewalls": ["ufw"]}}}
    monkeypatch.setattr(cluster_info.ask_setup_facts, "inspect_cluster", lambda *_about: found)
    inventory = SimpleNamespace(
        cluster=["node0"],
        taking_part=["node0"],
        nodes=lambda hosts: [],
        variables=lambda host: {},
        resolve=None,
        value=lambda host, name, default: default,
    )
    action = cluster_info.ActionModule.__new__(cluster_info.ActionModule)
    with pytest.raises(JobError, match=r"^node0 has ufw, which needs the collection community.general, "):
        action.act({"roles": []}, inventory)
    found["on_loopback"] = True  # then setup.yml and teardown.yml leave the role firewall out
    assert action.act({"roles": []}, inventory) == {"changed": False, **found}
