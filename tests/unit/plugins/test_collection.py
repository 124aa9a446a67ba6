# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says of itself, and what is in it once it is built."""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from playing import ROOT

PARTS = {
    *("CHANGELOG.rst", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "FILES.json", "LICENSE", "LICENSES"),
    *("MANIFEST.json", "README.md", "REUSE.toml", "changelogs", "docs", "inventory", "meta", "playbooks", "plugins"),
    *("requirements.txt", "roles", "train"),
}


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[tarfile.TarInfo]:
    """What is in the archive."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(["ansible-galaxy", "collection", "build", "--output-path", folder], cwd=ROOT, check=True)
    (archive,) = folder.iterdir()
    with tarfile.open(archive) as file:
        return file.getmembers()


def test_nothing_is_in_the_archive_but_the_collection(members: list[tarfile.TarInfo]) -> None:
    assert {Path(member.name).parts[0] for member in members} == PARTS
    assert all(member.isfile() or member.isdir() for member in members)
    assert {member.name for member in members if Path(member.name).parts[0] == "inventory" and member.isfile()} == {
        "inventory/local/hosts.yml",
        "inventory/sample/hosts.yml",
    }


def test_every_file_of_plugins_and_roles_is_in_the_archive(members: list[tarfile.TarInfo]) -> None:
    listed = ["git", "ls-files", "plugins", "roles", "train", "docs", "meta"]
    tracked = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert set(tracked) <= {member.name for member in members}


def test_an_execution_environment_gets_what_the_controller_needs() -> None:
    dependencies = read("meta/execution-environment.yml")["dependencies"]
    assert all((ROOT / path).is_file() for path in dependencies.values())
    version = read("roles/python_env/defaults/main.yml")["python_env_uv_version"]
    assert f"uv=={version}\n" in (ROOT / dependencies["python"]).read_text()


def test_ansible_is_required_once() -> None:
    assert read("meta/runtime.yml") == {"requires_ansible": ">=2.19.0"}
    assert "requires_ansible" not in read("galaxy.yml")
    for role in (ROOT / "roles").iterdir():
        assert read(f"roles/{role.name}/meta/main.yml")["galaxy_info"]["min_ansible_version"] == "2.19"


def test_the_collections_that_the_roles_use_are_its_dependencies() -> None:
    from ansible_collections.thunderhead.cluster.plugins.action.cluster_info import MODULES

    assert {module.rpartition(".")[0] for module in MODULES.values()} == read("galaxy.yml")["dependencies"].keys()
