# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions as users run them: ansible-playbook, an inventory with two nodes on this machine, the real playbooks."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import environment_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller import extra_vars
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import run_checks
from local_nodes import PYTHON, free_port, starts_jobs
from playing import ROOT, play

PREFIXES = ("cluster_", "job_", "preflight_", "python_env_", "firewall_", "node_env_")
JOB_ENV = {
    "EMPTY": "",
    "QUOTES": 'it\'s "quoted"',
    "DOLLAR": "$HOME $(id) `id`",
    "SPACES": "  two  words  ",
    "LINES": "first\n\nthird\r\n",
    "BACKSLASH": "C:\\temp\\",
    "UNICODE": "Zürich 日本 🚀",
    "HASH": "# no comment",
    "lower": "after upper case",
    "NUMBER": 3,
    "FRACTION": 1.50,
    "FLAG": True,
    "PL_TRAINER_NUM_NODES": "2",
}


@dataclass
class Cluster:
    """Two nodes below a folder, and the command line that goes with them."""

    folder: Path
    port: int

    def playbook(self, name: str, *arguments: str, inventory: str = "hosts.yml") -> subprocess.CompletedProcess[str]:
        return play(self.folder, name, *arguments, inventory=inventory)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Write the script into the project, and run it."""
        (self.folder / "project").mkdir(exist_ok=True)
        (self.folder / "project" / "train.py").write_text(script)
        return self.playbook("run.yml", "-e", f"project_dir={self.folder}/project", *arguments)

    @property
    def jobs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("nodes/*/jobs/*/work"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Two nodes on which the role node_env has run."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "nodes").mkdir()
    port = free_port()
    hosts = {f"node{n}": {"cluster_address": f"127.0.0.{n + 1}"} for n in range(2)}
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{folder}/nodes/{{{{ inventory_hostname }}}}",
        "cluster_master_port": port,
        "job_user": "",
        "job_env": {**JOB_ENV, "HOST": "{{ inventory_hostname }}"},
        "firewall_provider": "none",
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    options = set().union(*map(extra_vars.variables_of, (ROOT / "playbooks").glob("*.yml")))
    traps = {name: f"trap-{name}" for name in options if not name.startswith(PREFIXES)}
    trapped = {host: {**about, **traps} for host, about in hosts.items()}
    (folder / "trapped.yml").write_text(yaml.safe_dump({"cluster": {"hosts": trapped, "vars": {**variables, **traps}}}))
    (folder / "nobody.yml").write_text(yaml.safe_dump({"machines": {"hosts": {"node0": {}}}}))
    one = Cluster(folder, port)
    result = one.playbook("setup.yml", "--tags", "node_env")
    assert result.returncode == 0, result.stdout + result.stderr
    for node in hosts:
        (folder / "nodes" / node / "env" / "bin").mkdir(parents=True)
        (folder / "nodes" / node / "env" / "bin" / "python").symlink_to(PYTHON)
    return one


def test_the_role_renders_what_the_engine_renders(cluster: Cluster) -> None:
    for rank in (0, 1):
        path = cluster.folder / "nodes" / f"node{rank}" / "node.env"
        place = {
            "rank": rank,
            "world_size": 2,
            "master_addr": "127.0.0.1",
            "master_port": cluster.port,
            "interface": "lo",
        }
        given = environment_variables.as_environment({**JOB_ENV, "HOST": f"node{rank}"}, "job_env")
        assert path.read_bytes().decode() == environment_text(environment_variables.variables(place, given))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nodes_that_meet_on_loopback_pass_no_firewall(cluster: Cluster) -> None:
    result = cluster.playbook("setup.yml", "--tags", "firewall", "-e", "firewall_provider=auto")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "firewall: " not in result.stdout


def test_variables_for_jobs_as_text(cluster: Cluster) -> None:
    result = cluster.playbook("setup.yml", "--tags", "node_env", "--check", "--diff", "-e", 'job_env={"A":"b"}')
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 nodes, 2 would change\n" in result.stdout


def test_a_second_setup_only_looks(cluster: Cluster) -> None:
    result = cluster.playbook("setup.yml", "--tags", "node_env")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Make the directories" not in result.stdout
    assert re.search(r"2 nodes done in \d+ s, nothing changed\n$", result.stdout)


def remade_as_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def remade_as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        ("node.env", Path.unlink),
        ("node.env", lambda path: path.chmod(0o644)),
        ("node.env", lambda path: path.write_bytes(path.read_bytes().replace(b"RANK=1", b"RANK=0"))),
        ("node.env", remade_as_link),
        ("node.env", remade_as_pipe),
        ("bundles", Path.rmdir),
    ],
    ids=["gone", "readable", "changed", "link", "pipe", "folder"],
)
def test_a_setup_mends_what_is_damaged(cluster: Cluster, damaged: str, damage: Callable[[Path], None]) -> None:
    env = cluster.folder / "nodes" / "node1" / "node.env"
    before = env.read_bytes()
    damage(cluster.folder / "nodes" / "node1" / damaged)
    result = cluster.playbook("setup.yml", "--tags", "node_env")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Make the directories for jobs and their code  1 node(, 1 changed)?\n", result.stdout)
    assert (env.read_bytes(), stat.S_IMODE(env.stat().st_mode), env.is_symlink()) == (before, 0o600, False)
    assert (cluster.folder / "nodes" / "node1" / "bundles").is_dir()


def test_a_folder_in_the_place_of_the_environment_file_is_refused(cluster: Cluster) -> None:
    env = cluster.folder / "nodes" / "node1" / "node.env"
    moved = env.rename(env.with_suffix(".moved"))
    env.mkdir()
    result = cluster.playbook("setup.yml", "--tags", "node_env")
    env.rmdir()
    moved.rename(env)
    assert result.returncode == 2
    assert f"node1 has a folder as {env}, which is to be a file; move it away" in result.stdout + result.stderr


def test_no_variables_for_jobs(cluster: Cluster) -> None:
    result = cluster.playbook("setup.yml", "--tags", "node_env", "--check", "-e", '{"job_env": null}')
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 nodes, 2 would change\n" in result.stdout


@starts_jobs
def test_run(cluster: Cluster) -> None:
    script = (
        "import json, os, sys\n"
        f"names = {[*JOB_ENV, 'HOST', 'TOKEN', 'NODE_RANK', 'WORLD_SIZE', 'LOCAL_RANK']!r}\n"
        "print(json.dumps([{name: os.environ.get(name) for name in names}, sys.argv[1:]]))\n"
        "open('result', 'w').write('x')\n"
    )
    extra = {"script": "train.py", "script_args": ["--lr", "0.1"], "env": {"TOKEN": "hush $1"}, "logs": "all"}
    result = cluster.run(script, "-e", json.dumps(extra))
    assert result.returncode == 0, result.stdout + result.stderr
    printed = dict(re.findall(r"(?m)^(\[\d node\d\]) (.*)$", result.stdout))
    for rank in (0, 1):
        expected = {"TOKEN": "hush $1", "NODE_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": None}
        assert json.loads(printed[f"[{rank} node{rank}]"]) == [
            {**environment_variables.as_environment(JOB_ENV, "job_env"), "HOST": f"node{rank}", **expected},
            ["--lr", "0.1"],
        ]
    (run,) = (cluster.folder / "runs").glob("*-*")
    record = json.loads((run / "job.json").read_text())
    assert (record["state"], record["nodes"], record["world_size"]) == ("succeeded", 2, 1)
    assert "hush" not in (run / "job.json").read_text()
    assert (run / "artifacts" / "result").read_text() == "x"
    assert f"logs: {run}/logs" in result.stdout.splitlines()


@starts_jobs
def test_a_job_on_fewer_nodes_that_fails(cluster: Cluster) -> None:
    script = (
        "import os\nraise ValueError(os.environ['WORLD_SIZE'] + os.environ['NODE_RANK'] + os.environ['MASTER_ADDR'])"
    )
    result = cluster.run(script, "-e", "script=train.py", "--limit", "node1", "-e", "job_runs_dir=failed")
    assert result.returncode != 0
    (run,) = (cluster.folder / "failed").glob("*-*")
    (rank,) = json.loads((run / "job.json").read_text())["ranks"]
    cause = f"rank 0 (node1) exited with code 1 after {rank['seconds']:.0f} s: ValueError: 10127.0.0.2"
    assert f"{cause}; see {run}/logs/rank0-node1.log" in result.stdout + result.stderr


@starts_jobs
def test_short_names_of_an_inventory_are_somebody_elses(cluster: Cluster) -> None:
    def done(*command: str) -> str:
        result = cluster.playbook(*command, "-e", "job_runs_dir=trapped", inventory="trapped.yml")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "trap-" not in result.stdout
        return result.stdout

    done("setup.yml", "--tags", "node_env", "-e", '{"cluster": "prod", "node": "x", "running": ""}')
    project = cluster.folder / "project"
    project.mkdir(exist_ok=True)
    (project / "train.py").write_text("import sys\nprint(sys.argv[1:])")
    options = cluster.folder / "options.yml"
    options.write_text(f"project_dir: {project}\nscript: '{{{{ stem }}}}.py'\nstem: train\nscript_args: [--lr, 1]\n")
    assert "[0 node0] ['--lr', '1']" in done("run.yml", "-e", f"@{options}", "-e", "keep=9")
    done("preflight.yml", "-e", "skip=reach,collective,hardware,software")
    job = json.loads(next((cluster.folder / "trapped").glob("*-*/job.json")).read_text())
    assert (job["launcher"], job["resumed"], job["state"]) == ("python", None, "succeeded")
    assert job["id"] in done("status.yml")
    assert "[0 node0] ['--lr', '1']" in done("logs.yml")
    done("clean.yml", "-e", "keep=99")
    assert "had ended already" in done("stop.yml", "-e", json.dumps({"job": job["id"]}))
    done("teardown.yml", "--check")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"script": "absent.py", "keep": 3}, "script absent.py does not exist"),  # the task itself says train.py
        ({"script": "train.py", "scrpt": "x"}, "module: scrpt. Supported parameters"),
        (["script"], "options has to be a mapping"),
        ("script=train.py", "options has to be a mapping"),
    ],
)
def test_options_of_a_task(cluster: Cluster, options: Any, said: str) -> None:
    arguments = {"script": "train.py", "project_dir": str(cluster.folder), "options": options}
    play = {"hosts": "cluster", "gather_facts": False, "tasks": [{"thunderhead.cluster.job": arguments}]}
    (cluster.folder / "own.yml").write_text(yaml.safe_dump([play]))
    result = cluster.playbook(str(cluster.folder / "own.yml"))
    assert result.returncode == 2
    assert said in result.stdout + result.stderr


def test_a_wrong_option_shows_no_others(cluster: Cluster) -> None:
    options = {"script": "train.py", "env": {"TOKEN": "secret-of-env"}, "logs": "bogus"}
    result = cluster.playbook("run.yml", "-e", json.dumps(options))
    assert result.returncode == 2
    assert "value of logs must be one of: head, all, none, got: bogus" in result.stdout + result.stderr
    assert "secret-of-env" not in result.stdout + result.stderr


def test_a_node_that_does_not_answer_makes_no_other_unreachable(cluster: Cluster) -> None:
    hosts = yaml.safe_load((cluster.folder / "hosts.yml").read_text())
    hosts["cluster"]["hosts"]["node1"] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    (cluster.folder / "silent.yml").write_text(yaml.safe_dump(hosts))
    result = cluster.playbook("status.yml", "-e", "format=json", inventory="silent.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("{"))
    assert list(json.loads(line)["silent"]) == ["node1"]


@starts_jobs
def test_check_mode_starts_nothing(cluster: Cluster) -> None:
    before = cluster.jobs
    result = cluster.run("pass", "-e", "script=train.py", "-e", "job_runs_dir=checked", "--check", "-v")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "would start train.py on 2 nodes" in result.stdout
    assert not (cluster.folder / "checked").exists()
    assert cluster.jobs == before


@pytest.mark.parametrize(
    ("arguments", "inventory", "message"),
    [
        (
            ["-e", "script=train.py script_args=--max-epochs 3"],
            "hosts.yml",
            "-e was given '3', which belongs to no variable; quote a value with spaces once more, as in -e "
            '"script_args=\'--max-epochs 3\'", or give JSON: -e \'{"script_args": ["--max-epochs", "3"]}\'',
        ),
        (
            ["-e", "script=train.py", "-e", "resum=20260101-000000-train-0000"],
            "hosts.yml",
            "-e was given resum, which this playbook does not read; write resume, or give a variable of the "
            "inventory's own another name",
        ),
        (
            ["-e", "script=train.py", "-e", "args=--max-epochs"],
            "hosts.yml",
            "-e was given args, a name that Ansible reserves for itself; write script_args",
        ),
        (
            ["-e", "script=train.py", "-e", "keep={{ nowhere }}"],
            "hosts.yml",
            "The option keep cannot be resolved",
        ),
        (
            ["-e", "script=train.py"],
            "nobody.yml",
            "no host is in group cluster; list your machines under cluster: in the inventory (inventory/sample shows "
            "how), or name another inventory with -i",
        ),
    ],
)
def test_a_command_line_that_cannot_be_meant(
    cluster: Cluster, arguments: list[str], inventory: str, message: str
) -> None:
    before = cluster.jobs
    result = cluster.playbook("run.yml", *arguments, inventory=inventory)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert cluster.jobs == before


@pytest.mark.parametrize(
    ("playbook", "given", "meant"),
    [
        ("setup.yml", "python_env_requirement", "python_env_requirements"),
        ("setup.yml", "firewall_provder", "firewall_provider"),
        ("teardown.yml", "remove_job", "remove_jobs"),
        ("clean.yml", "kepp", "keep"),
        ("thunderhead.cluster.teardown", "remove_job", "remove_jobs"),
    ],
)
def test_a_misspelt_name_changes_nothing(cluster: Cluster, playbook: str, given: str, meant: str) -> None:
    before = listing(cluster.folder / "nodes")
    result = cluster.playbook(playbook, "-e", f"{given}=1")
    assert result.returncode != 0
    message = f"-e was given {given}, which this playbook does not read; write {meant}, or give a variable of the "
    assert message in result.stdout + result.stderr
    assert listing(cluster.folder / "nodes") == before


# ------------------------------------------------------------------------------------------------------------ preflight


def verdicts(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What ``-e format=json`` printed, by check."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("{"))
    found: list[dict[str, Any]] = json.loads(line)["checks"]
    return {one["check"]: one for one in found}


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def trainable(cluster: Cluster) -> Iterator[Cluster]:
    """The nodes have an environment with this one's packages, as setup.yml leaves it."""
    added = []
    for node in ("node0", "node1"):
        folder = cluster.folder / "nodes" / node
        python = folder / "env" / "bin" / "python"
        python.unlink()
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        added.append(folder / "env" / "lib")
        packages = added[-1] / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        packages.parent.mkdir(parents=True)
        packages.symlink_to(sysconfig.get_path("purelib"))
        shutil.copy(ROOT / "requirements.txt", folder)
    yield cluster
    for folder in added:
        shutil.rmtree(folder)
        (folder.parent / "bin" / "python").unlink()
        (folder.parent / "bin" / "python").symlink_to(PYTHON)


@pytest.mark.torch
def test_preflight_of_a_cluster_that_can_train(trainable: Cluster) -> None:
    before = listing(trainable.folder / "nodes")
    result = trainable.playbook("preflight.yml", "-e", "format=json", "-e", "script=train.py")
    assert result.returncode == 0, result.stdout + result.stderr
    found = verdicts(result)
    assert list(found) == list(run_checks.CHECKS)
    assert {name: one["sentence"] for name, one in found.items() if one["status"] in ("failed", "warning")} == {}
    assert found["software.imports"]["sentence"] == "what train.py imports is there on both nodes"
    assert found["collective.gloo"]["status"] == "ok"
    assert listing(trainable.folder / "nodes") == before


@pytest.mark.torch
def test_preflight_sees_the_code_as_it_will_lie_on_the_nodes(trainable: Cluster, tmp_path: Path) -> None:
    """What git ignores is missed there, as in a job, and brought as for a job."""
    (tmp_path / "pkg").mkdir()
    for name, text in {"__init__.py": "", "train.py": "from . import _version", "_version.py": ""}.items():
        (tmp_path / "pkg" / name).write_text(text)
    (tmp_path / ".gitignore").write_text("_version.py")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    skip = "skip=collective,reach,hardware,names,inventory,time"
    asked = ["preflight.yml", "-e", "format=json", "-e", skip, "-e", "module=pkg.train"]
    asked += ["-e", f"project_dir={tmp_path}"]
    result = trainable.playbook(*asked)
    assert result.returncode == 2
    assert "not part of the job's code: 1 file that git ignores, the largest pkg/_version.py (0 B)" in result.stdout
    assert verdicts(result)["software.imports"]["sentence"] == (
        "each of node0, node1 cannot import what pkg/train.py, line 1 asks for (ImportError: cannot import name "
        "'_version' from 'pkg' (pkg/__init__.py); pkg/_version.py lies in the project, but git ignores it, so it was "
        "no part of the job's code; bring it with -e include='pkg/_version.py')"
    )
    assert trainable.playbook(*asked, "-e", "include=_version.py").returncode == 0


def test_preflight_of_a_cluster_that_cannot(cluster: Cluster) -> None:
    environment_file = cluster.folder / "nodes" / "node1" / "node.env"
    text = environment_file.read_text()
    environment_file.write_text(text.replace("NODE_RANK=1", "NODE_RANK=0"))
    result = cluster.playbook("preflight.yml", "-e", "skip=reach,collective,hardware.shm")
    environment_file.write_text(text)
    assert result.returncode == 2
    rows = dict(
        line.split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith(tuple(run_checks.CHECKS))
    )
    assert rows["inventory.ranks"] == (
        "failed   node1 was set up as rank 0 of 2, but the inventory has 2 hosts now, or in another order: node.env "
        "and the firewalls are of an earlier one; run: ansible-playbook setup.yml"
    )
    assert rows["software.environment"] == (
        "failed   each of node0, node1 cannot import torch: ModuleNotFoundError: No module named 'torch'; add torch to "
        "the requirements (python_env_requirements), and run: "
        "ansible-playbook setup.yml"
    )
    assert rows["reach.mtu"] == rows["hardware.shm"] == "skipped  on request"
    assert "2 failed" in result.stdout and "inventory.ranks, software.environment" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "inventory", "message"),
    [
        (["-e", "skip=hardware.shn"], "hosts.yml", "skip has hardware.shn, which is no check; the groups are"),
        (["-e", "script=gone.py"], "hosts.yml", "script gone.py does not exist in project_dir"),
        (["-e", "devices=two"], "hosts.yml", "devices is two; set auto, or the number of ranks on each node"),
        ([], "nobody.yml", "no host is in group cluster; list your machines under"),
    ],
)
def test_a_preflight_that_cannot_be_meant(cluster: Cluster, arguments: list[str], inventory: str, message: str) -> None:
    result = cluster.playbook("preflight.yml", *arguments, inventory=inventory)
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
