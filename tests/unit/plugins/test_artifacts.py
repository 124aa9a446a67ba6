# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import os
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import artifacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.artifacts import File
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Refused,
    Unreachable,
)
from left_jobs import gang_on, leave
from local_nodes import LocalNode

REMEDY = "run: ansible-playbook logs.yml -e job=job-1"


# ------------------------------------------------------------------------------------------------------------- batches


def sizes(seed: int) -> list[tuple[str, int]]:
    chance = random.Random(seed)
    choices = [0, 0, 1, 2, 99, 100, 101, 199, 200, 201, 1000]
    return [(f"f{number}", chance.choice(choices)) for number in range(chance.randrange(30))]


def batches(files: Iterable[tuple[str, int, int]], limit: int, given_up: Sequence[str] = ()) -> list[Any]:
    source: Any = SimpleNamespace(batch_bytes=limit)
    wanted = ((File(name, size, 0), begun) for name, size, begun in files)
    found = artifacts.batches(wanted, source, given_up)
    return [[(file.name, offset, length) for file, offset, length in batch] for batch in found]


@pytest.mark.parametrize("seed", range(100))
def test_batches_cover_every_byte_once_and_in_order(seed: int) -> None:
    files = sizes(seed)
    found = batches([(name, size, 0) for name, size in files], 100)
    assert all(0 < len(batch) <= 1000 and sum(length for _, _, length in batch) <= 100 for batch in found)
    covered: dict[str, int] = {}
    for path, offset, length in (part for batch in found for part in batch):
        assert covered.get(path, 0) == offset, "no gap, no overlap"
        covered[path] = offset + length
    assert list(covered.items()) == files
    full = sum(size for _path, size in files) // 100
    assert full <= len(found) <= full + 1 + len(files) // 1000


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        ([("a", 0, 0)], [[("a", 0, 0)]]),
        ([("a", 10, 0)], [[("a", 0, 10)]]),
        ([("a", 10, 0), ("b", 0, 0)], [[("a", 0, 10)], [("b", 0, 0)]]),
        ([("a", 25, 0)], [[("a", 0, 10)], [("a", 10, 10)], [("a", 20, 5)]]),
        ([("a", 25, 12)], [[("a", 12, 10)], [("a", 22, 3)]]),
        ([("a", 4, 0), ("b", 8, 0)], [[("a", 0, 4), ("b", 0, 6)], [("b", 6, 2)]]),
    ],
)
def test_batches(files: list[tuple[str, int, int]], expected: list[list[tuple[str, int, int]]]) -> None:
    assert batches(files, 10) == expected


def test_many_empty_files_are_still_cut_into_batches() -> None:
    assert [len(batch) for batch in batches([(str(n), 0, 0) for n in range(2500)], 10)] == [1000, 1000, 500]


def test_of_a_file_that_is_given_up_no_more_is_asked() -> None:
    given_up: list[str] = []
    source: Any = SimpleNamespace(batch_bytes=10)
    found = artifacts.batches([(File("a", 100, 0), 0), (File("b", 5, 0), 0)], source, given_up)
    assert [part[0].name for part in next(found)] == ["a"]
    given_up.append("a")
    assert [[part[0].name for part in batch] for batch in found] == [["b"]]


# ------------------------------------------------------------------------------------------------------------- collect


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces and pages, and no waiting."""
    monkeypatch.setattr(artifacts, "PAGE_FILES", 3)
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 0)
    monkeypatch.setattr(artifacts.Source, "batch_bytes", 1000)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    one = Record(tmp_path / "runs", "job-1")
    one.create()
    return one


class Watched:
    """A gang whose requests are counted, and may be disturbed: by an error, or by something done before."""

    def __init__(
        self, gang: Gang, before: Callable[[str, str, int], NodeError | None] = lambda op, host, n: None
    ) -> None:
        self.gang = gang
        self.job_id, self.topology = gang.job_id, gang.topology
        self.before = before
        self.asked: list[tuple[str, str]] = []
        self.parts: list[tuple[str, int, int]] = []

    def ask(self, op: str, timeout: float, hosts: Sequence[str], **more: Any) -> tuple[Replies, dict[str, NodeError]]:
        (host,) = hosts
        self.asked.append((op, host))
        self.parts += more.get("parts", [])
        error = self.before(op, host, sum(entry[0] == op for entry in self.asked))
        return ({}, {host: error}) if error else self.gang.ask(op, timeout, hosts, **more)


def collect(gang: Any, record: Record, which: str = "head", **more: Any) -> list[str]:
    return artifacts.collect(gang, which, record, 5, **more)


def contents(record: Record) -> dict[str, bytes]:
    root = record.path / "artifacts"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


FILES = {
    "empty": b"",
    "a/b/last.ckpt": random.Random(2).randbytes(4567),
    "a/b/last.ckpt.part": b"of the job's own",
    "metrics.csv": b"1,2\n",
    "ü \n": b"x",
    "n" * 255: b"a name of full length",
    **{f"many/{n}": bytes([n]) * n for n in range(9)},
}


def test_files_arrive_whole(node: LocalNode, record: Record) -> None:
    work = leave(node, files=FILES)
    assert collect(gang_on([node]), record) == []
    assert contents(record) == FILES
    for name in FILES:
        assert (record.path / "artifacts" / name).stat().st_mtime_ns == (work / name).stat().st_mtime_ns
    assert sorted(os.listdir(record.path)) == ["artifacts", "job.json", "logs"]


def test_what_is_here_is_not_fetched_again(node: LocalNode, record: Record) -> None:
    work = leave(node, files=FILES)
    collect(gang_on([node]), record)
    (work / "metrics.csv").write_bytes(b"3,4\n")
    (record.path / "artifacts" / "empty").unlink()
    gang = Watched(gang_on([node]))
    assert collect(gang, record) == []
    assert sorted(name for name, _offset, _length in gang.parts) == ["empty", "metrics.csv"]
    assert contents(record) == {**FILES, "metrics.csv": b"3,4\n"}


def test_all_nodes_each_in_a_folder_of_its_own(nodes: list[LocalNode], record: Record) -> None:
    for node in nodes:
        leave(node, files={"out/who": node.host.encode(), "same": b""})
    assert collect(gang_on(nodes), record, "all") == []
    assert contents(record) == {
        f"rank{rank}-node{rank}/{name}": content
        for rank in (0, 1)
        for name, content in (("out/who", b"node%d" % rank), ("same", b""))
    }


def test_only_the_head_or_nobody(nodes: list[LocalNode], record: Record) -> None:
    for node in nodes:
        leave(node, files={"who": node.host.encode()})
    gang = Watched(gang_on(nodes))
    assert collect(gang, record, "none") == [] and gang.asked == []
    assert collect(gang, record, "head") == []
    assert contents(record) == {"who": b"node0"} and {host for _op, host in gang.asked} == {"node0"}


def test_a_node_that_was_lost_is_not_waited_for(
    nodes: list[LocalNode], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in nodes:
        leave(node, files={"who": node.host.encode()})
    monkeypatch.setattr(artifacts, "LOST_SECONDS", 0)
    away = Unreachable("node0", "is away")
    gang = Watched(gang_on(nodes), lambda op, host, n: away if host == "node0" else None)
    (note,) = collect(gang, record, "all", lost={"node0"})
    assert note == (
        "what rank 0 (node0) wrote is not complete here: node0 is away; it is in the job's work directory there; "
        + REMEDY
    )
    assert gang.asked.count(("list_artifacts", "node0")) == 1 and contents(record) == {"rank1-node1/who": b"node1"}


def test_from_a_node_that_is_back_again_is_collected(nodes: list[LocalNode], record: Record) -> None:
    for node in nodes:
        leave(node, files={"who": node.host.encode()}, state="running")
    assert collect(gang_on(nodes), record, "all", lost={"node0"}) == []
    assert contents(record) == {f"rank{n}-node{n}/who": b"node%d" % n for n in (0, 1)}


# ---------------------------------------------------------------------------------------------------------- interrupted


def test_an_interrupted_transfer_goes_on(node: LocalNode, record: Record) -> None:
    content = random.Random(3).randbytes(5500)
    leave(node, files={"a": b"small", "big": content, "z": b"last"})
    broken = Watched(
        gang_on([node]), lambda op, host, n: Refused(host, "fell asleep") if (op, n) == ("read_files", 4) else None
    )
    assert collect(broken, record) == [
        "what rank 0 (node0) wrote is not complete here: node0 fell asleep; it is in the job's work directory there; "
        + REMEDY
    ]
    assert contents(record) == {"a": b"small"}
    gang = Watched(gang_on([node]))
    assert collect(gang, record) == []
    assert gang.parts[0] == ("big", 2995, 1000)
    assert contents(record) == {"a": b"small", "big": content, "z": b"last"}
    assert not (record.path / "incomplete").exists()


def test_a_file_that_changed_since_the_interruption_starts_anew(node: LocalNode, record: Record) -> None:
    work = leave(node, files={"big": bytes(5500)})
    collect(Watched(gang_on([node]), lambda op, host, n: Refused(host, "x") if n == 4 else None), record)
    content = random.Random(3).randbytes(5500)
    (work / "big").write_bytes(content)
    gang = Watched(gang_on([node]))
    assert collect(gang, record) == []
    assert gang.parts[0] == ("big", 0, 1000)
    assert contents(record) == {"big": content}


def test_a_file_that_changes_while_it_is_read_is_read_again(node: LocalNode, record: Record) -> None:
    work = leave(node, files={"big": bytes(5500), "other": b"x"})

    def change(op: str, host: str, n: int) -> None:
        if (op, n) == ("read_files", 3):
            (work / "big").write_bytes(b"1" * 4000)

    assert collect(Watched(gang_on([node]), change), record) == []
    assert contents(record) == {"big": b"1" * 4000, "other": b"x"}


def test_a_file_that_vanishes_meanwhile(node: LocalNode, record: Record) -> None:
    work = leave(node, files={"a": b"1", "big": bytes(5500), "z": b"2"})

    def remove(op: str, host: str, n: int) -> None:
        if (op, n) == ("read_files", 3):
            (work / "big").unlink()

    assert collect(Watched(gang_on([node]), remove), record) == []
    assert contents(record) == {"a": b"1", "z": b"2"}
    assert not (record.path / "incomplete").exists()


def test_a_file_that_never_stays_as_it_is(node: LocalNode, record: Record) -> None:
    work = leave(node, files={"growing": bytes(3000), "z": b"2"})

    def grow(op: str, host: str, n: int) -> None:
        if op == "read_files":
            with open(work / "growing", "ab") as file:
                file.write(b"more")

    notes = collect(Watched(gang_on([node]), grow), record)
    assert notes == ["not collected from node0, because they change while they are read: growing"]
    assert contents(record) == {"z": b"2"}


@pytest.mark.parametrize(
    "trouble", [Unreachable("node0", "is unreachable"), NodeError("node0", "has no usable Python: it was not found")]
)
def test_a_node_that_gives_no_answer_for_a_moment(trouble: NodeError, node: LocalNode, record: Record) -> None:
    leave(node, files=FILES)
    moments = iter([trouble, None] * 100)
    gang = Watched(gang_on([node]), lambda op, host, n: next(moments))
    assert collect(gang, record) == []
    assert contents(record) == FILES


def test_a_node_that_stays_unreachable(nodes: list[LocalNode], record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 1)
    leave(nodes[1], files={"who": b"node1"})
    gone = Watched(gang_on(nodes), lambda op, host, n: Unreachable(host, "is away") if host == "node0" else None)
    (note,) = collect(gone, record, "all")
    assert note.startswith("what rank 0 (node0) wrote is not complete here: node0 is away; it is in the job's work")
    assert contents(record) == {"rank1-node1/who": b"node1"}


def test_a_frozen_node_holds_nobody_up(nodes: list[LocalNode], record: Record) -> None:
    leave(nodes[1], files={"who": b"node1"})
    thaw = threading.Event()

    class Frozen:
        become = None

        def exec_command(self, command: str, in_data: bytes) -> Any:
            thaw.wait()
            return 255, b"", b""

    nodes[0].connection = Frozen()
    (note,) = collect(gang_on(nodes), record, "all")
    thaw.set()
    assert "node0 gave no answer within 5 s" in note
    assert contents(record) == {"rank1-node1/who": b"node1"}


def test_a_node_that_has_no_such_job(node: LocalNode, record: Record) -> None:
    (note,) = collect(gang_on([node]), record)
    assert note.startswith("what rank 0 (node0) wrote is not complete here: node0 has no job job-1; ")


# ------------------------------------------------------------------------------------------------------------ the disk


def test_a_disk_that_is_too_small(nodes: list[LocalNode], record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in nodes:
        leave(node, files={"big": bytes(6000)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    gang = Watched(gang_on(nodes))
    assert collect(gang, record, "all") == [
        f"artifacts (12.0 kB) do not fit into {record.path} (10.0 kB free); free some space there; {REMEDY} again"
    ]
    assert contents(record) == {} and gang.parts == []
    assert collect(gang, record, "head") == []  # one alone does
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    assert collect(gang, record, "head") == []  # what is here needs no room


def test_a_disk_that_fills_up_meanwhile(node: LocalNode, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(3).randbytes(5500)
    leave(node, files={"big": content})
    pwrite = os.pwrite

    def fill(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 2500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:500], offset)  # a short write, as they come at the end of a disk

    monkeypatch.setattr(os, "pwrite", fill)
    (note,) = collect(gang_on([node]), record)
    assert note.startswith("what rank 0 (node0) wrote is not complete here: No space left on device; it is in")
    monkeypatch.setattr(os, "pwrite", pwrite)
    gang = Watched(gang_on([node]))
    assert collect(gang, record) == []
    assert gang.parts[0] == ("big", 2000, 1000)  # the piece that did not fit, and no more, is fetched again
    assert contents(record) == {"big": content}


# --------------------------------------------------------------------------------------------------- names that are odd


class Liar:
    """A gang of one node that answers what it likes."""

    job_id = "job-1"

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.topology = SimpleNamespace(
            nodes=[
                SimpleNamespace(host="node0", rank=0, name="rank 0 (node0)", file_stem="rank0-node0"),
            ]
        )

    def ask(self, op: str, timeout: float, hosts: Sequence[str], **more: Any) -> tuple[Any, dict[str, NodeError]]:
        if op == "list_artifacts":
            listed = b"".join(os.fsencode(name) + b"\0%d\x007\0" % len(data) for name, data in self.files.items())
            return {"node0": ({"more": False, "cores": []}, listed)}, {}
        parts = [self.files[name][offset : offset + length] for name, offset, length in more["parts"]]
        stated = [
            (len(part), len(self.files[name]), 7) for part, (name, _o, _l) in zip(parts, more["parts"], strict=True)
        ]
        return {"node0": ({"parts": stated}, b"".join(parts))}, {}


@pytest.mark.parametrize("which", ["head", "all"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, record: Record, which: str) -> None:
    files = {"../escaped": b"x", "/tmp/escaped": b"x", "a/../../../escaped\x1b[2J": b"x", "good": b"x"}
    notes = collect(Liar(files), record, which)
    assert notes == [
        "not collected from node0, because their names would leave the folder: ../escaped, /tmp/escaped, "
        "a/../../../escaped\\x1b[2J"
    ]
    assert contents(record) == {"good" if which == "head" else "rank0-node0/good": b"x"}
    assert not list(tmp_path.rglob("escaped*"))


def test_of_many_odd_names_a_few_are_shown(record: Record) -> None:
    (note,) = collect(Liar({f"../{n}": b"" for n in range(1000)}), record)
    assert note.endswith("leave the folder: ../0, ../1, ../2, ../3, ../4 and 995 more")


def test_links_here_are_not_followed(tmp_path: Path, node: LocalNode, record: Record) -> None:
    leave(node, files={"folder/file": b"1", "file": b"2", "z": b"3"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"untouched")
    (record.path / "artifacts" / "folder").symlink_to(tmp_path / "mine")
    (record.path / "artifacts" / "file").symlink_to(tmp_path / "mine" / "file")
    notes = collect(gang_on([node]), record)
    assert notes == ["not collected from node0, because something else lies in their place: folder/file"]
    assert (tmp_path / "mine" / "file").read_bytes() == b"untouched"
    assert not (record.path / "artifacts" / "file").is_symlink()  # replaced by what the job wrote
    assert (record.path / "artifacts" / "z").read_bytes() == b"3"


def test_a_file_where_there_was_a_folder(node: LocalNode, record: Record) -> None:
    leave(node, files={"a": b"1", "b": b"2"})
    (record.path / "artifacts" / "a" / "deep").mkdir(parents=True)
    assert collect(gang_on([node]), record) == [
        "not collected from node0, because something else lies in their place: a"
    ]
    assert contents(record) == {"b": b"2"}


# ------------------------------------------------------------------------------------------------------ many, and large


def test_a_list_too_long_to_remember_is_asked_for_again(
    node: LocalNode, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(node, files=FILES)
    monkeypatch.setattr(artifacts, "REMEMBERED_FILES", 4)
    gang = Watched(gang_on([node]))
    assert collect(gang, record) == []
    assert contents(record) == FILES
    assert gang.asked.count(("list_artifacts", "node0")) == 2 * -(-len(FILES) // 3)


def test_a_few_nodes_at_a_time(record: Record) -> None:
    most = now = 0
    lock = threading.Lock()
    meet = threading.Barrier(artifacts.NODES_AT_ONCE)
    nodes = [
        SimpleNamespace(host=f"n{n}", rank=n, name=f"n{n}", file_stem=f"rank{n}-n{n}")
        for n in range(3 * artifacts.NODES_AT_ONCE)
    ]

    class Busy:
        job_id = "job-1"
        topology = SimpleNamespace(nodes=nodes)

        def ask(self, op: str, timeout: float, hosts: Sequence[str], **more: Any) -> Any:
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
            meet.wait(30)  # all that may be at it are
            with lock:
                now -= 1
            return {hosts[0]: ({"more": False, "cores": []}, b"")}, {}

    assert collect(Busy(), record, "all") == []
    assert most == artifacts.NODES_AT_ONCE


def test_pieces_fit_the_line(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    gang: Any = SimpleNamespace(ask=lambda *arguments, **more: ({"node0": ({}, b"")}, {}))
    source = artifacts.Source(gang, "node0", 30)
    sizes = []
    for seconds in [0.5] * 5 + [10] * 9 + [2]:
        times = iter([0.0, 0.0, seconds])
        monkeypatch.setattr(artifacts.time, "monotonic", lambda times=times: next(times))
        sizes.append(source.batch_bytes)
        source.ask("read_files")
    monkeypatch.undo()
    mebibyte = 2**20
    assert sizes[:5] == [mebibyte, 2 * mebibyte, 4 * mebibyte, 8 * mebibyte, 8 * mebibyte]
    assert sizes[5:] == [8 * mebibyte // 2**n for n in range(8)] + [2**16, 2**16]
