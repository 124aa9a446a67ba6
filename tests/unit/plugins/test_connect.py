# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""With what the engine reaches each host of a play, compared with what Ansible's executor would use there itself."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from playing import play

HERE = Path(__file__).parent / "connections"
SECRET = b"of the vault"


class Vaulted(str):
    """Text that stands in the inventory as `!vault`."""


yaml.SafeDumper.add_representer(Vaulted, lambda dumper, text: dumper.represent_scalar("!vault", str(text), style="|"))


def vaulted(text: str) -> Vaulted:
    return Vaulted(VaultLib([("default", VaultSecret(SECRET))]).encrypt(text).decode())


HOSTS: dict[str, dict[str, Any]] = {
    "here": {"ansible_connection": "local", "ansible_python_interpreter": "/opt/own/python", "ansible_become": False},
    "plain": {},
    "secret": {
        "ansible_user": "ubuntu",
        "ansible_password": "of secret only",
        "ansible_become_password": vaulted("sudo of secret only"),
    },
    "elsewhere": {
        "ansible_host": "198.18.0.9",
        "ansible_port": "{{ base_port + 22 }}",
        "base_port": 2200,
        "ansible_ssh_private_key_file": "/keys/{{ inventory_hostname }}",
        "ansible_ssh_common_args": "-J jump.example.org",
        "ansible_ssh_timeout": 77,
        "ansible_ssh_retries": 3,
        "ansible_ssh_executable": "/opt/ssh",
    },
    "container": {
        "ansible_connection": "community.docker.docker",
        "ansible_docker_extra_args": "--tls",
        "ansible_user": "inside",
        "ansible_host": "box",
    },
    "other_become": {
        "ansible_become_method": "su",
        "ansible_become_user": "admin",
        "ansible_become_pass": "su only",
        "ansible_become_exe": "/opt/su",
        "ansible_become_flags": "-l",
    },
    "old_names": {"ansible_ssh_user": "old", "ansible_ssh_pass": "old pass", "ansible_ssh_port": 2022},
    "other_shell": {
        "ansible_shell_executable": "/bin/dash",
        "ansible_shell_type": "sh",
        "ansible_remote_tmp": "/var/tmp/of-other",
        "ansible_sudo_pass": "sudo pass",
    },
    "by_hostvars": {"ansible_host": "{{ hostvars['elsewhere'].ansible_host }}", "login": "templated"},
    "says_no": {"ansible_become": "false", "ansible_timeout": 5, "ansible_scp_extra_args": "-l 10"},
}
"""Host by host, settings that no other host may get."""
GROUP = {"ansible_ssh_retries": 3, "ansible_user": "of-group"}
COMMAND_LINES: dict[str, tuple[list[str], dict[str, str]]] = {
    "nothing": ([], {}),
    "options": (
        [
            *("-u", "of-command-line", "--private-key", "/keys/of-command-line", "-T", "33"),
            *("--connection-password-file", "password", "--become-password-file", "become", "--become-method", "su"),
            *("--ssh-extra-args=-v", "--ssh-common-args=-o ProxyJump=all"),
        ],
        {},
    ),
    "extra variables": (
        ["-e", "ansible_user=extra ansible_ssh_retries=9 ansible_python_interpreter=/extra/python", "-c", "local"],
        {},
    ),
    "configuration": (
        [],
        {
            "ANSIBLE_REMOTE_USER": "configured",
            "ANSIBLE_BECOME_FLAGS": "-configured",
            "ANSIBLE_TIMEOUT": "44",
            "ANSIBLE_PYTHON_INTERPRETER": "/configured/python",
            "ANSIBLE_EXECUTABLE": "/bin/configured",
        },
    ),
}
PLAYS: dict[str, dict[str, Any]] = {
    "as ours": {"become": True},
    "without become": {},
    "variables": {
        "become": True,
        "vars": {"ansible_ssh_retries": 4, "ansible_become_flags": "-of-play", "ansible_port": 2345},
        "vars_files": ["more.yml"],
    },
    "keywords": {
        "become": True,
        "remote_user": "{{ login | default(omit) }}",
        "port": "{{ base_port | default(1022) }}",
        "timeout": 600,
        "become_user": "{{ inventory_hostname }}",
        "become_flags": "-of-keyword",
    },
}


def reached(
    folder: Path, hosts: Sequence[str], about: dict[str, Any], arguments: Sequence[str], environment: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return what an ordinary task, and the engine, reach these hosts with, by who and by host."""
    folder.mkdir()
    in_group = {"hosts": {"plain": {}, "old_names": {}}, "vars": GROUP}
    inventory = {"cluster": {"hosts": {host: HOSTS[host] for host in hosts}, "children": {"some": in_group}}}
    if list(hosts) != list(HOSTS):  # children come after the hosts of a group, whatever the order
        del inventory["cluster"]["children"]
        inventory["some"] = in_group
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    (folder / "more.yml").write_text("ansible_ssh_args: -C\nansible_remote_tmp: /of/file\n")
    for name, text in {"password": "asked for", "become": "asked too", "vault": SECRET.decode()}.items():
        (folder / name).write_text(text)
    tasks = []
    for who in ("ordinary", "engine"):
        (folder / who).mkdir()
        tasks.append({"name": who, who: {"folder": str(folder / who)}})
    whole = [{"name": "Compare", "hosts": "cluster", "gather_facts": False, **about, "tasks": tasks}]
    (folder / "compare.yml").write_text(yaml.safe_dump(whole))
    result = play(
        folder,
        str(folder / "compare.yml"),
        *("--vault-password-file", "vault", *arguments),
        ANSIBLE_ACTION_PLUGINS=str(HERE / "action_plugins"),
        PYTHONPATH=str(HERE),
        **environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = {
        who: {path.stem: json.loads(path.read_text()) for path in (folder / who).iterdir()}
        for who in ("ordinary", "engine")
    }
    shutil.rmtree(folder)
    assert set(found["ordinary"]) == set(found["engine"]) == set(hosts)
    return found


@pytest.mark.parametrize(
    ("about", "command_line"),
    [
        ("as ours", "nothing"),
        ("variables", "options"),
        ("keywords", "configuration"),
        ("without become", "extra variables"),
    ],
)
def test_each_host_is_reached_as_by_an_ordinary_task(tmp_path: Path, about: str, command_line: str) -> None:
    for hosts in (list(HOSTS), list(reversed(HOSTS))):
        found = reached(tmp_path / "play", hosts, PLAYS[about], *COMMAND_LINES[command_line])
        assert found["engine"] == found["ordinary"]


def test_what_belongs_to_one_host_is_given_to_no_other(tmp_path: Path) -> None:
    first = ["here", "secret", *(set(HOSTS) - {"here", "secret"})]
    found = reached(tmp_path / "play", first, PLAYS["as ours"], *COMMAND_LINES["nothing"])["engine"]
    assert {host for host, settings in found.items() if settings["connection"]["plugin"] == "local"} == {"here"}
    for own, owner in {
        "of secret only": "secret",
        "sudo of secret only": "secret",
        "/opt/own/python": "here",
        "/keys/elsewhere": "elsewhere",
        "jump.example.org": "elsewhere",
        "su only": "other_become",
        "old pass": "old_names",
        "/bin/dash": "other_shell",
    }.items():
        assert {host for host, settings in found.items() if own in json.dumps(settings)} == {owner}
