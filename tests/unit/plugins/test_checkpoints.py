# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import artifacts, checkpoints
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.checkpoints import Checkpoint, newest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Refused,
    Unreachable,
)
from left_jobs import checkpoint, gang_on, leave
from local_nodes import LocalNode


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, and no waiting."""
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "RETRY_SECONDS", 0)
    monkeypatch.setattr(artifacts.Source, "batch_bytes", 10_000)


class Watched:
    """A gang whose requests are counted, and may be disturbed."""

    def __init__(
        self, gang: Gang, before: Callable[[str, str, int], NodeError | None] = lambda op, host, n: None
    ) -> None:
        self.gang = gang
        self.job_id, self.topology, self.settings = gang.job_id, gang.topology, gang.settings
        self.before = before
        self.asked: list[tuple[str, str]] = []
        self.more: list[dict[str, Any]] = []

    def ask(
        self, op: str, timeout: float, hosts: Sequence[str] | None = None, **more: Any
    ) -> tuple[Replies, dict[str, NodeError]]:
        chosen = list(hosts or self.settings)
        errors = {}
        self.more.append(more)
        for host in chosen:
            self.asked.append((op, host))
            error = self.before(op, host, sum(entry == (op, host) for entry in self.asked))
            if error:
                errors[host] = error
        replies, more_errors = self.gang.ask(op, timeout, [host for host in chosen if host not in errors], **more)
        return replies, {**errors, **more_errors}


def damage(path: Path) -> None:
    """Flip a bit of the last tensor; the length stays."""
    content = bytearray(path.read_bytes())
    content[content.index((3).to_bytes(4, "little") * 10) + 100] ^= 1
    path.write_bytes(content)


# -------------------------------------------------------------------------------------------------------------- newest


def listing(*found: tuple[str, int, float], refused: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    return {"found": [(path, step, 10, mtime) for path, step, mtime in found], "refused": list(refused), "others": []}


@pytest.mark.parametrize(
    ("listings", "expected"),
    [
        ({}, None),
        ({"a": listing()}, None),
        ({"a": listing(("x.ckpt", 1, 9.0))}, ("a", "x.ckpt")),
        # The highest step of any node.
        ({"a": listing(("last.ckpt", 9, 9.0)), "b": listing(("x.ckpt", 10, 1.0))}, ("b", "x.ckpt")),
        # Of equal ones last.ckpt, wherever it is.
        ({"a": listing(("z.ckpt", 5, 9.0), ("c/last.ckpt", 5, 1.0))}, ("a", "c/last.ckpt")),
        ({"a": listing(("z.ckpt", 5, 9.0)), "b": listing(("last.ckpt", 5, 1.0))}, ("b", "last.ckpt")),
        ({"a": listing(("not-last.ckpt", 5, 1.0)), "b": listing(("x.ckpt", 5, 9.0))}, ("a", "not-last.ckpt")),
        # Then the first in rank order.
        ({"b": listing(("x.ckpt", 5, 1.0)), "a": listing(("x.ckpt", 5, 9.0))}, ("b", "x.ckpt")),
        # Then the latest.
        ({"a": listing(("x.ckpt", 5, 1.0), ("y.ckpt", 5, 2.0), ("z.ckpt", 5, 1.5))}, ("a", "y.ckpt")),
    ],
)
def test_the_newest(listings: dict[str, Any], expected: tuple[str, str] | None) -> None:
    best = newest(listings)
    assert (best and (best.host, best.path)) == expected


def test_what_was_refused_is_noted() -> None:
    refused = [(f"{n}.ckpt", "is truncated") for n in range(7)]
    best = newest({"a": listing(("x.ckpt", 5, 1.0)), "b": listing(refused=refused)})
    assert best and best.notes == (*(f"{n}.ckpt on b is truncated" for n in range(5)), "2 more were refused")


# ---------------------------------------------------------------------------------------------------------------- find


def test_a_checkpoint_is_found_on_any_node(nodes: list[LocalNode]) -> None:
    checkpoint(leave(nodes[0]) / "checkpoints" / "last.ckpt", step=5)
    content = checkpoint(leave(nodes[1]) / "checkpoints" / "last.ckpt", step=6)
    sha256 = hashlib.sha256(content).hexdigest()
    found = checkpoints.find(gang_on(nodes))
    assert found == Checkpoint("node1", "checkpoints/last.ckpt", 6, len(content), sha256)


def test_a_damaged_one_is_passed_over(nodes: list[LocalNode]) -> None:
    work = [leave(node) for node in nodes]
    for number, step in ((0, 30), (1, 20), (0, 10)):
        checkpoint(work[number] / f"{step}.ckpt", step=step)
    damage(work[0] / "30.ckpt")
    damage(work[1] / "20.ckpt")
    (work[1] / "40.ckpt").write_bytes((work[1] / "20.ckpt").read_bytes()[:-100])
    found = checkpoints.find(gang_on(nodes))
    assert (found.host, found.path, found.step) == ("node0", "10.ckpt", 10)
    assert found.notes == (
        "30.ckpt on node0 has a damaged part data/3",
        "40.ckpt on node1 is truncated",
        "20.ckpt on node1 has a damaged part data/3",
    )


def test_there_is_none(nodes: list[LocalNode]) -> None:
    leave(nodes[0], files={"checkpoints/a\x1b.ckpt": b"x"})
    with pytest.raises(JobError) as caught:
        checkpoints.find(gang_on(nodes))
    assert str(caught.value) == (
        "no checkpoint was found in the folder of job job-1 that resume takes by itself, which is a complete one of "
        "Lightning's, a file *.ckpt with a global_step; checkpoints/a\\x1b.ckpt on node0 is not in torch's zip format; "
        "node1 has no job job-1; if it wrote one elsewhere or of another kind, name it with -e checkpoint=PATH, and "
        "the script finds it in CKPT_PATH, or run the script again, without resume"
    )


def test_a_node_that_cannot_be_asked_is_said(nodes: list[LocalNode], monkeypatch: pytest.MonkeyPatch) -> None:
    for node, step in zip(nodes, (7, 5), strict=True):
        checkpoint(leave(node) / "x.ckpt", step=step)
    away = Unreachable("node0", "is away")
    note = "node0 is away; what it has is not known"
    monkeypatch.setattr(checkpoints, "SLOWEST_DISK", 1e9)
    monkeypatch.setattr(checkpoints, "RETRY_SECONDS", 1)
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 1)
    for op in ("list_checkpoints", "verify_checkpoint"):
        gang = Watched(gang_on(nodes), lambda asked, host, n, op=op: away if (asked, host) == (op, "node0") else None)
        found = checkpoints.find(gang, 5)  # type: ignore[arg-type]
        assert (found.host, found.step, found.notes) == ("node1", 5, (note,))


def test_a_node_that_is_unreachable_for_a_moment(nodes: list[LocalNode]) -> None:
    for node, step in zip(nodes, (7, 5), strict=True):
        checkpoint(leave(node) / "x.ckpt", step=step)
    away = Unreachable("node0", "is away")
    found = checkpoints.find(Watched(gang_on(nodes), lambda op, host, n: away if host == "node0" and n == 1 else None))  # type: ignore[arg-type]
    assert (found.host, found.step, found.notes) == ("node0", 7, ())


def test_a_job_that_still_runs(nodes: list[LocalNode]) -> None:
    def runs(op: str, host: str, n: int) -> NodeError | None:
        return NodeError(host, "runs job job-1 still; wait", running=True) if host == "node1" else None

    checkpoint(leave(nodes[0]) / "x.ckpt")
    with pytest.raises(JobError, match=r"^node1 runs job job-1 still; wait\. Nothing was started on any node\.$"):
        checkpoints.find(Watched(gang_on(nodes), runs))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def ready(node: LocalNode) -> tuple[Gang, Checkpoint, bytes]:
    """A job with a checkpoint of some 80 kB."""
    content = checkpoint(leave(node) / "c" / "last.ckpt", step=5)
    gang = gang_on([node])
    return gang, checkpoints.find(gang), content


Ready = tuple[Gang, Checkpoint, bytes]


def test_a_checkpoint_is_fetched(ready: Ready, tmp_path: Path) -> None:
    gang, found, content = ready
    target = tmp_path / "runs" / "x" / "checkpoint"
    assert checkpoints.fetch(gang, found, target) == target
    assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["checkpoint"]
    again = Watched(gang)
    assert checkpoints.fetch(again, found, target) == target  # type: ignore[arg-type]
    assert again.asked == []


def test_an_interrupted_fetch_goes_on(ready: Ready, tmp_path: Path) -> None:
    gang, found, content = ready
    asleep = Watched(gang, lambda op, host, n: Refused(host, "fell asleep") if n == 4 else None)
    with pytest.raises(JobError) as caught:
        checkpoints.fetch(asleep, found, tmp_path / "c")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "node0 fell asleep. Nothing was started on any node. Run it again, and the transfer goes on where it ended."
    )
    assert os.listdir(tmp_path) == ["node0", "c.part"] or sorted(os.listdir(tmp_path)) == ["c.part", "node0"]
    gang_again = Watched(gang)
    checkpoints.fetch(gang_again, found, tmp_path / "c")  # type: ignore[arg-type]
    assert gang_again.more[0]["parts"] == [("c/last.ckpt", 30_000, 10_000)]
    assert (tmp_path / "c").read_bytes() == content


@pytest.mark.parametrize("left", [b"of another checkpoint", b"x" * 200_000])
def test_what_another_fetch_has_left_does_no_harm(ready: Ready, tmp_path: Path, left: bytes) -> None:
    gang, found, content = ready
    (tmp_path / "c.part").write_bytes(left)
    (tmp_path / "c").write_bytes(left)
    checkpoints.fetch(gang, found, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == content


def test_a_link_in_the_way_is_not_written_through(ready: Ready, tmp_path: Path) -> None:
    gang, found, content = ready
    (tmp_path / "mine").write_bytes(b"untouched")
    (tmp_path / "c").symlink_to("mine")
    checkpoints.fetch(gang, found, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == content and not (tmp_path / "c").is_symlink()
    (tmp_path / "d.part").symlink_to("mine")
    with pytest.raises(JobError, match="cannot be written"):
        checkpoints.fetch(gang, found, tmp_path / "d")
    assert (tmp_path / "mine").read_bytes() == b"untouched"


def test_a_checkpoint_that_changes_meanwhile(ready: Ready, tmp_path: Path, node: LocalNode) -> None:
    gang, found, _content = ready
    damage(node.job_dir() / "work" / "c" / "last.ckpt")
    with pytest.raises(JobError) as caught:
        checkpoints.fetch(gang, found, tmp_path / "c")
    sentence = "checkpoint c/last.ckpt on node0 changes while it is read; end what writes to it, and run this again"
    assert str(caught.value) == sentence
    (node.job_dir() / "work" / "c" / "last.ckpt").write_bytes(b"short")
    with pytest.raises(JobError) as caught:
        checkpoints.fetch(gang, found, tmp_path / "c")
    assert str(caught.value) == sentence
    assert sorted(os.listdir(tmp_path)) == ["node0"]


def test_a_disk_that_is_too_small(ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gang, found, _content = ready
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=80_000))
    with pytest.raises(JobError) as caught:
        checkpoints.fetch(gang, found, tmp_path / "c")
    assert str(caught.value) == (
        f"checkpoint c/last.ckpt (80.9 kB) does not fit into {tmp_path} (80.0 kB free); free some space there, or set "
        "job_runs_dir"
    )
    (tmp_path / "c.part").write_bytes(ready[2][:10_000])  # so much less is needed
    assert checkpoints.fetch(gang, found, tmp_path / "c").read_bytes() == ready[2]


def test_a_disk_that_cannot_be_written(ready: Ready, tmp_path: Path) -> None:
    gang, found, _content = ready
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError) as caught:
        checkpoints.fetch(gang, found, tmp_path / "file" / "c")
    words = f"[Errno {errno.EEXIST}] File exists: '{tmp_path}/file'"
    assert str(caught.value) == (
        f"checkpoint c/last.ckpt cannot be written: {words}; free some space, or set job_runs_dir"
    )


# ---------------------------------------------------------------------------------------------------------- distribute


@pytest.fixture
def prepared(nodes: list[LocalNode], tmp_path: Path) -> tuple[list[LocalNode], Checkpoint, Path]:
    """Two nodes of a prepared job, job-2, and a checkpoint of job-1, which the second node has."""
    checkpoint(leave(nodes[1]) / "c" / "last.ckpt", step=5)
    leave(nodes[0], files={"c/last.ckpt": b"of an earlier epoch"})
    gang = gang_on(nodes)
    found = checkpoints.find(gang)
    for node in nodes:
        leave(node, "job-2", {"train.py": b""}, state="")
    return nodes, found, checkpoints.fetch(gang, found, tmp_path / "checkpoint")


Prepared = tuple[list[LocalNode], Checkpoint, Path]


def placed(node: LocalNode) -> bytes:
    return (node.job_dir("job-2") / "work" / "c" / "last.ckpt").read_bytes()


def test_every_node_gets_the_checkpoint(prepared: Prepared) -> None:
    nodes, found, file = prepared
    gang = Watched(gang_on(nodes, "job-2"))
    checkpoints.distribute(gang, file, found, "job-1")  # type: ignore[arg-type]
    assert [placed(node) for node in nodes] == [file.read_bytes()] * 2
    assert gang.asked == [("place_file", "node0"), ("place_file", "node1"), ("place_file", "node0")]  # one had it


def test_nodes_are_sent_the_same_piece_at_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, found, file = prepared
    monkeypatch.setattr(checkpoints, "FIRST_BYTES", 10_000)
    monkeypatch.setattr(checkpoints, "BATCH_BYTES", 20_000)
    gang = Watched(gang_on(nodes, "job-2"))
    checkpoints.distribute(gang, file, found, "none")  # type: ignore[arg-type]
    assert [placed(node) for node in nodes] == [file.read_bytes()] * 2
    sent = [(more["offset"], len(more["payload"])) for more in gang.more[1:]]
    assert sum(length for _offset, length in sent) == found.bytes
    assert [offset for offset, _length in sent] == [
        sum(length for _offset, length in sent[:n]) for n in range(len(sent))
    ]
    assert max(length for _offset, length in sent) <= 20_000


def test_where_every_node_has_it_nothing_need_be_fetched(prepared: Prepared) -> None:
    nodes, found, _file = prepared
    checkpoints.distribute(gang_on(nodes[1:], "job-2"), None, found, "job-1")
    assert placed(nodes[1])
    with pytest.raises(JobError) as caught:
        checkpoints.distribute(gang_on(nodes, "job-2"), None, found, "job-1")
    assert str(caught.value) == "node0 does not have the checkpoint. Nothing was started on any node."


def test_answers_that_are_lost_do_no_harm(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes do what they are asked, but every other answer does not arrive."""
    nodes, found, file = prepared
    monkeypatch.setattr(checkpoints, "FIRST_BYTES", 20_000)
    monkeypatch.setattr(checkpoints, "BATCH_BYTES", 20_000)
    inner = gang_on(nodes, "job-2")
    count = 0

    def ask(op: str, timeout: float, hosts: Sequence[str], **more: Any) -> Any:
        nonlocal count
        count += 1
        replies, errors = inner.ask(op, timeout, hosts, **more)
        if count % 2:
            return {}, {host: Unreachable(host, "is unreachable: its reply is not complete") for host in hosts}
        return replies, errors

    gang: Any = SimpleNamespace(ask=ask, settings=inner.settings)
    checkpoints.distribute(gang, file, found, "none")
    assert [placed(node) for node in nodes] == [file.read_bytes()] * 2


def test_every_node_that_could_not_is_named(prepared: Prepared) -> None:
    nodes, found, file = prepared
    for node in nodes:
        (node.job_dir("job-2") / "work" / "c").write_text("in the way")
    with pytest.raises(JobError) as caught:
        checkpoints.distribute(gang_on(nodes, "job-2"), file, found, "none")
    obstacle = "has something else of the code where 'c/last.ckpt' belongs; rename that in the project"
    assert str(caught.value) == f"node0 {obstacle}\nnode1 {obstacle}\nNothing was started on any node."


def test_a_node_that_stays_unreachable(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "RETRY_SECONDS", 1)
    nodes, found, file = prepared
    gang = Watched(
        gang_on(nodes, "job-2"), lambda op, host, n: Unreachable(host, "is away") if host == "node0" else None
    )
    with pytest.raises(JobError, match=r"^node0 is away\. Nothing was started on any node\.$"):
        checkpoints.distribute(gang, file, found, "none", 5)  # type: ignore[arg-type]


def test_a_file_cut_short_meanwhile(prepared: Prepared) -> None:
    nodes, found, file = prepared
    os.truncate(file, 50_000)
    with pytest.raises(JobError, match=r"was cut short meanwhile; run the playbook again$"):
        checkpoints.distribute(gang_on(nodes, "job-2"), file, found, "none")
