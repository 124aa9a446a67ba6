"""What -e was given, and what the playbooks read of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.extra_vars import STRAY, options_of, require_meant
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import SPEC

PLAYBOOKS = sorted((Path(__file__).parents[3] / "playbooks").glob("*.yml"))
ROLES = sorted((Path(__file__).parents[3] / "roles").glob("*/defaults/main.yml"))


def tasks(playbook: Path) -> list[dict[str, Any]]:
    return [task for play in yaml.safe_load(playbook.read_text()) for task in play.get("tasks", [])]


READ = {playbook.stem: [options_of(task) | SPEC.keys() for task in tasks(playbook)] for playbook in PLAYBOOKS}
ALL = set().union(*(names for read in READ.values() for names in read), *(yaml.safe_load(r.read_text()) for r in ROLES))


def test_the_options_of_a_task() -> None:
    task = {
        "name": "not this",
        "module": {"a": "{{ given | default(omit) }}", "b": "{{ short | default(long | default(omit)) }}"},
        "vars": {"found": "{{ registered.jobs | first | default('') }}"},
    }
    assert options_of(task) == {"given", "short", "long"}


@pytest.mark.parametrize("name", ["script", "args", "resume", "detach", "keep", "job_runs_dir", "preflight_shm_min_mb"])
def test_run_reads_its_options(name: str) -> None:
    assert name in READ["run"][0]


@pytest.mark.parametrize("playbook", READ)
def test_an_option_of_any_playbook_is_refused_by_none(playbook: str) -> None:
    for read in READ[playbook]:
        require_meant(dict.fromkeys(ALL), read)


@pytest.mark.parametrize("name", ["ansible_host", "my_group", "python_env_index_url", "wheels", "x", "site"])
def test_what_the_inventory_may_read(name: str) -> None:
    require_meant({"script": "train.py", name: 1}, READ["run"][0])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resum", "resume"),
        ("detatch", "detach"),
        ("project-dir", "project_dir"),
        ("kepp", "keep"),
        ("ags", "args"),
        ("lauchner", "launcher"),
        ("scrpt", "script"),
        ("job_run_dir", "job_runs_dir"),
        ("cluster_masterport", "cluster_master_port"),
    ],
)
def test_a_misspelt_name(name: str, meant: str) -> None:
    with pytest.raises(JobError) as caught:
        require_meant({"script": "train.py", name: 1}, READ["run"][0])
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
    ],
)
def test_a_misspelt_name_elsewhere(playbook: str, name: str, meant: str) -> None:
    with pytest.raises(JobError, match=f"^-e was given {name}, which this playbook does not read; write {meant}, or"):
        require_meant({name: 1}, READ[playbook][0])


@pytest.mark.parametrize(("playbook", "name"), [("run", "resume"), ("run", "rerun"), ("logs", "job"), ("stop", "job")])
def test_an_empty_id(playbook: str, name: str) -> None:
    with pytest.raises(JobError) as caught:
        require_meant({name: ""}, READ[playbook][0])
    assert str(caught.value) == (
        f"{name} is empty; give a job's id (ansible-playbook status.yml lists them), or leave it out"
    )


def test_words_that_belong_to_no_variable() -> None:
    with pytest.raises(JobError) as caught:
        require_meant({"args": "--max-epochs", STRAY: "3"}, {"args"})
    assert str(caught.value) == (
        "-e was given '3', which belongs to no variable; quote a value with spaces once more, as in -e "
        '"args=\'--max-epochs 3\'", or give JSON: -e \'{"args": ["--max-epochs", "3"]}\''
    )
