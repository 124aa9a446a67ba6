import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import artifacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record


def sizes(seed: int) -> list[tuple[str, int]]:
    chance = random.Random(seed)
    choices = [0, 0, 1, 2, 99, 100, 101, 199, 200, 201, 1000]
    return [(f"f{number}", chance.choice(choices)) for number in range(chance.randrange(30))]


@pytest.mark.parametrize("seed", range(100))
def test_batches_cover_every_byte_once_and_in_order(seed: int) -> None:
    files = sizes(seed)
    found = list(artifacts.batches(files, 100))
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
        ([("a", 0)], [[("a", 0, 0)]]),
        ([("a", 10)], [[("a", 0, 10)]]),
        ([("a", 10), ("b", 0)], [[("a", 0, 10)], [("b", 0, 0)]]),
        ([("a", 25)], [[("a", 0, 10)], [("a", 10, 10)], [("a", 20, 5)]]),
        ([("a", 4), ("b", 8)], [[("a", 0, 4), ("b", 0, 6)], [("b", 6, 2)]]),
    ],
)
def test_batches(files: list[tuple[str, int]], expected: list[list[tuple[str, int, int]]]) -> None:
    assert list(artifacts.batches(files, 10)) == expected


def test_many_empty_files_are_still_cut_into_batches() -> None:
    assert [len(batch) for batch in artifacts.batches([(str(n), 0) for n in range(2500)])] == [1000, 1000, 500]


class Remote:
    """A node that answers from a mapping of names to contents; ``listed`` may promise more than is there."""

    def __init__(self, files: Mapping[str, bytes], listed: Sequence[tuple[str, int]] | None = None) -> None:
        self.files = files
        self.listed = listed or [(name, len(data)) for name, data in files.items()]

    def call(self, request: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        if request["op"] == "artifacts":
            return {"files": self.listed}, b""
        parts = [self.files.get(name, b"")[offset : offset + length] for name, offset, length in request["parts"]]
        return {"lengths": [len(part) for part in parts]}, b"".join(parts)


def collect(remote: Remote, record: Record) -> list[str]:
    return artifacts.collect(remote, lambda op: {"op": op}, record)  # type: ignore[arg-type]


def contents(record: Record) -> dict[str, bytes]:
    root = record.path / "artifacts"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts.batches, "__defaults__", (1000,))
    files = {"empty": b"", "a/b/last.ckpt": random.Random(2).randbytes(4567), "metrics.csv": b"1,2\n", "ü \n": b"x"}
    record = Record(tmp_path, "id-1")
    record.create()
    assert collect(Remote(files), record) == []
    assert contents(record) == files


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    files = {"../escaped": b"x", "/tmp/escaped": b"x", "a/../../../escaped": b"x", "good": b"x"}
    record = Record(tmp_path / "runs", "id-1")
    record.create()
    assert collect(Remote(files), record) == ["../escaped", "/tmp/escaped", "a/../../../escaped"]
    assert contents(record) == {"good": b"x"}
    assert not list(tmp_path.rglob("escaped"))


def test_a_file_that_shrank_or_vanished_meanwhile_moves_no_other(tmp_path: Path) -> None:
    record = Record(tmp_path, "id-1")
    record.create()
    remote = Remote({"a": b"short", "c": b"third"}, [("a", 100), ("b", 50), ("c", 5)])
    assert collect(remote, record) == []
    assert contents(record) == {"a": b"short", "b": b"", "c": b"third"}


def test_an_error_of_the_node_is_not_hidden(tmp_path: Path) -> None:
    class Broken(Remote):
        def call(self, request: Mapping[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
            raise NodeError("gpu-1", "has no job id-1")

    with pytest.raises(NodeError, match=r"^gpu-1 has no job id-1$"):
        collect(Broken({}), Record(tmp_path, "id-1"))
