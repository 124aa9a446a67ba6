# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What -e was given, and what the playbooks read of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import SPEC
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.extra_vars import (
    NAMES_OF_JOBS,
    STRAY,
    options_of,
    require_meant,
    variables_beside,
    variables_of,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from jinja2 import Environment
from jinja2.nodes import Name

ROOT = Path(__file__).parents[3]
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
READ = {playbook.stem: variables_of(playbook) | SPEC.keys() for playbook in PLAYBOOKS}
PREFIXES = ("cluster_", "job_", "preflight_", "python_env_", "firewall_", "node_env_")
OPTIONS = {name for read in READ.values() for name in read if not name.startswith(PREFIXES)}
MAGIC = {
    "ansible_limit",
    "ansible_play_hosts_all",
    "groups",
    "inventory_hostname",
    "lookup",
    "omit",
    "playbook_dir",
    "undef",
}
"""What Ansible itself defines."""


def names_in(template: str) -> set[str]:
    """The variables that a template reads."""
    return {node.name for node in Environment().parse(template).find_all(Name)}


def own_names(playbook: Path) -> set[str]:
    """What a playbook defines for itself."""
    text = playbook.read_text()
    found = set(re.findall(r"register: (\w+)", text))
    for play in yaml.safe_load(text):
        found |= {name for entry in [play, *play.get("tasks", [])] for name in entry.get("vars", {})}
    return found


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            # What these hold is a template without braces.
            yield from ([f"{{{{ {one} }}}}" for one in strings(item)] if name in ("when", "that") else strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda playbook: playbook.stem)
def test_a_short_name_counts_only_from_the_command_line(playbook: Path) -> None:
    read: set[str] = set().union(*map(names_in, strings(yaml.safe_load(playbook.read_text()))))
    assert {name for name in read if not name.startswith(PREFIXES)} <= MAGIC | own_names(playbook)
    assert not own_names(playbook) & OPTIONS


def test_what_counts_as_a_short_name() -> None:
    assert {"script", "script_args", "env", "keep", "job", "format", "skip", "remove_jobs", "wait"} <= OPTIONS
    assert names_in("{{ keep | default(omit) }}") == {"keep", "omit"}


def test_the_options_of_a_task() -> None:
    task = {
        "name": "not this",
        "module": {"a": "{{ given | default(omit) }}", "b": "{{ short | default(long | default(omit)) }}"},
        "vars": {"found": "{{ registered.jobs | first | default('') }}"},
        "b": "{{ lookup('thunderhead.cluster.options', 'skip', 'env') }}",
        "c": '{{ lookup("thunderhead.cluster.options", "keep").keep | default(other) }}',
        "d": "{{ preflight_skip | default(omit) }}",
    }
    assert options_of(str(task)) == {"given", "short", "long", "skip", "env", "keep", "preflight_skip"}


def test_what_somebody_elses_playbook_reads_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text(PLAYBOOKS[0].read_text())
    assert variables_beside(str(tmp_path / "own.yml")) == variables_beside("") == (set(), set())


@pytest.mark.parametrize(
    "name", ["script", "script_args", "resume", "checkpoint", "detach", "keep", "job_runs_dir", "preflight_skip"]
)
def test_run_reads_its_options(name: str) -> None:
    assert name in READ["run"]


@pytest.mark.parametrize("playbook", READ)
def test_an_option_of_any_playbook_is_refused_by_none_unless_it_names_a_job(playbook: str) -> None:
    read, others = variables_beside(str(ROOT / "playbooks" / f"{playbook}.yml"))
    names = set(NAMES_OF_JOBS)
    require_meant(dict.fromkeys(set().union(*READ.values()) - (names - read if names & read else set())), read, others)


@pytest.mark.parametrize(
    ("playbook", "name", "remedy"),
    [
        ("stop", "resume", "job"),
        ("logs", "rerun", "job"),
        ("status", "resume", "job"),
        ("run", "job", "resume or rerun"),
    ],
)
def test_a_job_that_is_named_to_a_playbook_which_does_not_read_it(playbook: str, name: str, remedy: str) -> None:
    """It would act on another job: stop.yml on the latest."""
    read, others = variables_beside(str(ROOT / "playbooks" / f"{playbook}.yml"))
    with pytest.raises(JobError) as caught:
        require_meant({name: "20261129-101112-train-0a1b"}, read, others)
    assert str(caught.value) == (
        f"-e was given {name}, which this playbook does not read; to name a job, write {remedy}"
    )


@pytest.mark.parametrize("name", ["ansible_host", "my_group", "python_env_index_url", "wheels", "x", "site"])
def test_what_the_inventory_may_read(name: str) -> None:
    require_meant({"script": "train.py", name: 1}, READ["run"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resum", "resume"),
        ("detatch", "detach"),
        ("project-dir", "project_dir"),
        ("kepp", "keep"),
        ("script_arg", "script_args"),
        ("lauchner", "launcher"),
        ("scrpt", "script"),
        ("job_run_dir", "job_runs_dir"),
        ("cluster_masterport", "cluster_master_port"),
    ],
)
def test_a_misspelt_name(name: str, meant: str) -> None:
    with pytest.raises(JobError) as caught:
        require_meant({"script": "train.py", name: 1}, READ["run"])
    assert str(caught.value) == (
        f"-e was given {name}, which this playbook does not read; write {meant}, or give a variable of the inventory's "
        "own another name"
    )


@pytest.mark.parametrize(
    ("playbook", "name", "meant"),
    [
        ("stop", "jobid", "job"),
        ("stop", "job_id", "job"),
        ("logs", "jb", "job"),
        ("status", "fromat", "format"),
        ("clean", "kepp", "keep"),
        ("teardown", "remove_job", "remove_jobs"),
        ("setup", "python_env_requirement", "python_env_requirements"),
        ("setup", "firewall_provder", "firewall_provider"),
        ("setup", "job_envs", "job_env"),
    ],
)
def test_a_misspelt_name_elsewhere(playbook: str, name: str, meant: str) -> None:
    with pytest.raises(JobError, match=f"^-e was given {name}, which this playbook does not read; write {meant}, or"):
        require_meant({name: 1}, READ[playbook])


@pytest.mark.parametrize(("playbook", "name"), [("run", "resume"), ("run", "rerun"), ("logs", "job"), ("stop", "job")])
def test_an_empty_id(playbook: str, name: str) -> None:
    with pytest.raises(JobError) as caught:
        require_meant({name: ""}, READ[playbook])
    assert str(caught.value) == (
        f"{name} is empty; give a job's id (ansible-playbook status.yml lists them), or leave it out"
    )


def test_an_empty_path() -> None:
    with pytest.raises(JobError, match=r"^checkpoint is empty; give the path of a file or a folder, or leave it out$"):
        require_meant({"checkpoint": ""}, READ["run"])


def test_words_that_belong_to_no_variable() -> None:
    with pytest.raises(JobError) as caught:
        require_meant({"script_args": "--max-epochs", STRAY: "3"}, {"script_args"})
    assert str(caught.value) == (
        "-e was given '3', which belongs to no variable; quote a value with spaces once more, as in -e "
        '"script_args=\'--max-epochs 3\'", or give JSON: -e \'{"script_args": ["--max-epochs", "3"]}\''
    )


def test_patterns_with_spaces_between() -> None:
    """Of -e include='*.bin .env' Ansible keeps what stands before the first space."""
    with pytest.raises(JobError) as caught:
        require_meant({"include": "*.bin", STRAY: ".env"}, {"include"})
    assert str(caught.value) == (
        "-e was given '.env', which belongs to no variable; between the patterns of include write commas, as in -e "
        "include='*.bin,.env'"
    )


def test_words_that_belong_to_one_of_two() -> None:
    """Patterns of include are not named where script_args may be meant."""
    with pytest.raises(JobError, match=r'quote a value with spaces once more, as in -e "script_args='):
        require_meant({"include": "*.bin", "script_args": "--epochs", STRAY: "60"}, {"include", "script_args"})


def test_letters_that_changed_places() -> None:
    """A job that was not meant was stopped."""
    with pytest.raises(JobError, match=r"^-e was given jbo, which this playbook does not read; write job, or give"):
        require_meant({"jbo": "20260101-000000-train-0000"}, READ["stop"])


def test_a_name_that_ansible_reserves() -> None:
    with pytest.raises(JobError) as caught:
        require_meant({"args": "--lr 1"}, READ["run"])
    assert str(caught.value) == "-e was given args, a name that Ansible reserves for itself; write script_args"
    with pytest.raises(JobError, match=r"^-e was given args, a name"):
        require_meant({"args": "--lr", STRAY: "1"}, READ["run"])
