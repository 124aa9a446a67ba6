# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says goes through Ansible: nothing of it is a template there, whatever it looks like."""

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest
import yaml
from local_nodes import PYTHON, free_port
from lying_nodes import JOB
from playing import ROOT
from test_actions import Cluster

# Beside node0, which tells the truth about nothing either, but harmlessly.
LIAR = f"""\
#!{sys.executable}
import os, sys
if "-c" not in sys.argv:  # a module of Ansible's
    os.execv({PYTHON!r}, [{PYTHON!r}, *sys.argv[1:]])
sys.path[:0] = [{str(ROOT / "collections")!r}, {str(Path(__file__).parent)!r}]
from lying_nodes import LyingNode

POISON = "\\x1b]0;owned\\x07{{{{ lookup('pipe', 'touch VICTIM') }}}}"

def lie(request, reply, payload):
    op = request["op"]
    if op == "setup_facts":
        lies = {{"interface": "{{{{7*7}}}}", "folder": POISON + node.host, "session": POISON}}
        return {{**reply, **lies, "job": {{**reply["job"], "id": POISON}}}}, payload
    if op == "prepare":
        return {{**reply, "start_file": "VICTIM"[:-6] + "nodes/start_file" + node.host}}, payload
    if op == "follow":
        return {{**reply, "because": POISON, "error": POISON}}, payload
    if op == "list_jobs":
        (job,) = reply["jobs"]
        spec = {{**job["spec"], "user": POISON, "script": POISON}}
        return {{**reply, "jobs": [{{**job, "spec": spec, "last_line": POISON}}]}}, payload
    if op == "list_artifacts":
        return reply, POISON.encode() + b"\\0" + b"8\\0" + b"1\\0"
    if op == "clean":
        return {{**reply, "jobs": [POISON], "left": [(POISON, POISON)]}}, payload
    if op == "stop":
        return {{"ok": False, "refusal": POISON}}, payload
    return reply, payload

node = LyingNode(sys.argv[0].rpartition("/")[2], "127.0.0." + str(int(sys.argv[0][-1]) + 1), lie)
code, output, errors = node.exec_command("", sys.stdin.buffer.read())
sys.stdout.buffer.write(output)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Two nodes that lie."""
    folder = tmp_path_factory.mktemp("liars")
    for name in ("node0", "node1"):
        (folder / name).write_text(LIAR.replace("VICTIM", str(folder / "victim")))
        (folder / name).chmod(stat.S_IRWXU)
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": f"{folder}/{{{{ inventory_hostname }}}}",
        "cluster_dir": f"{folder}/nodes/{{{{ inventory_hostname }}}}",
        "cluster_master_port": free_port(),
        "job_user": "",
        "firewall_provider": "none",
        "job_runs_dir": f"{folder}/runs",
    }
    hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(2)}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    (folder / "nodes").mkdir()
    return Cluster(folder, 0)


LITERALLY = r"\x1b]0;owned\x07{{ lookup('pipe', 'touch "


@pytest.mark.parametrize(
    ("playbook", "arguments", "code", "words"),
    [
        ("run.yml", ["-e", "script=train.py", "-e", "collect=all", "-vvv"], 2, LITERALLY),
        ("status.yml", ["-vvv"], 0, LITERALLY),
        ("status.yml", ["-e", "format=json"], 0, json.dumps(LITERALLY)[1:-1]),
        ("logs.yml", ["-e", f"job={JOB}"], 2, LITERALLY),
        ("stop.yml", ["-e", f"job={JOB}"], 2, f"node0 {LITERALLY}"),
        ("clean.yml", ["-vvv"], 0, LITERALLY),
        ("setup.yml", ["--tags", "node_env", "-vvv"], 0, "{{7*7}}"),
        ("teardown.yml", ["--tags", "always", "-vvv"], 2, f"node0 runs {LITERALLY}"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_playbook(cluster: Cluster, playbook: str, arguments: list[str], code: int, words: str) -> None:
    result = cluster.playbook(playbook, *arguments)
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    assert words in output
    found = re.search(r"[^\n]*[\x00-\x08\x0b-\x1f\x7f-\x9f].*", output)
    assert found is None, found
    assert not (cluster.folder / "victim").exists()


def test_the_environment_file_has_it_literally(cluster: Cluster) -> None:
    lines = (cluster.folder / "nodes" / "node1" / "node.env").read_text().splitlines()
    assert "GLOO_SOCKET_IFNAME='{{7*7}}'" in lines


def test_nothing_was_written_elsewhere(cluster: Cluster) -> None:
    own = {"node0", "node1", "hosts.yml", "nodes", "runs", "ansible", "tmp"}
    assert {*os.listdir(cluster.folder)} <= own
