# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import datetime
import getpass
import json
import platform
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import (
    described_by_nodes,
    earlier_job,
    store_bundle,
    stored_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import split_patterns
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.plan_job import (
    EXAMPLE,
    count_torchrun_devices,
    describe_job,
    make_job,
    split_args,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record
from user_options import run_options


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", []),
        ("--max-epochs 3", ["--max-epochs", "3"]),
        ("--name 'two words' \"it's\" a\\ b", ["--name", "two words", "it's", "a b"]),
        ("$HOME `id` ; rm *", ["$HOME", "`id`", ";", "rm", "*"]),
        ("''", [""]),
        ([], []),
        (["--lr", 0.1, 3, "two words", ""], ["--lr", "0.1", "3", "two words", ""]),
        (("a",), ["a"]),
    ],
)
def test_args(args: Any, expected: list[str]) -> None:
    assert split_args(args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "--name 'oops",
            "script_args has unbalanced quotes (No closing quotation): --name 'oops; close them, or give a list",
        ),
        ("oops\\", "script_args has unbalanced quotes (No escaped character): oops\\; close them, or give a list"),
        (["a\0b"], "script_args has an argument with a null byte, which no command line can hold; remove it"),
        (None, "script_args is None; give a string such as '--max-epochs 3', or a list of arguments"),
        (3, "script_args is 3; give a string such as '--max-epochs 3', or a list of arguments"),
        ([["a"]], "script_args is [['a']]; give a string such as '--max-epochs 3', or a list of arguments"),
        ({"a": 1}, "script_args is {'a': 1}; give a string such as '--max-epochs 3', or a list of arguments"),
    ],
)
def test_args_that_are_none(args: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        split_args(args)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("", []),
        ("*.bin,.env", ["*.bin", ".env"]),
        ("*.bin  .env,\n'a b' #c", ["*.bin", ".env", "a b", "#c"]),
        ('"a,b",!c', ["a,b", "!c"]),
        (["a b", ".env"], ["a b", ".env"]),
    ],
)
def test_patterns(include: Any, expected: list[str]) -> None:
    assert split_patterns(include) == expected


@pytest.mark.parametrize("include", ["'a", 3, [1], {"a": "b"}, None])
def test_patterns_that_are_none(include: Any) -> None:
    with pytest.raises(JobError) as caught:
        split_patterns(include)
    assert str(caught.value) == (
        "include is no list of patterns; give them as in a .gitignore, with commas between: '*.bin,.env'"
    )


@pytest.mark.parametrize(
    ("devices", "launcher", "expected"),
    [("", "lightning", None), ("auto", "lightning", None), ("auto", "torchrun", None), ("4", "torchrun", 4)],
)
def test_devices(devices: str, launcher: str, expected: int | None) -> None:
    assert count_torchrun_devices(devices, launcher) == expected


@pytest.mark.parametrize(
    ("devices", "launcher", "message"),
    [
        (
            "4",
            "lightning",
            "devices is 4, but only launcher=torchrun takes it; with launcher=lightning the script's "
            "Trainer(devices=...) decides",
        ),
        ("0", "torchrun", "devices is 0; set auto, or the number of ranks on each node"),
        ("-1", "torchrun", "devices is -1; set auto, or the number of ranks on each node"),
        ("two", "torchrun", "devices is two; set auto, or the number of ranks on each node"),
        ("²", "torchrun", "devices is ²; set auto, or the number of ranks on each node"),
    ],
)
def test_devices_that_are_none(devices: str, launcher: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        count_torchrun_devices(devices, launcher)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_timeout_seconds": 0}, "job_node_timeout_seconds is 0; set it to 1 or more"),
        ({"stop_grace_seconds": -1}, "job_stop_grace_seconds is -1; set it to 0 or more"),
        ({"stall_timeout_seconds": -1}, "job_stall_timeout_seconds is -1; set it to 0 or more"),
        ({"rendezvous_timeout_seconds": -1}, "job_rendezvous_timeout_seconds is -1; set it to 0 or more"),
        ({"wait": -5}, "wait is -5; set it to 0 or more"),
        ({"retries": -1}, "retries is -1; set it to 0 or more"),
        ({"spares": -1}, "spares is -1; set it to 0 or more"),
        ({"return_seconds": -1}, "job_return_seconds is -1; set it to 0 or more"),
        ({"keep": -1}, "keep is -1; set it to 0 or more"),
        *(
            (
                {"rerun": "20260101-000000-train-0000", **more},
                "rerun runs an earlier job's code with its arguments again, so script, module, script_args, "
                "project_dir, include and project_files cannot be given with it; leave them out, or leave out rerun",
            )
            for more in (
                {"script": "train.py"},
                {"module": "train"},
                {"include": "*.bin"},
                {"project_files": "all"},
                {"script_args": "--lr 1"},
                {"script_args": ["x"]},
                {"project_dir": "/tmp"},
            )
        ),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        assert run_options(tmp_path, **changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rerun": "20260101-000000-train-0000"},
        {"rerun": "20260101-000000-train-0000", "script_args": []},
        {"keep": 0, "wait": 5},
    ],
)
def test_options_that_can(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert run_options(tmp_path, **changes)


def test_a_job_of_an_order(tmp_path: Path) -> None:
    before = datetime.datetime.now().astimezone().replace(microsecond=0)
    job = make_job(
        run_options(tmp_path, "pass", script_args="--lr 1", env='{"A": 1}', launcher="torchrun", devices="2", wait=9),
        {},
        "x/y.ckpt",
    )
    assert (job.script, job.args, job.env, job.launcher, job.devices) == (
        *("train.py", ["--lr", "1"], {"A": "1"}, "torchrun", 2),
    )
    assert (job.node_timeout_seconds, job.grace_seconds, job.wait_seconds, job.checkpoint) == (5, 2, 9, "x/y.ckpt")
    start = datetime.datetime.fromisoformat(job.identity.start)
    assert start.utcoffset() == datetime.timedelta()
    assert job.identity.id.startswith(f"{start:%Y%m%d-%H%M%S}-train-")
    assert job.identity.user == f"{getpass.getuser()}@{platform.node()}"
    assert before <= datetime.datetime.fromisoformat(job.identity.start) <= datetime.datetime.now().astimezone()


TRAINS = "import pytorch_lightning as pl\npl.Trainer().fit(0)\n"
SAYS = TRAINS + "import os; os.environ.get('CKPT_PATH')\n"
NO_TRAINER = "only a script that uses Lightning's Trainer or LightningCLI is started again by itself"
NAMED = "the arguments or variables of the script say which checkpoint it begins from"


@pytest.mark.parametrize(
    ("script", "changes", "goes_on", "why"),
    [
        (TRAINS, {}, True, ""),
        (SAYS, {}, False, ""),
        ("from lightning.pytorch.cli import LightningCLI\nLightningCLI()\n", {}, None, ""),
        ("print(1)\n", {}, None, NO_TRAINER),
        (TRAINS, {"gang": False}, True, "with gang=false no job is started again by itself"),
        (TRAINS, {"companion": False}, None, "with companion=false no job is started again by itself"),
        (TRAINS, {"env": {"CKPT_PATH": "/mine.ckpt"}}, True, NAMED),
        (TRAINS, {"script_args": "--ckpt_path=mine.ckpt"}, True, NAMED),
        (TRAINS, {"checkpoint": "mine.ckpt"}, True, ""),
        (
            SAYS,
            {"checkpoint": "mine.ckpt"},
            False,
            "the script says itself what CKPT_PATH is for, which may be no more than the weights to begin with",
        ),
    ],
)
def test_what_is_started_again_by_itself(
    tmp_path: Path, script: str, changes: dict[str, Any], goes_on: bool | None, why: str
) -> None:
    options = {"gang": True, **changes}
    job = make_job(run_options(tmp_path, script, **options), {}, "")
    assert (job.retries, job.fit_goes_on) == (0 if why else 3, goes_on)
    assert make_job(run_options(tmp_path, script, **options, retries=0), {}, "").retries == 0
    if not why:
        assert make_job(run_options(tmp_path, script, **options, retries=7), {}, "").retries == 7
        return
    with pytest.raises(JobError) as caught:
        make_job(run_options(tmp_path, script, **options, retries=7), {}, "")
    assert str(caught.value) == f"retries is 7, but {why}; leave retries out"
    with pytest.raises(JobError) as caught:
        make_job(run_options(tmp_path, script, **options, spares=1), {}, "")
    assert str(caught.value) == f"spares is 1, but {why}; leave spares out"


def test_spares_are_for_jobs_that_may_be_started_again(tmp_path: Path) -> None:
    assert make_job(run_options(tmp_path, TRAINS, gang=True, spares=2), {}, "").spares == 2
    with pytest.raises(JobError) as caught:
        make_job(run_options(tmp_path, TRAINS, gang=True, spares=2, retries=0), {}, "")
    assert str(caught.value) == "spares is 2, but retries is 0; leave spares out"


@pytest.mark.parametrize(("given", "retries"), [({}, 3), ({"companion": False}, 0)])
def test_a_rerun_is_started_again_if_it_is_known_how_it_goes_on(
    tmp_path: Path, given: dict[str, Any], retries: int
) -> None:
    recorded(tmp_path, TRAINS, gang=True, **given)
    options = run_options(tmp_path, rerun="20260101-000000-train-0000", gang=True)
    again = make_job(options, earlier_job(options.rerun, options.follow.runs_dir, ["node0", "node1"]), "")
    assert (again.retries, again.fit_goes_on) == (retries, True if retries else None)


def test_who_names_no_project_gets_the_examples(tmp_path: Path) -> None:
    assert make_job(run_options(tmp_path, script="train.py"), {}, "").script == "train.py"
    assert (EXAMPLE / "train.py").is_file()


# --------------------------------------------------------------------------------------------------------- earlier jobs


def recorded(tmp_path: Path, text: str = "print(1)", hosts: tuple[str, ...] = ("node0", "node1"), **given: Any) -> Any:
    """Leave the record of an earlier job; return the job."""
    one = run_options(tmp_path, text, **given)
    job = make_job(one, {}, "")
    Record(one.follow.runs_dir, "20260101-000000-train-0000").create(
        ranks=[{"host": host} for host in hosts], **describe_job(job, one)
    )
    store_bundle(one.follow.runs_dir, job.bundle)
    return job


def test_a_rerun_has_the_same_code_and_arguments_although_the_project_changed(tmp_path: Path) -> None:
    first = recorded(tmp_path, script_args="--lr 1", env={"TOKEN": "x"}, launcher="torchrun", devices="2")
    (tmp_path / "project" / "train.py").write_text("print(2)")
    again = run_options(tmp_path, rerun="20260101-000000-train-0000", env={"TOKEN": "y"})
    job = make_job(again, earlier_job(again.rerun, again.follow.runs_dir, ["node0", "node1"]), "")
    assert job.bundle == first.bundle
    assert (job.script, job.args, job.launcher, job.devices) == ("train.py", ["--lr", "1"], "torchrun", 2)
    assert job.env == {"TOKEN": "y"}
    assert job.identity != first.identity
    about = describe_job(job, again)
    assert (about["rerun"], about["project_dir"]) == ("20260101-000000-train-0000", str(tmp_path / "project"))


def test_a_rerun_whose_code_is_not_kept_here_any_more(tmp_path: Path) -> None:
    first = recorded(tmp_path)
    for path in (tmp_path / "runs" / ".bundles").iterdir():
        path.unlink()
    again = run_options(tmp_path, rerun="20260101-000000-train-0000")
    job = make_job(again, earlier_job(again.rerun, again.follow.runs_dir, ["node0", "node1"]), "")
    assert (job.bundle.sha256, job.bundle.content) == (first.bundle.sha256, b"")


def test_a_rerun_needs_the_values_that_are_not_kept(tmp_path: Path) -> None:
    recorded(tmp_path, env={"TOKEN": "x", "A": "1", "B": "2"})
    assert (
        "x" not in json.loads((tmp_path / "runs" / "20260101-000000-train-0000" / "job.json").read_text())["env_names"]
    )
    again = run_options(tmp_path, rerun="20260101-000000-train-0000", env={"A": "1"})
    with pytest.raises(JobError) as caught:
        make_job(again, earlier_job(again.rerun, again.follow.runs_dir, ["node0", "node1"]), "")
    assert str(caught.value) == (
        "job 20260101-000000-train-0000 had environment variables whose values are not kept: B, TOKEN; give them again "
        'with -e \'{"env": {...}}\', or another value, or ""'
    )
    with pytest.raises(JobError, match="had environment variables whose values are not kept: A, B, TOKEN; give"):
        make_job(
            run_options(tmp_path, resume=again.rerun), {"env_names": ["A", "B", "TOKEN"], "script": "train.py"}, ""
        )


@pytest.mark.parametrize("hosts", [["node0"], ["node1", "node0"], ["node0", "node1", "node2"]])
def test_a_rerun_on_other_hosts(tmp_path: Path, hosts: list[str]) -> None:
    recorded(tmp_path)
    with pytest.raises(JobError) as caught:
        earlier_job("20260101-000000-train-0000", tmp_path / "runs", hosts)
    assert str(caught.value) == (
        f"job 20260101-000000-train-0000 ran on node0, node1, in this order, not on {', '.join(hosts)}; "
        "add --limit node0,node1, or run its script again, without rerun"
    )


def test_a_rerun_has_the_same_spares_on_the_hosts_that_it_began_with(tmp_path: Path) -> None:
    """Though one of them has taken another's rank meanwhile."""
    job, hosts = "20260101-000000-train-0000", ["node0", "node1", "node2"]
    recorded(tmp_path, TRAINS, hosts=("node0", "node2", "node1"), gang=True, spares=1)
    path = tmp_path / "runs" / job / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hosts": hosts}))
    earlier = earlier_job(job, tmp_path / "runs", hosts)
    assert make_job(run_options(tmp_path, rerun=job, gang=True), earlier, "").spares == 1
    assert make_job(run_options(tmp_path, rerun=job, gang=True, spares=0, retries=0), earlier, "").spares == 0
    with pytest.raises(JobError) as caught:
        make_job(run_options(tmp_path, rerun=job, gang=True, retries=0), earlier, "")
    assert str(caught.value) == f"job {job} had 1 spare, but retries is 0; set -e spares=0"


def test_a_rerun_of_an_unknown_job(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        earlier_job("20260101-000000-train-0007", tmp_path / "runs", ["node0"])
    assert (
        str(caught.value)
        == f"job 20260101-000000-train-0007 is not in {tmp_path}/runs; name one that is, or set job_runs_dir"
    )


def test_a_rerun_of_a_job_whose_record_is_damaged(tmp_path: Path) -> None:
    job = tmp_path / "runs" / "20260101-000000-train-0007"
    job.mkdir(parents=True)
    (job / "job.json").write_text("")
    with pytest.raises(JobError) as caught:
        earlier_job(job.name, job.parent, ["node0"])
    assert str(caught.value) == (
        f"the job.json of job {job.name} in {job.parent} is damaged; run its script again, without rerun"
    )


def test_a_rerun_of_a_job_that_was_never_started(tmp_path: Path) -> None:
    """Its record has no ranks yet: the controller was killed while it prepared, or a node could not start."""
    one = run_options(tmp_path, "pass")
    Record(one.follow.runs_dir, "20260101-000000-train-0000").create(
        state="prepared", **describe_job(make_job(one, {}, ""), one)
    )
    with pytest.raises(JobError):
        earlier_job("20260101-000000-train-0000", tmp_path / "runs", ["node0"])


def test_a_rerun_of_a_job_whose_logs_alone_are_here(tmp_path: Path) -> None:
    spec = {"script": "train.py", "args": [], "launcher": "sh", "devices": True, "project_dir": "/etc", "start": "then"}
    known = described_by_nodes({**spec, "master_addr": "head.example"})
    assert known == {"script": "train.py", "args": [], "started": "then"}
    one = run_options(tmp_path, rerun="20260101-000000-train-0000")
    Record(one.follow.runs_dir, one.rerun).create(ranks=[{"host": "node0"}], **known)
    with pytest.raises(JobError, match="was started from elsewhere"):
        earlier_job(one.rerun, one.follow.runs_dir, ["node0"])


def test_going_on_from_a_job_that_was_started_from_elsewhere(tmp_path: Path) -> None:
    """The product's own example was taken for its project."""
    known = described_by_nodes({"script": "train.py", "args": ["--lr", "1"]})
    resume = "20260101-000000-train-0000"
    with pytest.raises(JobError, match=r"started from elsewhere; give it with -e project_dir=$"):
        make_job(run_options(tmp_path, resume=resume), known, "last.ckpt")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").touch()
    one = run_options(tmp_path, resume=resume, project_dir=tmp_path / "project")
    assert make_job(one, known, "last.ckpt").args == ["--lr", "1"]


def test_a_rerun_of_what_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is no job's id"):
        earlier_job("../../etc", tmp_path / "runs", ["node0"])


def test_no_earlier_job(tmp_path: Path) -> None:
    assert earlier_job("", tmp_path, ["node0"]) == {}


def test_what_goes_on_from_a_job_takes_over_what_is_not_given(tmp_path: Path) -> None:
    first = run_options(tmp_path, "print(1)", script_args="--lr 1", launcher="torchrun", devices="2")
    earlier = describe_job(make_job(first, {}, ""), first)
    (tmp_path / "project" / "train.py").write_text("print(2)")
    job = make_job(run_options(tmp_path, resume="20260101-000000-train-0000"), earlier, "last.ckpt")
    assert (job.script, job.args, job.launcher, job.devices) == ("train.py", ["--lr", "1"], "torchrun", 2)
    assert job.bundle.sha256 != earlier["bundle"]["sha256"], "the project as it is now"
    again = run_options(tmp_path, resume="20260101-000000-train-0000")
    assert describe_job(make_job(again, earlier, ""), again)["project_dir"] == str(tmp_path / "project")
    changed = make_job(
        run_options(tmp_path, resume="20260101-000000-train-0000", script_args="--lr 2", devices="4"), earlier, ""
    )
    assert (changed.args, changed.devices) == (["--lr", "2"], 4)
    other = make_job(
        run_options(tmp_path, resume="20260101-000000-train-0000", launcher="lightning", devices="auto"), earlier, ""
    )
    assert (other.launcher, other.devices) == ("lightning", None)


def test_code_is_kept_once(tmp_path: Path) -> None:
    job = recorded(tmp_path)
    (path,) = (tmp_path / "runs" / ".bundles").iterdir()
    before = path.stat()
    store_bundle(tmp_path / "runs", job.bundle)
    assert path.stat() == before
    kept = stored_bundle(
        tmp_path / "runs",
        {"bundle": {"sha256": job.bundle.sha256, "bytes": job.bundle.size}, "commit": None, "dirty": None},
    )
    assert kept == job.bundle


def test_ids_do_not_depend_on_the_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M}"
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        job = make_job(run_options(tmp_path, "pass"), {}, "").identity
        assert began <= job.id[: len(began)] <= f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M}"
        assert job.start.endswith("+00:00")
    monkeypatch.undo()
    time.tzset()
