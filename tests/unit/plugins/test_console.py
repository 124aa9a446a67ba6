# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command prints: its live output, one error, once; a line for each task of a setup; nothing of Ansible's."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.callback.console import fault, faults
from local_nodes import PYTHON, free_port, starts_jobs, until
from playing import ROOT, play

Playing = Callable[..., subprocess.CompletedProcess[str]]
AS_USERS = {"ANSIBLE_DISPLAY_FAILED_STDERR": "1"}
ANSIBLES = re.compile(r"^(PLAY|TASK|ok:|changed:|fatal:|skipping:|included:)|\*\*\*|Origin: |\x1b", re.MULTILINE)
"""Of the default callback's output."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes that were set up, as far as jobs need it, and a host that is none."""
    place = tmp_path_factory.mktemp("console")
    (place / "nodes").mkdir()
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{place}/nodes/{{{{ inventory_hostname }}}}",
        "cluster_master_port": free_port(),
        "job_user": "",
        "firewall_provider": "none",
    }
    hosts = {f"gpu-{n}": {"cluster_address": f"127.0.0.{n}"} for n in (2, 1)}
    groups = {"cluster": {"hosts": hosts, "vars": variables}, "others": {"hosts": {"desk": {}}}}
    (place / "hosts.yml").write_text(yaml.safe_dump(groups, sort_keys=False))
    (place / "none.yml").write_text(yaml.safe_dump({"cluster": {}, "others": {"hosts": {"desk": {}}}}))
    made = play(place, "setup.yml", "--tags", "node_env", **AS_USERS)
    assert (made.returncode, made.stderr) == (0, "")
    (place / "setup.txt").write_text(made.stdout)
    for host in hosts:
        (place / "nodes" / host / "env" / "bin").mkdir(parents=True)
        (place / "nodes" / host / "env" / "bin" / "python").symlink_to(PYTHON)
    (place / "project").mkdir()
    return place


@pytest.fixture
def command(folder: Path) -> Playing:
    """Run a playbook as users do."""

    def run(name: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return play(folder, name, *arguments, **{**AS_USERS, **more})

    return run


@pytest.fixture
def run(folder: Path, command: Playing) -> Playing:
    """Run a script."""

    def run(script: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        (folder / "project" / "train.py").write_text(script)
        return command("run.yml", "-e", "script=train.py", "-e", f"project_dir={folder}/project", *arguments, **more)

    return run


def own(folder: Path, *tasks: dict[str, Any], hosts: str = "cluster", **keywords: Any) -> str:
    """Write a playbook of somebody's own; return its path."""
    path = folder / "own.yml"
    path.write_text(
        yaml.safe_dump([{"name": "Own", "hosts": hosts, "gather_facts": False, **keywords, "tasks": tasks}])
    )
    return str(path)


def on_a_terminal(folder: Path, playbook: str, *arguments: str, **settings: str) -> tuple[int, str]:
    """Return how a playbook ends on a terminal of 100 columns, and all that it prints there."""
    main, side = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "NO_COLOR"))}
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "TERM": "xterm", "COLUMNS": "100", **settings}
    process = subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", playbook, *arguments],
        cwd=folder,
        env={**kept, "ANSIBLE_HOME": str(folder / "ansible"), **settings},
        stdin=subprocess.DEVNULL,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    printed = b""
    waiting = select.poll()  # select takes no descriptor from 1024 on
    waiting.register(main, select.POLLIN)
    while process.poll() is None or waiting.poll(200):
        if waiting.poll(200):
            try:
                printed += os.read(main, 65536)
            except OSError:
                break
    os.close(main)
    return process.wait(), printed.decode()


# --------------------------------------------------------------------------------------------------------- one command


@starts_jobs
def test_a_run_shows_what_it_does_and_nothing_else(run: Playing) -> None:
    done = run("print('hello')")
    assert (done.returncode, done.stderr) == (0, "")
    assert not ANSIBLES.search(done.stdout)
    first, *others = done.stdout.splitlines()
    assert "train.py on 2 nodes, MASTER_ADDR 127.0.0.2" in first
    assert others[0] == "[0 gpu-2] hello"
    assert [line.partition(":")[0] for line in others[1:]] == ["warning", "logs", "artifacts"]


@starts_jobs
def test_a_failure_is_told_once(run: Playing) -> None:
    script = "import os, time\nif os.environ['NODE_RANK'] == '0': raise ValueError('bad luck')\ntime.sleep(60)\n"
    done = run(script, "-e", "logs=none")
    assert done.returncode == 2
    assert done.stderr.startswith("[ERROR]: rank 0 (gpu-2) exited with code 1 after ")
    assert done.stderr.count("exited with code 1") == 1
    assert "exited with code 1" not in done.stdout and "ValueError" not in done.stdout
    assert not ANSIBLES.search(done.stdout + done.stderr)


def test_a_lost_node_is_told_at_once_and_not_again() -> None:
    """Its sentence comes live, because what it wrote is waited for; at the end is what was not shown."""
    told = fault(
        {
            "msg": "node1 is lost\n  | last words",
            "not_shown": "the job has failed, for the reason shown above\n  | last words",
        }
    )
    assert told == "the job has failed, for the reason shown above\n  | last words"


def test_what_would_be_run(run: Playing) -> None:
    done = run("", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "would start train.py on 2 nodes\n", "")


def test_status_stop_and_clean(command: Playing, run: Playing) -> None:
    listed = command("status.yml")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.startswith("JOB ") or listed.stdout == "no jobs\n"
    stopped = command("stop.yml")
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert stopped.stderr == (
        "[ERROR]: no job runs on these nodes; ansible-playbook status.yml lists those that have ended\n"
    )
    cleaned = command("clean.yml")
    assert (cleaned.returncode, cleaned.stdout.count("\n"), cleaned.stderr) == (0, 1, "")


def test_status_for_machines_is_one_line(command: Playing) -> None:
    listed = command("status.yml", "-e", "format=json")
    assert listed.stdout.count("\n") == 1
    assert json.loads(listed.stdout).keys() == {"jobs", "silent"}


def test_a_preflight_for_machines_is_one_line_whatever_it_finds(command: Playing) -> None:
    skip = "skip=reach,collective,names,hardware,software.lock,software.packages,software.imports"
    checked = command("preflight.yml", "-e", "format=json", "-e", skip)
    assert checked.returncode == 2, "no node can import torch"
    assert checked.stdout.count("\n") == 1
    assert json.loads(checked.stdout)["ok"] is False
    assert re.fullmatch(r"\[ERROR\]: \d+ checks in .* 1 failed, .*: software\.environment\n", checked.stderr)
    table = command("preflight.yml", "-e", skip)
    assert table.stdout.startswith("CHECK  ") and " 1 failed, " in table.stdout.splitlines()[-1]
    assert table.stderr == "[ERROR]: failed: software.environment\n"


@pytest.mark.parametrize(
    ("arguments", "inventory", "sentence"),
    [
        ([], "none.yml", "no host is in group cluster; list your machines under cluster: in the inventory (inventory/"),
        (["--check"], "none.yml", "no host is in group cluster; list your machines under cluster: in the inventory ("),
        (
            ["--limit", "desk"],
            "hosts.yml",
            "--limit desk leaves no host of group cluster; name hosts of it, such as gpu-2",
        ),
    ],
)
@pytest.mark.parametrize("playbook", ["setup.yml", "run.yml", "thunderhead.cluster.status"])
def test_no_node(command: Playing, playbook: str, arguments: list[str], inventory: str, sentence: str) -> None:
    done = command(playbook, *arguments, inventory=inventory)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"[ERROR]: {sentence}") and done.stderr.count("\n") == 1


def test_the_default_callback_works_as_before(command: Playing) -> None:
    done = command("status.yml", "-e", "job=none", ANSIBLE_STDOUT_CALLBACK="default")
    assert done.returncode == 2
    assert "TASK [Show the jobs] ***" in done.stdout and "PLAY RECAP ***" in done.stdout
    assert "fatal: [gpu-2]: FAILED! => " in done.stderr


def test_more_is_said_where_more_is_wanted(command: Playing) -> None:
    done = command("status.yml", "-v")
    assert "TASK [Show the jobs] ***" in done.stdout and "ok: [gpu-2] => " in done.stdout


# ------------------------------------------------------------------------------------------------------- several tasks


def test_a_setup_has_a_line_for_each_task(folder: Path) -> None:
    lines = (folder / "setup.txt").read_text().splitlines()
    assert [re.split(r" {2,}", line) for line in lines[:-1]] == [
        ["Find every node's rank, address and interface", "ok"],
        ["node_env: Look at every node's account for jobs, directories and environment file, all at once", "ok"],
        ["node_env: Make the directories for jobs and their code", "2 nodes, 2 changed"],
        ["node_env: Write the node's environment file", "2 nodes, 2 changed"],
    ]
    assert re.fullmatch(r"2 nodes done in \d+ s, 2 changed", lines[-1])


def test_roles_that_are_included(command: Playing) -> None:
    done = command("teardown.yml", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, said, other, end = done.stdout.splitlines()
    assert re.split(r" {2,}", lines[0]) == ["Find every node's interface, directory and job", "ok"]
    assert re.split(r" {2,}", lines[1]) == ["python_env: Remove the environments and what made them", "2 nodes"]
    assert re.match(r"gpu-[12]: no environment, no jobs' code and no node.env would be left; ", said)
    assert re.fullmatch(r"gpu-[12]: the same as gpu-[12]", other)
    assert end.endswith(" s, 2 would change")


def test_the_same_fault_of_many_nodes_is_told_once(command: Playing, folder: Path) -> None:
    """Both in the sentences of one task for all, and in those of each node."""
    setup = command("setup.yml", "--tags", "python_env", "-e", "python_env_python=/no/python")
    assert setup.returncode == 2
    told, other = setup.stderr.splitlines()
    assert told.startswith("[ERROR]: gpu-2 has no Python that runs as /no/python (")
    assert other == "gpu-1: the same as gpu-2"
    fails = {
        "name": "Fail",
        "ansible.builtin.command": "sh -c 'echo disk full; exit {{ code }}'",
        "changed_when": False,
    }
    done = command(own(folder, fails), "-e", "code=3")
    assert done.returncode == 2
    told, printed, other = done.stderr.splitlines()
    first, second = re.findall(r"gpu-[12]", f"{told} {other}")[:2]
    # ansible-core 2.21 says it in a whole sentence.
    assert re.fullmatch(rf"\[ERROR\]: {first}: (non-zero return code|The command .* non-zero return code\.)", told)
    assert printed == "  | disk full"
    assert other == f"[ERROR]: {second}: the same as {first}"
    line, end = done.stdout.splitlines()
    assert re.split(r" {2,}", line) == ["Fail", "2 nodes, 2 failed"]
    assert re.fullmatch(r"of 2 nodes in \d+ s, 2 failed: gpu-2, gpu-1", end)


def test_what_tasks_want_to_be_said(command: Playing, folder: Path) -> None:
    tasks = [
        {"name": "Say", "ansible.builtin.debug": {"msg": "{{ inventory_hostname }} is \x1b[31mred"}},
        {"name": "Say each", "ansible.builtin.debug": {"msg": "part {{ item }}"}, "loop": [1, 2], "run_once": True},
        {"name": "Ignore", "ansible.builtin.command": "false", "ignore_errors": True, "changed_when": False},
        {"name": "Skip", "ansible.builtin.command": "true", "when": False},
        {"name": "Unforeseen", "ansible.builtin.debug": {"msg": "{{ nothing }}"}, "run_once": True},
    ]
    done = command(own(folder, *tasks))
    said, other, *lines = done.stdout.splitlines()
    assert re.fullmatch(r"gpu-[12] is \\x1b\[31mred", said) and re.fullmatch(r"gpu-[12]: the same as gpu-[12]", other)
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["part 1"],
        ["part 2"],
        ["Ignore", "2 nodes, 2 failed, ignored"],
    ]
    assert re.fullmatch(r"\[ERROR\]: .*'nothing' is undefined \(-vvv shows where\)\n", done.stderr)


def test_what_would_change(command: Playing, folder: Path) -> None:
    place = folder / "diff.txt"
    place.write_text("one\n")
    copy = {"name": "Write", "ansible.builtin.copy": {"content": "two\n\x1b[31m\n", "dest": str(place), "mode": "0644"}}
    done = command(own(folder, copy), "--check", "--diff")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("+two") == 1 and "\x1b" not in done.stdout
    assert "2 nodes, 2 would change" in done.stdout
    assert re.search(r"gpu-[12]: the same as gpu-[12]\n", done.stdout)


def test_nodes_that_cannot_be_reached(command: Playing, folder: Path) -> None:
    task = {"name": "Do", "ansible.builtin.command": "true", "changed_when": False}
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {
        "hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}, "away": away}
    }
    (folder / "away.yml").write_text(yaml.safe_dump({"cluster": hosts}))
    done = command(own(folder, task), inventory="away.yml")
    assert done.returncode == 4
    assert done.stderr.startswith("[ERROR]: away: ") and done.stderr.count("\n") == 1
    line, end = done.stdout.splitlines()
    assert re.split(r" {2,}", line) == ["Do", "2 nodes, 1 unreachable"]
    assert re.fullmatch(r"of 2 nodes in \d+ s, 1 unreachable: away", end)


@pytest.mark.parametrize("keywords", [{"strategy": "free"}, {"serial": 1}])
def test_other_ways_through_a_play(command: Playing, folder: Path, keywords: dict[str, Any]) -> None:
    tasks = [
        {"name": name, "ansible.builtin.command": "true", "changed_when": True, "notify": "Handle"} for name in "AB"
    ]
    handler = {"name": "Handle", "ansible.builtin.command": "true", "changed_when": False}
    done = command(own(folder, *tasks, handlers=[handler], **keywords))
    assert (done.returncode, done.stderr) == (0, "")
    counted = {"free": "2 nodes", 1: "1 node"}[next(iter(keywords.values()))]
    found = [line.split("  ")[0] for line in done.stdout.splitlines()[:-1] if counted in line]
    assert found == ["A", "B", "Handle"] * (1 if counted == "2 nodes" else 2)
    assert done.stdout.endswith(" s, 2 changed\n")


def test_a_fault_that_a_play_mends(command: Playing, folder: Path) -> None:
    false = {"name": "Try", "ansible.builtin.command": "false", "changed_when": False}
    done = command(own(folder, {"block": [false], "rescue": [{**false, "ansible.builtin.command": "true"}]}))
    assert done.returncode == 0
    assert re.search(r"^2 nodes done in \d+ s, nothing changed$", done.stdout, re.MULTILINE)


def test_no_host_of_somebodys_own_play(command: Playing, folder: Path) -> None:
    done = command(own(folder, hosts="nobody"))
    assert (done.returncode, done.stdout) == (0, "Own: no host matches\n")


def test_loops_are_told_item_by_item() -> None:
    results = [
        {"failed": True, "msg": "no", "_ansible_item_label": "a", "item": 1},
        {"failed": False, "item": 2},
        {"failed": True, "msg": "no", "item": 3},
    ]
    assert faults({"msg": "One or more items failed", "results": results}) == ["a: no", "3: no"]
    assert faults({"censored": "hidden"}) == ["hidden"]
    assert faults({}) == ["it failed, and does not say why"]


# ------------------------------------------------------------------------------------------- terminals, files and pipes


def test_a_bar_on_a_terminal(folder: Path) -> None:
    sleep = "sh -c 'test {{ inventory_hostname }} = gpu-2 || sleep 1'"
    playbook = own(folder, {"name": "Wait", "ansible.builtin.command": sleep, "changed_when": False})
    code, printed = on_a_terminal(folder, playbook)
    assert code == 0, printed
    assert re.search(r"Wait  .*━.*  1/2, waiting for gpu-1", printed)
    shown = re.sub(r"[^\n]*\x1b\[2K", "", printed.replace("\r\n", "\n"))
    assert re.match(r"Wait  +2 nodes\n.*2 nodes done in \d+ s, nothing changed", shown), "and the bar has gone"


def test_a_terminal_without_colour(folder: Path) -> None:
    sleep = {"name": "Wait", "ansible.builtin.command": "sleep 0.1", "changed_when": False}
    for playbook in (own(folder, sleep), str(ROOT / "status.yml")):
        code, printed = on_a_terminal(folder, playbook, NO_COLOR="1")
        assert code == 0 and "\x1b" not in printed, printed


def test_a_table_on_a_terminal(folder: Path) -> None:
    _code, printed = on_a_terminal(folder, str(ROOT / "preflight.yml"), "-e", "skip=reach,collective,names,hardware")
    assert re.search(r"inventory\.ranks +\x1b\[32mok +\x1b\[0m  ranks 0 to 1", printed)


@pytest.fixture
def chatting(folder: Path) -> Iterator[list[str]]:
    """A command line whose playbook prints a line at once, and the next a while later."""
    tasks = [{"name": f"Say {n}", "ansible.builtin.debug": {"msg": "x" * n}, "run_once": True} for n in range(1, 4)]
    tasks.insert(1, {"name": "Wait", "ansible.builtin.pause": {"seconds": 3}})
    yield [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.yml", own(folder, *tasks)]


def surroundings(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHONUNBUFF"))}
    return {**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(folder / "ansible")}


def test_a_line_reaches_a_file_at_once(folder: Path, chatting: list[str]) -> None:
    path = folder / "out.txt"
    with path.open("wb") as file:
        process = subprocess.Popen(
            chatting, cwd=folder, env=surroundings(folder), stdout=file, stdin=subprocess.DEVNULL
        )
    until(lambda: path.read_text() == "x\n", 10)
    assert process.poll() is None and process.wait() == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_ends_nothing(folder: Path, chatting: list[str], unbuffered: str) -> None:
    environment = {**surroundings(folder), "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        chatting, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == b"x\n"
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_is_told(folder: Path, chatting: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(chatting, cwd=folder, env=surroundings(folder), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stderr == b"[WARNING]: standard output cannot be written any more: [Errno 28] No space left on device\n"
