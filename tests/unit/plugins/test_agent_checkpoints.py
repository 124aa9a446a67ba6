# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import fcntl
import hashlib
import os
import pickle
import random
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import (
    find_checkpoints,
    lightning_checkpoint,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    BUNDLE_MTIME,
    PLACED_MTIME,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import list_checkpoints
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from left_jobs import LIGHTNING, checkpoint, leave, nested
from local_nodes import SLEEP, LocalNode, as_root, code, node_of_nobody, refused


def listing(node: LocalNode) -> tuple[dict[str, int], dict[str, str]]:
    """What a node has: steps by path, and reasons by path."""
    reply = node.ask("list_checkpoints")
    return {path: step for path, step, _bytes, _mtime in reply["found"]}, dict(reply["refused"])


def why(node: LocalNode, path: str = "a.ckpt") -> str:
    """Why a checkpoint is refused, be it at the first look or when it is read whole; "" if it is whole."""
    _found, refused = listing(node)
    return refused.get(path) or node.ask("verify_checkpoint", path=path)["why"]


def test_checkpoints_of_a_job(node: LocalNode) -> None:
    work = leave(node, files={"notes.txt": b"", "ckpt": b""})
    content = checkpoint(work / "checkpoints" / "last.ckpt", step=70)
    longer = checkpoint(work / "deep" / "er" / "epoch=1-step=70000.ckpt", step=70_000)
    checkpoint(work / "none.ckpt.part")
    reply = node.ask("list_checkpoints")
    assert sorted(reply["found"]) == [
        ["checkpoints/last.ckpt", 70, len(content), 2_000_000_000.0],
        ["deep/er/epoch=1-step=70000.ckpt", 70_000, len(longer), 2_000_000_000.0],
    ]
    assert reply["refused"] == []
    whole = node.ask("verify_checkpoint", path="checkpoints/last.ckpt")
    assert whole == {"why": "", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_link_is_passed_over_and_its_target_found(node: LocalNode) -> None:
    work = leave(node)
    checkpoint(work / "epoch=1.ckpt", step=7)
    (work / "last.ckpt").symlink_to("epoch=1.ckpt")
    (work / "folder.ckpt").symlink_to("/tmp")
    (work / "gone.ckpt").symlink_to("gone")
    assert listing(node) == ({"epoch=1.ckpt": 7}, {})


def test_what_came_with_the_code_is_not_the_jobs(node: LocalNode) -> None:
    work = leave(node)
    for name, mtime in (("pretrained.ckpt", BUNDLE_MTIME), ("resumed.ckpt", PLACED_MTIME)):
        checkpoint(work / name, step=5)
        os.utime(work / name, (mtime, mtime))
    assert listing(node) == ({"resumed.ckpt": 5}, {})


def test_a_sharded_checkpoint(node: LocalNode) -> None:
    work = leave(node, files={"epoch=1.ckpt/.metadata": b"", "epoch=1.ckpt/__0_0.distcp": b""})
    checkpoint(work / "epoch=1.ckpt" / "inside.ckpt")
    reason = "is a folder: a sharded checkpoint, of which each node has a part only"
    assert listing(node) == ({}, {"epoch=1.ckpt": reason})


def test_of_very_many_only_the_latest_are_looked_at(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    work = leave(node)
    for number in range(6):
        checkpoint(work / f"{number}.ckpt", step=number)
        os.utime(work / f"{number}.ckpt", (10**9 + number, 10**9 + number))
    request = {"directory": str(node.directory), "job": {"id": "job-1"}}
    monkeypatch.setattr(find_checkpoints, "MOST_LISTED", 2)
    reply, _payload = list_checkpoints.list_checkpoints(request, b"")
    assert [found[0] for found in reply["found"]] == ["5.ckpt", "4.ckpt"]


def test_a_job_that_still_runs(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP))
    assert refused(node, "list_checkpoints") == (
        "node0 runs job job-1 still; wait for it, or end it with: ansible-playbook stop.yml -e job=job-1"
    )


def test_a_supervisor_that_says_good_bye_is_not_in_the_way(node: LocalNode) -> None:
    checkpoint(leave(node, state="failed") / "a.ckpt", step=3)
    (node.directory / "jobs" / "current").write_text(f"job-1\ntrainer\n2026\n{os.getpid()}\n")
    with open(node.directory / "jobs" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listing(node) == ({"a.ckpt": 3}, {})


def test_a_job_that_nested_folders_deep(node: LocalNode) -> None:
    work = leave(node)
    checkpoint(work / "z.ckpt", step=3)
    with nested(work, 1500):
        assert listing(node) == ({"z.ckpt": 3}, {})


# ------------------------------------------------------------------------------------------------------ whole or not


@pytest.mark.parametrize("step", [0, 1, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**63 - 1])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_the_step_in_a_pickle_of_any_protocol(step: int, protocol: int) -> None:
    data = {"epoch": 3, "global_step": step, **LIGHTNING}
    assert lightning_checkpoint.step_in(pickle.dumps(data, protocol)) == step


@pytest.mark.parametrize("step", ["7", None, 7.0, -1, 2**63, 2**9000, [7], {"global_step": 7}])
def test_what_is_no_step(step: Any) -> None:
    assert lightning_checkpoint.step_in(pickle.dumps({"global_step": step}, 2)) is None


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for data in ({"a": Trap(), "global_step": 5}, {"global_step": 5, "z": Trap()}):
        assert lightning_checkpoint.step_in(pickle.dumps(data, 2)) == 5
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_is_cut_off_anywhere(node: LocalNode) -> None:
    work = leave(node)
    content = checkpoint(work / "a.ckpt")
    chance = random.Random(1)
    for length in {
        0,
        1,
        3,
        4,
        5,
        len(content) - 1,
        len(content) - 22,
        *(chance.randrange(len(content)) for _ in range(8)),
    }:
        (work / "a.ckpt").write_bytes(content[:length])
        expected = "is empty" if not length else "is truncated" if length >= 4 else "is not in torch's zip format"
        assert why(node) == expected, length


def test_a_checkpoint_with_a_torn_page(node: LocalNode) -> None:
    """As a power cut leaves it: the length is right, but a page was never written."""
    work = leave(node)
    content = checkpoint(work / "a.ckpt")
    with zipfile.ZipFile(work / "a.ckpt") as archive:
        starts = {part.filename: part.header_offset for part in archive.infolist()}
    for name, reason in [
        ("last/data/2", "has a damaged part data/2"),
        ("last/version", "has a damaged part version"),
        ("last/data.pkl", "is not in torch's zip format"),
    ]:
        for length in (1, 40):  # within its header, and all of it
            torn = bytearray(content)
            torn[starts[name] : starts[name] + length] = bytes(length)
            (work / "a.ckpt").write_bytes(torn)
            assert why(node) == reason, (name, length)


def test_any_flipped_bit_of_a_part_is_noticed(node: LocalNode) -> None:
    work = leave(node)
    content = checkpoint(work / "a.ckpt")
    spot = content.index((3).to_bytes(4, "little") * 10)
    for offset in (0, 9_999, 19_999):
        damaged = bytearray(content)
        damaged[spot + offset] ^= 16
        (work / "a.ckpt").write_bytes(damaged)
        assert why(node) == "has a damaged part data/3"
    damaged = bytearray(content)
    damaged[content.index(b"global_step") + 13] ^= 1  # the step itself
    (work / "a.ckpt").write_bytes(damaged)
    assert why(node) == "has a damaged part data.pkl"


def zipped(path: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


STEP = pickle.dumps({"global_step": 1}, 2)
NOT_TORCH = "is not in torch's zip format"
NO_STEP = "has no global_step: not Lightning's"


@pytest.mark.parametrize(
    ("parts", "method", "reason"),
    [
        ({}, zipfile.ZIP_STORED, NOT_TORCH),
        ({"readme.txt": b"x"}, zipfile.ZIP_STORED, NOT_TORCH),
        ({"data.pkl": STEP}, zipfile.ZIP_STORED, NOT_TORCH),
        ({"a/b/data.pkl": STEP}, zipfile.ZIP_STORED, NOT_TORCH),
        ({"a/data.pkl": STEP}, zipfile.ZIP_DEFLATED, NOT_TORCH),
        ({"a/data.pkl": b""}, zipfile.ZIP_STORED, NO_STEP),
        ({"a/data.pkl": b"\x80\x02no pickle"}, zipfile.ZIP_STORED, NO_STEP),
        ({"a/data.pkl": STEP[:-6]}, zipfile.ZIP_STORED, NO_STEP),
        ({"a/data.pkl": pickle.dumps({"epoch": 1}, 2)}, zipfile.ZIP_STORED, NO_STEP),
        ({"a/data.pkl": STEP}, zipfile.ZIP_STORED, ""),
    ],
)
def test_other_files_of_that_name(node: LocalNode, parts: dict[str, bytes], method: int, reason: str) -> None:
    work = leave(node)
    zipped(work / "a.ckpt", parts, method)
    assert why(node) == reason


@pytest.mark.parametrize("content", [b"x", b"\x80\x02}q\x00.", b"PK\5\6" + bytes(18), bytes(10_000)])
def test_files_that_are_no_zip_file(node: LocalNode, content: bytes) -> None:
    leave(node, files={"a.ckpt": content})
    assert why(node) == NOT_TORCH


def test_a_pipe_of_that_name(node: LocalNode) -> None:
    os.mkfifo(leave(node) / "a.ckpt")
    assert listing(node) == ({}, {})


def test_parts_that_together_are_larger_than_the_file(node: LocalNode) -> None:
    work = leave(node)
    zipped(work / "a.ckpt", {"a/data.pkl": STEP, **{f"a/data/{n}": bytes(1000) for n in range(9)}})
    content = (work / "a.ckpt").read_bytes()
    directory = content.index(b"PK\1\2")
    # As a zip bomb is: every entry of the directory points at one part.
    with zipfile.ZipFile(work / "a.ckpt") as archive:
        first = archive.getinfo("a/data/0").header_offset
        starts = [archive.getinfo(f"a/data/{n}").header_offset for n in range(9)]
    bomb = bytearray(content[: starts[1]] + content[directory:])
    moved = directory - starts[1]
    bomb[-6:-2] = (directory - moved).to_bytes(4, "little")
    for start in starts[1:]:
        at = bomb.rindex(start.to_bytes(4, "little"))
        bomb[at : at + 4] = first.to_bytes(4, "little")
    (work / "a.ckpt").write_bytes(bomb)
    assert why(node) == NOT_TORCH


def test_a_checkpoint_without_checksums(node: LocalNode) -> None:
    work = leave(node)
    content = bytearray(checkpoint(work / "a.ckpt"))
    for mark, at in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        spot = content.find(mark)
        while spot >= 0:
            content[spot + at : spot + at + 4] = bytes(4)
            spot = content.find(mark, spot + 1)
    (work / "a.ckpt").write_bytes(content)
    assert why(node) == "has no checksums: torch.serialization.set_crc32_options(False) left them out"


def test_a_checkpoint_of_weights_only(node: LocalNode) -> None:
    work = leave(node)
    content = {name: value for name, value in LIGHTNING.items() if name != "optimizer_states"}
    checkpoint(work / "a.ckpt", content={"global_step": 9, **content})
    assert why(node) == "has weights only (save_weights_only), from which no training can go on"
    checkpoint(work / "a.ckpt", content={"model": {}, "global_step": 9})  # of a plain torch script
    assert why(node) == ""


# --------------------------------------------------------------------------------------------------------------- place


def place(node: LocalNode, content: bytes, piece_bytes: int, path: str = "checkpoints/last.ckpt", **more: Any) -> bool:
    about = {"path": path, "total": len(content), "sha256": hashlib.sha256(content).hexdigest(), **more}
    answers = []
    for offset in range(0, len(content), piece_bytes):
        answers.append(
            node.ask("place_file", payload=content[offset : offset + piece_bytes], offset=offset, **about)["placed"]
        )
    assert not any(answers[:-1])
    return answers[-1]


@pytest.mark.parametrize("piece_bytes", [1, 4, 9, 10, 11, 1000])
def test_a_checkpoint_arrives_in_pieces(node: LocalNode, piece_bytes: int) -> None:
    work = leave(node, state="")
    assert place(node, b"0123456789", piece_bytes)
    assert (work / "checkpoints" / "last.ckpt").read_bytes() == b"0123456789"
    assert os.listdir(work / "checkpoints") == ["last.ckpt"]
    assert (work / "checkpoints" / "last.ckpt").stat().st_mtime == PLACED_MTIME


def test_a_file_of_the_code_is_replaced(node: LocalNode) -> None:
    work = leave(node, files={"checkpoints/last.ckpt": b"older"}, state="")
    inode = (work / "checkpoints" / "last.ckpt").stat().st_ino
    assert place(node, b"newer", 2)
    assert (work / "checkpoints" / "last.ckpt").read_bytes() == b"newer"
    assert (work / "checkpoints" / "last.ckpt").stat().st_ino != inode


def test_pieces_that_come_twice_do_no_harm(node: LocalNode) -> None:
    work = leave(node, state="")
    content = b"0123456789"
    about = {"path": "a.ckpt", "total": 10, "sha256": hashlib.sha256(content).hexdigest()}
    pieces = [(0, b"012"), (0, b"012"), (3, b"3456"), (3, b"3456"), (7, b"789"), (7, b"789")]
    answers = [node.ask("place_file", payload=piece, offset=offset, **about)["placed"] for offset, piece in pieces]
    assert answers == [False, False, False, False, True, True]
    assert (work / "a.ckpt").read_bytes() == content
    assert place(node, content, 100, path="a.ckpt")  # all of it once more


def test_pieces_that_are_missing(node: LocalNode) -> None:
    work = leave(node, state="")
    about = {"path": "a.ckpt", "total": 10, "sha256": "0" * 64}
    node.ask("place_file", payload=b"01", offset=0, **about)
    assert refused(node, "place_file", payload=b"45", offset=4, **about) == (
        "node0 lost a part of the checkpoint; run the playbook again"
    )
    (work / f".{'0' * 64}.part").unlink()
    assert "failed at place_file: No such file" in refused(node, "place_file", payload=b"45", offset=4, **about)
    assert node.ask("place_file", payload=b"89", offset=8, **about) == {"placed": False}


def test_what_arrives_damaged_is_not_put_in_place(node: LocalNode) -> None:
    work = leave(node, files={"a.ckpt": b"older"}, state="")
    words = refused(node, "place_file", payload=b"0123", offset=0, path="a.ckpt", total=4, sha256="0" * 64)
    assert words == "node0 received a checkpoint that does not match its SHA-256; run the playbook again"
    assert {path.name: path.read_bytes() for path in work.iterdir()} == {"a.ckpt": b"older"}


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", "..", "a//b", "."])
def test_a_path_that_leaves_the_folder(node: LocalNode, path: str) -> None:
    work = leave(node, state="")
    words = refused(node, "place_file", payload=b"x", offset=0, path=path, total=1, sha256="")
    assert words == f"node0 was asked for {path!r}, which is no path below {work}; report this"
    assert not list(node.directory.rglob("escaped*"))


@pytest.mark.parametrize("obstacle", ["link", "file", "folder"])
def test_something_of_the_code_in_the_way(node: LocalNode, tmp_path: Path, obstacle: str) -> None:
    work = leave(node, state="")
    if obstacle == "link":
        (work / "checkpoints").symlink_to(tmp_path)
    elif obstacle == "file":
        (work / "checkpoints").write_text("")
    else:
        (work / "checkpoints" / "last.ckpt").mkdir(parents=True)
    before = os.listdir(tmp_path)
    with pytest.raises(Exception, match=r"^node0 has something else of the code where 'checkpoints/last.ckpt' belongs"):
        place(node, b"x", 1)
    assert os.listdir(tmp_path) == before


def test_a_planted_part_is_not_written_through(node: LocalNode, tmp_path: Path) -> None:
    work = leave(node, state="")
    (tmp_path / "mine").write_bytes(b"untouched")
    sha256 = hashlib.sha256(b"0123").hexdigest()
    (work / f".{sha256}.part").symlink_to(tmp_path / "mine")
    assert place(node, b"0123", 4, path="a.ckpt")
    assert (tmp_path / "mine").read_bytes() == b"untouched"
    assert (work / "a.ckpt").read_bytes() == b"0123"
    (work / f".{sha256}.part").symlink_to(tmp_path / "mine")
    about = {"path": "a.ckpt", "total": 4, "sha256": sha256}
    with pytest.raises(Exception, match="belongs; rename"):
        node.ask("place_file", payload=b"23", offset=2, **about)
    assert (tmp_path / "mine").read_bytes() == b"untouched"


def test_a_job_that_has_started(node: LocalNode) -> None:
    leave(node, state="running")
    words = refused(node, "place_file", payload=b"x", offset=0, path="a", total=1, sha256="")
    assert words == "node0 has started job job-1 already; report this"


def test_a_disk_too_small(node: LocalNode) -> None:
    work = leave(node, state="")
    words = refused(node, "place_file", payload=b"x", offset=0, path="a", total=2**60, sha256="")
    assert words.startswith(f"node0 has too little disk space in {work} (")
    assert list(work.iterdir()) == []


def test_each_piece_tells_the_supervisor_that_the_controller_is_there(node: LocalNode) -> None:
    leave(node, state="")
    os.utime(node.job_dir(), (1, 1))
    place(node, b"x", 1)
    assert node.job_dir().stat().st_mtime > 10**9


def from_job(node: LocalNode, content: bytes, job: str = "job-0") -> bool:
    about = {"path": "c/last.ckpt", "total": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return bool(node.ask("place_file", from_job=job, **about)["placed"])


def test_a_checkpoint_that_is_here_already_is_copied(node: LocalNode) -> None:
    leave(node, "job-0", {"c/last.ckpt": b"0123"})
    work = leave(node, state="")
    assert from_job(node, b"0123")
    assert (work / "c" / "last.ckpt").read_bytes() == b"0123"
    assert (
        work / "c" / "last.ckpt"
    ).stat().st_nlink == 1  # the earlier job's own stays as it is, whatever this one does


def test_another_checkpoint_of_that_name_is_not_taken(node: LocalNode) -> None:
    leave(node, "job-0", {"c/last.ckpt": b"0123"})
    work = leave(node, state="")
    assert not from_job(node, b"0124")
    assert not from_job(node, b"01234")
    assert not from_job(node, b"0123", "job-9")
    assert list((work / "c").iterdir()) == []


# An ordinary user has one account: there is nothing to be tested then. CI runs as root.
@as_root
def test_as_root_all_is_done_with_the_rights_of_the_jobs_account() -> None:
    with node_of_nobody() as node:
        secret = node.directory.parent / "secret.ckpt"
        checkpoint(secret)
        secret.chmod(0o600)
        work = leave(node, "job-0")
        content = checkpoint(work / "own.ckpt", step=3)
        checkpoint(work / "locked.ckpt", step=9)
        (work / "locked.ckpt").chmod(0)
        (work / "link.ckpt").symlink_to(secret)
        os.link(secret, work / "linked.ckpt")
        (leave(node, state="") / "locked").mkdir(mode=0o700)
        for job in ("job-0", "job-1"):
            subprocess.run(["chown", "-R", "--no-dereference", "nobody", node.job_dir(job)], check=True)
        for path in (secret, node.job_dir() / "work" / "locked"):
            os.chown(path, 0, 0)
        reply = node.ask("list_checkpoints", job="job-0")
        assert [path for path, *_rest in reply["found"]] == ["own.ckpt"]
        refused_too = {path: why for path, why in reply["refused"]}
        assert refused_too == {name: "cannot be read: Permission denied" for name in ("linked.ckpt", "locked.ckpt")}
        about = {"path": "c/own.ckpt", "total": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert node.ask("place_file", payload=content, offset=0, **about) == {"placed": True}
        placed = node.job_dir() / "work" / "c" / "own.ckpt"
        assert {placed.owner(), placed.parent.owner()} == {"nobody"}
        assert node.ask("place_file", from_job="job-0", **{**about, "path": "own.ckpt"}) == {"placed": True}
        with pytest.raises(NodeError, match="Permission denied"):
            node.ask("place_file", payload=content, offset=0, **{**about, "path": "locked/own.ckpt"})
