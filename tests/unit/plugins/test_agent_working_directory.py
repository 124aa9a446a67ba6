# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import working_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import BUNDLE_MTIME
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import make_bundle
from left_jobs import leave, nested
from local_nodes import LocalNode, code, refused


def artifacts(node: LocalNode, most: int = 1000) -> list[tuple[str, int, int]]:
    """The whole list, page by page."""
    found: list[tuple[str, int, int]] = []
    more = True
    while more:
        request = node.request("list_artifacts", after=found[-1][0] if found else "", most=most)
        reply, data = node.channel().call(request)
        *fields, rest = data.split(b"\0")
        assert rest == b"" and len(fields) <= 3 * most
        names = map(os.fsdecode, fields[0::3])
        found += zip(names, map(int, fields[1::3]), map(int, fields[2::3]), strict=True)
        more = reply["more"]
    return found


def test_artifacts_are_what_the_job_wrote(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import os, helper\n"
        "os.makedirs('out/deep'); os.mkdir('empty'); os.mkfifo('pipe')\n"
        "for name in ('out/deep/b', 'a', 'unchanged'): open(name, 'a').write(name)\n"
        "os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'out/folder')\n"
        "open(b'latin-\\xe9', 'w').close()\n"
    )
    project = tmp_path / "code"
    code(project, script)
    for name in ("helper.py", "data.csv", "unchanged"):
        (project / name).write_text("")
    node.start(make_bundle(project, "train.py", 1))
    assert node.wait()[0]["exit_code"] == 0
    expected = [(b"a", 1), (b"latin-\xe9", 0), (b"out/deep/b", 10), (b"unchanged", 9)]
    assert [(os.fsencode(name), size) for name, size, _mtime_ns in artifacts(node)] == expected
    written = (node.job_dir() / "work" / "a").stat().st_mtime_ns
    assert artifacts(node)[0] == ("a", 1, written)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
def test_a_list_can_be_had_in_pages(node: LocalNode, most: int) -> None:
    names = [*(f"{n}" for n in range(12)), "a/b/c", "a/b", "a.b", "a b/c", "a-b/x", "z/1/2/3/4", "z/1/2/3", "z/1/2x"]
    files = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    leave(node, files={name: name.encode() for name in files})
    assert [name for name, _size, _mtime in artifacts(node, most)] == sorted(files, key=lambda name: name.split("/"))


def test_what_vanishes_between_two_pages_is_passed_over(node: LocalNode) -> None:
    work = leave(node, files={"a/1": b"", "a/2": b"", "b": b""})
    (work / "a" / "1").unlink()
    _reply, data = node.channel().call(node.request("list_artifacts", after="a/1", most=10))
    assert data.split(b"\0")[0::3] == [b"a/2", b"b", b""]


def test_neither_the_code_nor_what_was_put_there_is_an_artifact(node: LocalNode) -> None:
    work = leave(
        node, files={"code.py": b"", "start.ckpt": b"", "__pycache__/code.pyc": b"", "deep/__pycache__/x": b""}
    )
    os.utime(work / "code.py", (BUNDLE_MTIME, BUNDLE_MTIME))
    os.utime(work / "start.ckpt", (working_directory.PLACED_MTIME, working_directory.PLACED_MTIME))
    assert artifacts(node) == []


@pytest.mark.parametrize(("order", "kind"), [(1, b"\4\0"), (2, b"\0\4")])
def test_core_dumps_stay_where_they_are(node: LocalNode, order: int, kind: bytes) -> None:
    elf = b"\x7fELF\2" + bytes([order]) + bytes(10)
    dumps = {"core": elf + kind, "a/core.123": elf + kind + bytes(100)}
    others = {
        "core.py": b"x",
        "core.1": elf + kind[::-1],
        "core.2": b"\x7fELF",
        "library.so": elf + kind,
        "cores.txt": b"",
    }
    leave(node, files={**dumps, **others})
    assert {name for name, _size, _mtime in artifacts(node)} == set(others)
    reply, _listing = node.channel().call(node.request("list_artifacts", after="", most=1000))
    assert reply == {"more": False, "cores": ["a/core.123", "core"]}


def test_folders_nested_deeper_than_python_recurses(node: LocalNode) -> None:
    with nested(leave(node), 1500):  # 3,000 characters: a path may have 4,096
        ((name, _size, _mtime),) = artifacts(node)
    assert name == "d/" * 1500 + "bottom"


# ---------------------------------------------------------------------------------------------------------------- read


def read(node: LocalNode, *parts: Any) -> tuple[list[int], bytes]:
    reply, data = node.channel().call(node.request("read_files", parts=parts))
    return [length for length, _size, _mtime in reply["parts"]], data


def test_parts_of_files(node: LocalNode) -> None:
    work = leave(node, files={"a": b"0123456789", "b/c": b"abc", "empty": b""})
    assert read(node, ["a", 2, 3], ["b/c", 0, 99], ["empty", 0, 0], ["a", 9, 5]) == ([3, 3, 0, 1], b"234abc9")
    reply, _data = node.channel().call(node.request("read_files", parts=[["a", 0, 1], ["gone", 0, 1]]))
    assert reply["parts"] == [[1, 10, (work / "a").stat().st_mtime_ns], [0, 0, 0]]


def test_links_and_pipes_are_not_read(node: LocalNode) -> None:
    work = leave(node, files={"a/b": b"inside"})
    (work / "link").symlink_to("/etc/passwd")
    (work / "folder").symlink_to("a")
    os.mkfifo(work / "pipe")
    assert read(node, ["link", 0, 99], ["folder/b", 0, 99], ["pipe", 0, 99], ["a", 0, 9], ["a/b", 0, 2]) == (
        [0, 0, 0, 0, 2],
        b"in",
    )


@pytest.mark.parametrize("path", ["../log", "/etc/passwd", "a/../../log", "", ".", "a//b", "a/./b", "a/"])
def test_a_path_that_leaves_the_folder(node: LocalNode, path: str) -> None:
    leave(node, files={"a/b": b""})
    words = refused(node, "read_files", parts=[[path, 0, 1]])
    assert words == f"node0 was asked for {path!r}, which is no path below {node.job_dir()}/work; report this"


def test_missing_folders_are_made_only_if_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), working_directory.folder_of(str(tmp_path), "a/b/c"):
        pass
    with working_directory.folder_of(str(tmp_path), "a/b/c", make=True) as (folder, name):
        assert (os.path.samestat(os.fstat(folder), os.stat(tmp_path / "a" / "b")), name) == (True, "c")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(folder)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("a")
    before = os.listdir("/proc/self/fd")
    for path in ("a/link/x", "a/none/x", "..", "a/x"):
        with pytest.raises((OSError, Refusal)):
            working_directory.open_file(str(tmp_path), path)
    assert os.listdir("/proc/self/fd") == before
