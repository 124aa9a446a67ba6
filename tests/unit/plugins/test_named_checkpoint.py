# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of others. They are seen for what they are, and what the user names is brought to all nodes."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import BUNDLE_MTIME
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import checkpoints, resume_point
from left_jobs import gang_on, leave
from local_nodes import ME, Altered, Connection, LocalNode, as_root, node_of_nobody, opener, refused
from user_options import Undisturbed

TRANSFORMERS = {"out/checkpoint-10/trainer_state.json": b"{}", "out/checkpoint-10/optimizer.pt": b"1"}
OF_TORCH = "a checkpoint of torch.distributed.checkpoint"
A_FILE = "a file such as torch.save writes"


def others(node: LocalNode) -> dict[str, str]:
    return dict(node.ask("list_checkpoints")["others"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (TRANSFORMERS, {"out/checkpoint-10": "a checkpoint of Transformers' Trainer"}),
        ({"last.pt": b"1", "notes.txt": b"", "net.pth.tar": b"2"}, {"last.pt": A_FILE, "net.pth.tar": A_FILE}),
        ({"c/step-5/.metadata": b"", "c/step-5/__0_0.distcp": b"1"}, {"c/step-5": OF_TORCH}),
        ({"c/step-5/__1_0.distcp": b"1"}, {"c/step-5": OF_TORCH}),  # of a node whose rank is not 0
        ({"epoch=1.ckpt/.metadata": b"", "epoch=1.ckpt/meta.pt": b""}, {"epoch=1.ckpt": OF_TORCH}),
        ({"a/global_step7/mp_rank_00_model_states.pt": b"1"}, {"a/global_step7": "a checkpoint of DeepSpeed"}),
        ({"s/model.safetensors": b"1", "s/random_states_0.pkl": b"1"}, {"s": "a checkpoint of Accelerate"}),
        ({"cut.ckpt": b"PK\3\4 and no more", "empty.ckpt": b""}, {}),
        ({"data.csv": b"1"}, {}),
    ],
)
def test_what_others_left(node: LocalNode, files: Mapping[str, bytes], expected: dict[str, str]) -> None:
    leave(node, files=files)
    assert others(node) == expected


def test_what_came_with_the_code_is_not_the_jobs(node: LocalNode) -> None:
    work = leave(node, files={"pretrained.pt": b"1"})
    os.utime(work / "pretrained.pt", (BUNDLE_MTIME, BUNDLE_MTIME))
    assert others(node) == {}


@pytest.mark.parametrize("where", ["arguments", "environment", "code", "log", "file in the code"])
def test_what_lies_outside_the_jobs_folder(node: LocalNode, tmp_path: Path, where: str) -> None:
    """As with an absolute dirpath."""
    elsewhere = tmp_path / "data" / "run-1"
    elsewhere.mkdir(parents=True)
    (elsewhere / "last.pt").write_bytes(b"1")
    (elsewhere / "older.pt").write_bytes(b"1")
    os.utime(elsewhere / "older.pt", (0.5, 0.5))
    text = f'{{"args": ["--out={elsewhere}"]}}' if where == "arguments" else "{}"
    work = leave(node, spec=json.loads(text))
    code = {"code": f'DIRPATH = "{elsewhere}"', "file in the code": f"'{elsewhere}/last.pt'"}.get(where, "")
    (work / "train.py").write_text(code)
    os.utime(work / "train.py", (BUNDLE_MTIME, BUNDLE_MTIME))
    if where == "environment":
        (node.job_dir() / "node.env").write_text(f"OUT={elsewhere}\n")
    if where == "log":
        Path(f"{node.job_dir()}.log").write_text(f"saved to {elsewhere}/last.pt\n")
    assert others(node) == {str(elsewhere / "last.pt"): A_FILE}


def test_resume_says_what_it_saw_and_what_to_do(nodes: list[LocalNode]) -> None:
    for node in nodes:
        leave(node, files={"a b/last.pt": b"1"})
    with pytest.raises(JobError) as caught:
        checkpoints.find(gang_on(nodes))
    assert str(caught.value) == (
        "no checkpoint was found in the folder of job job-1 that resume takes by itself, which is a complete one of "
        "Lightning's, a file *.ckpt with a global_step; there is a b/last.pt on node0, node1 (a file such as torch.save"
        ' writes); name the one to go on from, as in: -e resume=job-1 -e \'{"checkpoint": "a b/last.pt"}\', and the '
        "script finds it in CKPT_PATH, or run the script again, without resume"
    )


# ------------------------------------------------------------------------------------------------------ taken by name


def desk_of(nodes: list[LocalNode]) -> CommandContext:
    settings = [node.settings() for node in nodes]
    return CommandContext(print, Undisturbed(), NodeGroup(settings, opener(nodes)), [node.host for node in nodes], [])


def go_on(path: str, nodes: list[LocalNode], tmp_path: Path, job: str = "") -> tuple[list[str], list[dict[str, bytes]]]:
    """Prepare job-2 from the checkpoint; return what is said, and what each node's job has then."""
    origin = resume_point.find_resume_point(job, path, tmp_path / "runs", desk_of(nodes))
    files = origin.fetch(tmp_path / "runs")
    for node in nodes:
        leave(node, "job-2", {"train.py": b""}, state="")
    said = origin.distribute(gang_on(nodes, "job-2"), files)
    assert not list((tmp_path / "runs").rglob("*.part"))
    return said, [content(node.job_dir("job-2") / "work") for node in nodes]


def content(work: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "train.py"}


def spec(nodes: list[LocalNode], rank: int) -> dict[str, Any]:
    ranks = [{"rank": n, "host": node.host, "address": node.address} for n, node in enumerate(nodes)]
    return {
        "world_size": len(nodes),
        "rank": rank,
        "ranks": ranks,
        "script": "train.py",
        "start": "2026-11-22T17:30:00",
    }


JOB = "20260101-000000-train-0000"


def test_a_folder_of_the_jobs_on_one_node(nodes: list[LocalNode], tmp_path: Path) -> None:
    for rank, node in enumerate(nodes):
        leave(node, JOB, TRANSFORMERS if rank == 1 else {}, spec(nodes, rank))
    said, have = go_on("out/checkpoint-10", nodes, tmp_path, JOB)
    assert have == [TRANSFORMERS, TRANSFORMERS]
    assert said == ["CKPT_PATH is out/checkpoint-10 (2 files, 3 B, from node1)"]


def test_a_folder_of_which_each_node_has_a_part(nodes: list[LocalNode], tmp_path: Path) -> None:
    parts = [
        {"c/.metadata": b"m", "c/__0_0.distcp": b"0"},
        {"c/__1_0.distcp": b"1", "c/.metadata": b"not the head's", "c/empty": b""},
    ]
    for rank, node in enumerate(nodes):
        leave(node, JOB, parts[rank], spec(nodes, rank))
    said, have = go_on("c/", nodes, tmp_path, JOB)
    whole = {**parts[1], **parts[0]}
    assert have == [whole, whole]
    assert said == [
        "other files of these names on node1 were passed over",
        "CKPT_PATH is c (4 files, 3 B, from node0, node1)",
    ]


def test_a_file_that_each_node_has_its_own_of(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Of the same size: one was taken, and nothing said of the other."""
    for rank, node in enumerate(nodes):
        leave(node, JOB, {"c/last.pt": f"{rank}".encode(), "c/same.pt": b"same"}, spec(nodes, rank))
    for path, files, others in (("c", 2, True), ("c/last.pt", 1, True), ("c/same.pt", 1, False)):
        origin = resume_point.find_resume_point(JOB, path, tmp_path, desk_of(nodes))
        assert [file.host for file in origin.files] == ["node0"] * files
        assert origin.notes == ("other files of these names on node1 were passed over",) * others


@pytest.mark.parametrize("path", [".ckpts/last.pt", "./.ckpts/../.ckpts/last.pt", ".last.pt", "..ckpts/last.pt"])
def test_a_hidden_one_is_put_at_the_same_place(nodes: list[LocalNode], tmp_path: Path, path: str) -> None:
    place = os.path.normpath(path)
    for rank, node in enumerate(nodes):
        leave(node, JOB, {place: b"1"} if rank == 1 else {}, spec(nodes, rank))
    said, have = go_on(path, nodes, tmp_path, JOB)
    assert have == [{place: b"1"}] * 2
    assert said == [f"CKPT_PATH is {place} (1 file, 1 B, from node1)"]


@pytest.mark.parametrize("path", [".", "./", "a/..", "..", "../..", "/", "//", "~/", "~/."])
@pytest.mark.parametrize("job", ["", JOB])
def test_a_folder_without_a_name(nodes: list[LocalNode], tmp_path: Path, path: str, job: str) -> None:
    for rank, node in enumerate(nodes):
        leave(node, JOB, {"last.pt": b"1"}, spec(nodes, rank))
    with pytest.raises(JobError) as caught:
        resume_point.find_resume_point(job, path, tmp_path / "runs", desk_of(nodes))
    assert str(caught.value) == (
        f"checkpoint {path} is not the name of a file or a folder; name the checkpoint itself, as in: "
        "-e checkpoint=out/checkpoint-10"
    )


def test_a_link_that_the_job_left(nodes: list[LocalNode], tmp_path: Path) -> None:
    for rank, node in enumerate(nodes):
        work = leave(node, JOB, {"epoch=1.pt": b"one"}, spec(nodes, rank))
        (work / "last.pt").symlink_to("epoch=1.pt")
    _said, have = go_on("last.pt", nodes, tmp_path, JOB)
    assert have == [{"last.pt": b"one"}] * 2


@pytest.mark.parametrize("on_nodes", [True, False], ids=["nodes", "here"])
def test_folders_that_links_lead_to_come_along(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_nodes: bool
) -> None:
    """A checkpoint was taken without them, and not a word; a circle of links is refused, and one that leads nowhere."""
    for rank, node in enumerate(nodes):
        leave(node, JOB, {}, spec(nodes, rank))
    above = nodes[1].job_dir(JOB) / "work" if on_nodes else tmp_path / "here"
    for name in ("shared/tokenizer/vocab", "c/weights"):
        (above / name).parent.mkdir(parents=True)
        (above / name).write_bytes(b"1")
    (above / "c" / "tokenizer").symlink_to("../shared/tokenizer")
    (above / "c" / "alias").symlink_to("weights")
    if not on_nodes:
        monkeypatch.chdir(above)
    _said, have = go_on("c", nodes, tmp_path, JOB if on_nodes else "")
    top = "c" if on_nodes else ".checkpoint/c"
    expected = {f"{top}/{name}": b"1" for name in ("weights", "alias", "tokenizer/vocab")}
    lacking = have[0] if on_nodes else have[1]
    assert lacking == expected
    (above / "c" / "circle").symlink_to(".")
    with pytest.raises(JobError, match=r"cannot (read it|be read): Too many levels of symbolic links: .*circle"):
        resume_point.find_resume_point(JOB if on_nodes else "", "c", tmp_path / "runs", desk_of(nodes))
    (above / "c" / "circle").unlink()
    (above / "c" / "tokenizer" / "merges").symlink_to("../blobs/pruned")
    with pytest.raises(JobError, match=r"cannot (read it|be read): No such file or directory: .*tokenizer/merges"):
        resume_point.find_resume_point(JOB if on_nodes else "", "c", tmp_path / "runs", desk_of(nodes))


def test_an_absolute_one_on_one_node(three: list[LocalNode], tmp_path: Path) -> None:
    """Nodes here see one disk, so "another node" is one whose agent sees another folder there."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "last.pt").write_bytes(b"three")
    for node in three[:2]:
        node.connection = Elsewhere(str(data), str(tmp_path / f"none-{node.host}"))
    said, have = go_on(str(data / "last.pt"), three, tmp_path)
    assert have == [{".checkpoint/last.pt": b"three"}] * 3
    assert said == ["CKPT_PATH is .checkpoint/last.pt (1 file, 5 B, from node2)"]


class Elsewhere:
    """Reaches a node that has another folder at that path."""

    become = None

    def __init__(self, path: str, instead: str) -> None:
        change = (
            "    if os.path.isabs(path):\n",
            f"    path = path.replace({path!r}, {instead!r})\n    if os.path.isabs(path):\n",
        )
        again = ('open_named("", from_path)', f'open_named("", from_path.replace({path!r}, {instead!r}))')
        self._altered = Altered(change, again)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._altered, name)


def test_an_absolute_one_that_every_node_has(nodes: list[LocalNode], tmp_path: Path) -> None:
    """As on a disk that they share: nothing is sent."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "last.pt").write_bytes(b"shared")
    path = str(tmp_path / "shared")
    said, have = go_on(path, nodes, tmp_path)
    assert have == [{}, {}]
    assert said == [f"CKPT_PATH is {path} (6 B, which every node has there)"]


HOME = (
    "self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir",
    "self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, {!r}",
)
"""What makes another folder the home of the account that jobs run as."""


@pytest.mark.parametrize("job", ["", JOB])
def test_one_in_a_home(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """It is the home on the nodes, of the account that jobs run as; only if nothing is there, the one here."""
    for rank, node in enumerate(nodes):
        home = tmp_path / f"home-{node.host}"
        home.mkdir()
        node.connection = Altered((HOME[0], HOME[1].format(str(home))))
        leave(node, JOB, {}, spec(nodes, rank))
    mine = tmp_path / "mine"
    (mine / "out").mkdir(parents=True)
    (mine / "out" / "last.pt").write_bytes(b"mine")
    monkeypatch.setenv("HOME", str(mine))
    said, have = go_on("~/out/last.pt", nodes, tmp_path, job)
    assert have == [{".checkpoint/last.pt": b"mine"}] * 2
    assert said[-1] == f"CKPT_PATH is .checkpoint/last.pt (1 file, 4 B, from {mine}/out/last.pt on this machine)"
    for node in nodes:
        shutil.rmtree(node.job_dir("job-2"))
    (tmp_path / "home-node1" / "out").mkdir()
    (tmp_path / "home-node1" / "out" / "last.pt").write_bytes(b"node1's")
    said, have = go_on("~/out/last.pt", nodes, tmp_path, job)
    assert have == [{".checkpoint/last.pt": b"node1's"}] * 2
    assert said == ["CKPT_PATH is .checkpoint/last.pt (1 file, 7 B, from node1)"]


def test_one_in_a_home_that_every_node_has(nodes: list[LocalNode], tmp_path: Path) -> None:
    (tmp_path / "home" / "out").mkdir(parents=True)
    (tmp_path / "home" / "out" / "last.pt").write_bytes(b"shared")
    for node in nodes:
        node.connection = Altered((HOME[0], HOME[1].format(str(tmp_path / "home"))))
    for path, there in (("~/out/last.pt", "out/last.pt"), ("~/out", "out")):
        (words,) = resume_point.find_resume_point("", path, tmp_path / "runs", desk_of(nodes)).distribute(
            gang_on(nodes), []
        )
        assert words == f"CKPT_PATH is {tmp_path}/home/{there} (6 B, which every node has there)"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_on_the_controller(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    here = tmp_path / "here"
    (here / "best" / "sub").mkdir(parents=True)
    (here / "best" / "sub" / "a.bin").write_bytes(b"a")
    (here / "best.pt").write_bytes(b"best")
    monkeypatch.chdir(here)
    said, have = go_on("best.pt" if kind == "file" else "best", nodes, tmp_path)
    assert have == [{".checkpoint/best.pt": b"best"} if kind == "file" else {".checkpoint/best/sub/a.bin": b"a"}] * 2
    place = {"file": "best.pt (1 file, 4 B", "folder": "best (1 file, 1 B"}[kind]
    assert said == [f"CKPT_PATH is .checkpoint/{place}, from {here / place.split()[0]} on this machine)"]
    assert (here / "best.pt").exists(), "what the user has stays"


def test_one_that_nobody_has(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, node in enumerate(nodes):
        leave(node, JOB, {}, spec(nodes, rank))
    monkeypatch.chdir(tmp_path)
    remedy = "name a file or a folder by its absolute path, or by its path in the folder of the job that resume names"
    for job, path, where in (
        (
            JOB,
            "gone.pt",
            f"neither in the folder of job {JOB} on node0, node1 nor on this machine ({tmp_path}/gone.pt)",
        ),
        ("", "/no/gone.pt", "neither on node0, node1 nor on this machine (/no/gone.pt)"),
        ("", "gone.pt", f"not on this machine ({tmp_path}/gone.pt)"),
    ):
        with pytest.raises(JobError) as caught:
            resume_point.find_resume_point(job, path, tmp_path / "runs", desk_of(nodes))
        assert str(caught.value) == f"checkpoint {path} is {where}; {remedy}"


class Lost(Connection):
    """Reaches nobody any more."""

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        raise AnsibleConnectionFailure("no route to host")


def test_a_node_that_does_not_answer(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may lack its part, so that is refused; of a file it is said, wherever that is taken from."""
    for rank, node in enumerate(nodes):
        leave(node, JOB, {"c/.metadata": b"m", "last.pt": b"first"} if rank == 0 else {}, spec(nodes, rank))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "part").write_bytes(b"0")
    (tmp_path / "here.pt").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    nodes[1].connection = Lost()
    away = "node1 is unreachable: no route to host"
    for job, path in ((JOB, "c"), ("", f"{tmp_path}/c")):
        with pytest.raises(JobError) as caught:
            resume_point.find_resume_point(job, path, tmp_path / "runs", desk_of(nodes))
        assert str(caught.value) == (
            f"checkpoint {path} is a folder, and node1 may have a part of it, but {away}; make that node reachable, or "
            "if it has no part, leave it out of the inventory"
        )
    for path, source in (("last.pt", "node0"), ("here.pt", f"{tmp_path}/here.pt on this machine")):
        found = resume_point.find_resume_point(JOB, path, tmp_path / "runs", desk_of(nodes))
        assert found.description.endswith(f", from {source}")
        assert found.notes == (f"whether node1 has checkpoint {path} is not known: {away}",)
    stat = "        os.stat(path)\n    except PermissionError:"
    nodes[1].connection = Altered((stat, stat.replace("os.stat(path)", "raise PermissionError")))
    found = resume_point.find_resume_point("", f"{tmp_path}/c", tmp_path / "runs", desk_of(nodes))
    assert found.notes == (f"node1 does not let {ME}, as whom jobs run, look at {tmp_path}/c",)
    nodes[0].connection = nodes[1].connection = Lost()
    found = resume_point.find_resume_point("", f"{tmp_path}/c", tmp_path / "runs", desk_of(nodes))
    assert found.description.endswith(f", from {tmp_path}/c on this machine")
    assert found.notes == tuple(
        f"whether {host} has checkpoint {tmp_path}/c is not known: {host} is unreachable: no route to host"
        for host in ("node0", "node1")
    )


def test_a_folder_that_is_no_checkpoint(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=r"empty is a folder without files on node0, node1; name another$"):
        resume_point.find_resume_point("", str(tmp_path / "empty"), tmp_path / "runs", desk_of(nodes))
    (tmp_path / "many").mkdir()
    for number in range(2001):
        (tmp_path / "many" / str(number)).touch()
    with pytest.raises(
        JobError, match=r"^node0 has more than 2000 files in .*many, and a checkpoint may not; name the fol"
    ):
        resume_point.find_resume_point("", str(tmp_path / "many"), tmp_path / "runs", desk_of(nodes))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        JobError, match=r"^checkpoint many has more than 2000 files, and a checkpoint may not; name the fol"
    ):
        resume_point.find_resume_point("", "many", tmp_path / "runs", desk_of(nodes))


@as_root
def test_what_the_jobs_account_may_not_read() -> None:
    with node_of_nobody() as node:
        secret = node.directory.parent / "secret.pt"
        secret.write_bytes(b"secret")
        secret.chmod(0o600)
        words = f"has {secret}, but nobody, as whom jobs run, cannot read it: Permission denied: {secret}"
        assert refused(node, "describe_checkpoint", path=str(secret), digests=[]) == f"node0 {words}"
        whole = node.directory.parent / "whole"
        (whole / "optimizer").mkdir(parents=True)
        (whole / "weights").write_bytes(b"w")
        (whole / "optimizer").chmod(0o700)
        words = f"has {whole}, but nobody, as whom jobs run, cannot read it: Permission denied: {whole}/optimizer"
        assert refused(node, "describe_checkpoint", path=str(whole), digests=[]) == f"node0 {words}"
        closed = node.directory.parent / "closed"
        closed.mkdir(mode=0o700)
        nothing = {"top": "", "folder": False, "files": []}
        words = f"does not let nobody, as whom jobs run, look at {closed}/last.pt"
        assert node.ask("describe_checkpoint", path=f"{closed}/last.pt", digests=[]) == {**nothing, "why": words}
        part = node.channel().call(node.request("read_files", top=str(secret.parent), parts=[("secret.pt", 0, 6)]))
        assert part == ({"parts": [[0, 0, 0]]}, b"")
