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


def looked(folder: Path, *arguments: str, **hosts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run the task for hosts on this machine."""
    about = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "python": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": about}}))
    copy = {"content": "{{ found.nodes | to_json }}", "dest": str(folder / "found.json")}
    write = {"name": "Write", "ansible.builtin.copy": copy, "run_once": True}
    (folder / "play.yml").write_text(
        yaml.safe_dump([{"name": "Look", "hosts": "all", "gather_facts": False, "tasks": [TASK, write]}])
    )
    return play(folder, str(folder / "play.yml"), *arguments)


def test_every_host_is_asked_with_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "b" / "bin").mkdir(parents=True)
    (tmp_path / "b" / "bin" / "uv").write_text("#!/bin/sh\necho uv 1.2.3\n")
    (tmp_path / "b" / "bin" / "uv").chmod(0o755)
    hosts = {name: {"place": f"{tmp_path}/{{{{ inventory_hostname }}}}"} for name in ("a", "b", "c")}
    result = looked(tmp_path, "--limit", "b,a", **hosts)
    assert result.returncode == 0, result.stdout + result.stderr
    nodes = json.loads((tmp_path / "found.json").read_text())
    assert [*nodes] == ["a", "b"]
    assert [one["uv"] for one in nodes.values()] == ["", "1.2.3"]
    assert nodes["a"]["target"] != nodes["b"]["target"]
    assert nodes["a"]["executable"] == nodes["b"]["executable"] == sys.executable


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"wheels": ["/no/such"]}, ["b has no folder /no/such; make it there", "c has no folder /no/such"]),
        ({"wheels": {"a": 1}}, ["b: argument 'find_links' is of type dict", "c: argument 'find_links'"]),
        ({"place": "{{ nowhere }}"}, ["b: 'nowhere' is undefined; correct it in the inventory", "c: 'nowhere' is"]),
        ({"place": "below"}, ["b: directory is below, which is no absolute path; correct it in the inventory"]),
        ({"ansible_python_interpreter": "/no/python"}, ["b has no usable Python: /no/python was not found"]),
    ],
)
def test_what_is_wrong_with_a_host_is_told_in_one_sentence(tmp_path: Path, wrong: dict[str, Any], words: list[str]):
    hosts = {name: {"place": str(tmp_path), **(wrong if name in "bc" else {})} for name in ("a", "b", "c")}
    result = looked(tmp_path, **hosts)
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert all(word in output for word in words), output
    assert "Traceback" not in output
    assert "a has" not in output and "a: " not in output
