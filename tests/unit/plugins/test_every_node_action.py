# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Actions of the roles that only look: all hosts at once, each with its own arguments."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from playing import play

TASK = {
    "name": "Look",
    "thunderhead.cluster.python_env_info": {
        "directory": "{{ place }}",
        "python": "{{ python | default(omit) }}",
        "digest": "{{ inventory_hostname }}",
        "find_links": "{{ wheels | default([]) }}",
    },
    "register": "found",
    "run_once": True,
}


def looked(
    folder: Path,
    *arguments: str,
    fatal: bool = False,
    environment: dict[str, str] | None = None,
    **hosts: dict[str, Any],
) -> subprocess.CompletedProcess[str]:
    """Run the task for hosts on this machine; ``fatal``: what is wrong with one ends the play for all."""
    about = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "python": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": about}}))
    copy = {"content": "{{ found | to_json }}", "dest": str(folder / "found.json")}
    write = {"name": "Write", "ansible.builtin.copy": copy, "run_once": True}
    about_all = {"any_errors_fatal": fatal, "environment": environment or {}}
    one = {"name": "Look", "hosts": "all", "gather_facts": False, **about_all, "tasks": [TASK, write]}
    (folder / "play.yml").write_text(yaml.safe_dump([one]))
    return play(folder, str(folder / "play.yml"), *arguments, ANSIBLE_STDOUT_CALLBACK="default")


def test_every_host_is_asked_with_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "b" / "bin").mkdir(parents=True)
    (tmp_path / "b" / "bin" / "uv").write_text("#!/bin/sh\necho uv 1.2.3\n")
    (tmp_path / "b" / "bin" / "uv").chmod(0o755)
    hosts = {name: {"place": f"{tmp_path}/{{{{ inventory_hostname }}}}"} for name in ("a", "b", "c")}
    result = looked(tmp_path, "--limit", "b,a", **hosts)
    assert result.returncode == 0, result.stdout + result.stderr
    nodes = json.loads((tmp_path / "found.json").read_text())["nodes"]
    assert [*nodes] == ["a", "b"]
    assert [one["uv"] for one in nodes.values()] == ["", "1.2.3"]
    assert nodes["a"]["target"] != nodes["b"]["target"]
    assert nodes["a"]["executable"] == nodes["b"]["executable"] == sys.executable


WRONG = [
    ({"wheels": ["/no/such"]}, "{} has no folder /no/such; make it there, or correct python_env_find_links"),
    ({"wheels": {"a": 1}}, "{}: argument 'find_links' is of type dict"),
    ({"place": "{{ nowhere }}"}, "{}: 'nowhere' is undefined; correct it in the inventory"),
    ({"place": "below"}, "{}: directory is below, which is no absolute path; correct it in the inventory"),
    ({"python": ""}, "{} has an empty python_env_python; name a Python from 3.10 to 3.13 there"),
    ({"ansible_python_interpreter": "/no/python"}, "{} has no usable Python: /no/python was not found"),
    (
        {"ansible_python_interpreter": "/bin/true"},
        "{} has no usable Python: /bin/true is no Python interpreter (it printed no error); install",
    ),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_is_wrong_with_a_host_is_told_with_its_name(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    hosts = {name: {"place": str(tmp_path), **(wrong if name in "bc" else {})} for name in ("a", "b", "c")}
    result = looked(tmp_path, fatal=True, **hosts)
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert words.format("b") in output and words.format("c") in output, output
    assert "Traceback" not in output
    assert words.format("a")[:8] not in output


def test_a_host_that_cannot_be_looked_at_keeps_nobody_else_from_it(tmp_path: Path) -> None:
    hosts = {name: {"place": str(tmp_path)} for name in ("a", "b", "c")}
    hosts["c"]["ansible_python_interpreter"] = "/no/python"
    hosts["b"] = {"place": "{{ nowhere }}"}
    result = looked(tmp_path, **hosts)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [*found["nodes"]] == ["a"] and [*found["errors"]] == ["b", "c"]
    assert found["errors"]["c"].startswith("c has no usable Python: /no/python was not found")


def test_the_environment_and_the_files_of_the_play_count(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pythonX").symlink_to(sys.executable)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "name.txt").write_text("pythonX")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    about = {"place": str(tmp_path), "python": "{{ lookup('file', 'name.txt') }}", "path": path}
    result = looked(tmp_path, environment={"PATH": "{{ path }}"}, a=about)
    assert result.returncode == 0, result.stdout + result.stderr
    (node,) = json.loads((tmp_path / "found.json").read_text())["nodes"].values()
    assert node["executable"] == f"{tmp_path}/bin/pythonX"
