# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import datetime
import io
import os
import pwd
import random
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent import contract
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import cluster_directory, network_disks
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import clean
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import probe
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import new_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport import reply_schemas
from local_nodes import NOBODY, LocalNode, as_root, code, refused
from playing import play

JOB = "20261122-173005-train-0a0a"
NOW = datetime.datetime.now()
BELOW = "set cluster_dir in the inventory to a folder below those of root or of the account that Ansible uses there"


def usable(path: Path | str) -> str | None:
    """Return the words with which a folder is refused as a cluster directory, or None."""
    try:
        cluster_directory.require_usable(str(path))
    except Refusal as refusal:
        return str(refusal)
    return None


def tree(folder: Path) -> list[tuple[str, int]]:
    """What lies in a folder, with its modes."""
    found = [folder, *sorted(folder.rglob("*"))]
    return [(str(path.relative_to(folder)), stat.S_IMODE(path.lstat().st_mode)) for path in found]


def as_of_0_1_0(folder: Path) -> Path:
    """Make what setup.yml of version 0.1.0 left on a node."""
    for name, mode in {"jobs": 0o711, "bundles": 0o700, f"envs/{'1' * 16}": 0o755, "bin": 0o755}.items():
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(mode)
    (folder / "env").symlink_to(f"envs/{'1' * 16}")
    (folder / "node.env").write_text("MASTER_ADDR=198.18.0.10\nMASTER_PORT=29500\n")
    (folder / "requirements.txt").write_text("torch\n")
    return folder


# --------------------------------------------------------------------------------------------------- the forms of names


@pytest.mark.parametrize("script", ["train.py", "a b.py", "-x-.py", "_", f"{'long' * 20}.py", "Größe.py", "7.py"])
def test_every_id_that_is_given_has_the_form_of_one(script: str) -> None:
    name = new_job_id(script, NOW)
    assert contract.is_job_id(name), name


@pytest.mark.parametrize(
    "name",
    [
        *("photos", "lock", "20261122", "20261122-photos", "20261122-173005-0a0a", "20261122-173005-train-0A0A"),
        *("20261122-173005-train-0a0a.start", "20261122-173005-tr ain-0a0a", "2026112-173005-train-0a0a", "job-1", ""),
        *(f"20261122-173005-{'x' * 41}-0a0a", "20261122-173005-train-0a0a\n", "٢٠٢٦١١٢٢-173005-train-0a0a"),
        "20261122-173005--train-0a0a",
    ],
)
def test_what_is_no_id(name: str) -> None:
    assert not contract.is_job_id(name)


@pytest.mark.parametrize(
    ("kind", "ours", "others"),
    [
        (
            cluster_directory.is_job_file,
            [
                "lock",
                "current",
                "current.12",
                *(f"{JOB}.{end}" for end in ("start", "start.part", "because.7", "started", "log")),
            ],
            ["lock.txt", "start", f"{JOB}.txt", JOB, "photos.start", "current.old"],
        ),
        (
            cluster_directory.is_bundle,
            ["a" * 64, "a" * 64 + ".123", "a" * 64 + ".part"],
            ["a" * 63, "A" * 64, "a" * 64 + ".tar"],
        ),
        (
            cluster_directory.is_env,
            ["0123456789abcdef"],
            ["venv", "0123456789abcde", "0123456789abcdeg", "constraints.txt"],
        ),
        (
            cluster_directory.is_trash,
            [f"jobs.{JOB}.12", f"bundles.{'a' * 64}.123.45", f"envs.{'1' * 16}.7", "deep.12.345"],
            [f"jobs.{JOB}", "jobs.photos.12", "photos", "deep.12", "deep.x.1", f"home.{JOB}.1"],
        ),
    ],
    ids=["files beside jobs", "bundles", "environments", "trash"],
)
def test_forms(kind: Callable[[str], bool], ours: list[str], others: list[str]) -> None:
    assert [name for name in [*ours, *others] if kind(name)] == ours


def odd(text: str, chance: random.Random) -> str:
    """Return a text that is the same but for some characters, or not even that."""
    characters = list(text)
    for _time in range(chance.randrange(3)):
        at = chance.randrange(len(characters))
        characters[at : at + chance.randrange(2)] = chance.choice(["", "", *"-_.0aAfgZ\n/é٣ ", "0" * 40])
    return "".join(characters)


def test_ids_and_digests_by_a_pattern() -> None:
    """The agent does without the module re, and what the controller takes for a digest is what the agent removes."""
    job_id = re.compile(r"[0-9]{8}-[0-9]{6}-[A-Za-z0-9_][A-Za-z0-9_-]{0,39}-[0-9a-f]{4}")
    chance = random.Random(7)
    ids = [
        odd(chance.choice([JOB, f"20261122-173005-{'x' * 40}-0a0a", "20261122-173005-a-b-c-0a0a"]), chance)
        for _ in range(9999)
    ]
    assert [name for name in ids if contract.is_job_id(name)] == [name for name in ids if job_id.fullmatch(name)]
    assert len({name for name in ids if contract.is_job_id(name)}) > 99
    digests = [odd("0123456789abcdef" * 4, chance) for _ in range(9999)]
    bare = [name for name in digests if "." not in name]  # a part of one has a point
    is_digest = reply_schemas.matches(reply_schemas._SHA256)
    assert [name for name in bare if cluster_directory.is_bundle(name)] == [name for name in bare if is_digest(name)]


def test_what_is_made_has_these_forms(tmp_path: Path) -> None:
    code(tmp_path / "code", "print(1)")
    assert cluster_directory.is_bundle(make_bundle(tmp_path / "code", "train.py", 1).sha256)
    for digest in "abc":
        told = probe(str(tmp_path), sys.executable, "cpu", digest, digest, [])
        for part, expected in (("target", "envs"), ("tools", "tools")):
            kind, name = told[part].split("/")
            assert cluster_directory.FOLDERS[kind](name) and kind == expected


# ------------------------------------------------------------------------------------------------------- whose it is


def test_what_setup_makes_and_keeps(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    old = os.umask(0o077)
    try:
        assert cluster_directory.make(str(place), ["jobs", "bundles"], dry=True) == [
            *(f"{place}", f"{place}/.thunderhead", f"{place}/jobs", f"{place}/bundles")
        ]
        assert not place.parent.exists()
        made = cluster_directory.make(str(place), ["jobs", "bundles"], dry=False)
    finally:
        os.umask(old)
    assert [Path(one).relative_to(place).name for one in made] == ["", ".thunderhead", "jobs", "bundles"]
    modes = [(".", 0o755), (".thunderhead", 0o644), ("bundles", 0o700), ("jobs", 0o711)]
    assert tree(place) == modes and place.parent.stat().st_mode & 0o777 == 0o755
    assert cluster_directory.make(str(place), ["jobs", "bundles"], dry=False) == []
    (place / "jobs").chmod(0o700)
    (place / "photos").mkdir()
    assert cluster_directory.make(str(place), ["jobs", "bundles"], dry=False) == []
    assert (place / "jobs").stat().st_mode & 0o777 == 0o700


def test_an_empty_folder_keeps_its_mode(tmp_path: Path) -> None:
    place = tmp_path / "private"
    place.mkdir(mode=0o700)
    (place / "lost+found").mkdir()  # a new disk
    cluster_directory.make(str(place), [], dry=False)
    assert tree(place)[:2] == [(".", 0o700), (".thunderhead", 0o644)]


@pytest.mark.parametrize("names", [["photos"], ["jobs", "envs", "bundles", "trash", "env"], ["a", "b", "c", "d", "e"]])
def test_a_folder_with_other_things_in_it(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    before = tree(tmp_path)
    named = {1: "photos", 5: f"{', '.join(sorted(names)[:3])} and 2 more"}[len(names)]
    words = (
        f"has the cluster_dir {tmp_path}, which was not made by setup.yml: it holds {named}; set cluster_dir in the "
        "inventory to a folder that is new or empty, or move these away"
    )
    for act in (
        lambda: cluster_directory.make(str(tmp_path), ["jobs"], False),
        lambda: clean.remove_own_parts(str(tmp_path), names, False),
    ):
        with pytest.raises(Refusal) as caught:
            act()
        assert str(caught.value) == words
    assert tree(tmp_path) == before


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_something_else_in_the_place_of_a_folder(tmp_path: Path, make: Callable[[Path], None], dry: bool) -> None:
    place = tmp_path / "place"
    cluster_directory.make(str(place), [], dry=False)
    make(place / "jobs")
    with pytest.raises(Refusal) as caught:
        cluster_directory.make(str(place), ["bundles", "jobs"], dry)
    assert str(caught.value) == f"has something in {place} as jobs, which is to be a folder; move it away"


@pytest.mark.parametrize("marker", ["link", "other text", "folder"])
def test_what_is_no_marker(tmp_path: Path, marker: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "elsewhere").write_bytes(cluster_directory.MARKER_TEXT)
    if marker == "link":
        (place / ".thunderhead").symlink_to(tmp_path / "elsewhere")
    elif marker == "folder":
        (place / ".thunderhead").mkdir()
    else:
        (place / ".thunderhead").write_text("clouds\n")
    assert "which was not made by setup.yml: it holds .thunderhead;" in (usable(place) or "")


def test_what_version_0_1_0_has_made_is_ours(tmp_path: Path) -> None:
    place = as_of_0_1_0(tmp_path / "node")
    assert usable(place) is None
    assert cluster_directory.make(str(place), ["jobs", "bundles"], dry=False) == [f"{place}/.thunderhead"]
    (place / ".thunderhead").unlink()
    clean.remove_own_parts(str(place), ["env", "envs", "requirements.txt", "bin", "node.env", "bundles"], dry=False)
    (place / "jobs" / JOB).mkdir()
    assert os.listdir(place) == ["jobs"] and usable(place) is None  # as teardown.yml left it
    (place / "jobs" / "photos").mkdir()
    assert "it holds jobs;" in (usable(place) or "")


@pytest.mark.parametrize("lacks", ["jobs", "bundles", "env", "node.env"])
def test_what_only_looks_like_it(tmp_path: Path, lacks: str) -> None:
    place = as_of_0_1_0(tmp_path / "node")
    if lacks in ("jobs", "bundles"):
        (place / lacks).chmod(0o755)
    else:
        (place / lacks).unlink()
    assert "which was not made by setup.yml: it holds bin, " in (usable(place) or "")


@pytest.mark.parametrize("path", ["/proc/x", "/sys/fs/x"])
def test_folders_that_the_kernel_makes_up(path: str) -> None:
    assert "which is no folder on a disk" in (usable(Path(path)) or "")


@pytest.mark.parametrize("path", ["/", "/opt", "/usr/local", "/var/lib", "/tmp", "/etc", "/root", "/bin", "/home"])
def test_folders_of_the_system(path: str) -> None:
    real = os.path.realpath(path)
    words = usable(path) or ""
    system = f"which belongs to the system; set it in the inventory to a folder below, such as {real.rstrip('/')}/"
    assert system in words or f"others than root may write in {path}" in words


def test_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "me"
    home.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(home)
    entry = pwd.struct_passwd(("me", "x", 1000, 1000, "", f"{home}/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [entry])
    for path in (home, tmp_path / "link"):
        assert usable(path) == (
            f"has the cluster_dir {path}, which is the home of me; set it in the inventory to a folder below, such as "
            f"{path}/thunderhead"
        )
    assert usable(home / "thunderhead") is None
    assert home.stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------------------------------- the way


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which everybody may write, in reach of every account."""
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-") as name:
        os.chmod(name, 0o755)
        place = Path(name) / "open"
        place.mkdir()
        place.chmod(0o777)
        yield place


def test_a_folder_that_everybody_may_change(open_folder: Path) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    for path in (open_folder, open_folder / "node"):
        assert usable(path) == (
            f"has the cluster_dir {path}, but others than {me} may write in {open_folder}; {BELOW}, or chmod go-w it"
        )
    open_folder.chmod(0o1777)  # as /tmp is
    assert usable(open_folder / "node") is None
    assert usable(open_folder)


@as_root
def test_a_folder_that_somebody_else_made_first(open_folder: Path) -> None:
    open_folder.chmod(0o1777)
    trap = open_folder / "trap"
    trap.mkdir()
    os.chown(trap, NOBODY, -1)
    words = f"but {trap} belongs to nobody, who could put anything in its place; {BELOW}"
    for path in (trap, trap / "node"):
        assert usable(path) == f"has the cluster_dir {path}, {words}"
    trap.rmdir()
    trap.symlink_to("/opt/thunderhead-test")  # where else it leads does not count
    os.chown(trap, NOBODY, -1, follow_symlinks=False)
    assert words in (usable(trap / "node") or "")


@as_root
def test_a_group_of_others(open_folder: Path) -> None:
    open_folder.chmod(0o775)
    os.chown(open_folder, 0, 1)
    assert f"others than root may write in {open_folder}" in (usable(open_folder / "node") or "")
    os.chown(open_folder, 0, 0)
    assert usable(open_folder / "node") is None


@as_root
def test_the_account_that_became_root(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder.chmod(0o755)
    os.chown(open_folder, NOBODY, -1)
    assert usable(open_folder / "node")
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert usable(open_folder / "node") is None


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert "leads in a circle" in (usable(tmp_path / "link" / "node") or "")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"but {tmp_path}/file is no folder" in (usable(tmp_path / "file" / "node") or "")


@as_root
def test_a_folder_that_jobs_cannot_get_to(open_folder: Path) -> None:
    open_folder.chmod(0o700)
    with pytest.raises(Refusal) as caught:
        cluster_directory.require_open_to(f"{open_folder}/node", "nobody")
    assert str(caught.value) == (
        f"has the cluster_dir {open_folder}/node, but {open_folder} is closed to nobody, the account that jobs run as "
        "there; chmod o+x it, or set cluster_dir in the inventory to another folder"
    )
    os.chown(open_folder, NOBODY, -1)
    cluster_directory.require_open_to(f"{open_folder}/node", "nobody")


# ----------------------------------------------------------------------------------------------- disks that nodes share

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:50 / /shared rw,relatime shared:7 - nfs4 nas:/export rw,vers=4.2
3 1 0:51 /homes/a /mine rw - nfs4 nas:/export rw
4 2 8:17 / /shared/disk rw - xfs /dev/sdb1 rw
5 1 0:52 / /with\\040space rw - fuse.sshfs me@nas:/x rw
6 1 0:53 / /sharedother rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/shared/a/b", "nfs4 nas:/export/a/b"),
        ("/mine/a", "nfs4 nas:/export/homes/a/a"),
        ("/with space/a", "fuse.sshfs me@nas:/x/a"),
        ("/shared/disk/a", "BOOT 7:8 a"),
        ("/sharedother/a", "BOOT 7:8 a"),
        ("/a/b", "BOOT 7:8 a/b"),
    ],
)
def test_one_folder_of_several_machines(monkeypatch: pytest.MonkeyPatch, path: str, found: str) -> None:
    files = {"/proc/self/mountinfo": MOUNTS, "/proc/sys/kernel/random/boot_id": "BOOT\n"}
    monkeypatch.setattr(network_disks, "open", lambda name, **_more: io.StringIO(files[name]), raising=False)
    monkeypatch.setattr(os, "stat", lambda _path: SimpleNamespace(st_dev=7, st_ino=8))
    monkeypatch.setattr(os.path, "isdir", lambda name: name in {place for place, *_about in network_disks.mounts()})
    assert network_disks.identity(path) == found


# ------------------------------------------------------------------------------------------------------- what goes


EVERYTHING = [
    *("env", "envs", "requirements.txt", "bin", "tools", "cache", "wheels"),
    *("node.env", "bundles", "trash", "jobs"),
]


def test_everything_of_ours_goes(tmp_path: Path) -> None:
    place = as_of_0_1_0(tmp_path / "node")
    cluster_directory.make(str(place), [], dry=False)
    folders = ("cache/uv/wheels", f"tools/{'2' * 16}/bin", f"wheels/{'3' * 16}")
    for name in (f"jobs/{JOB}/work", f"envs/{'1' * 16}/bin", f"trash/jobs.{JOB}.7/work", *folders):
        (place / name).mkdir(parents=True)
    (place / "tools" / "env").symlink_to("2" * 16)
    for name in (
        "jobs/lock",
        "jobs/current",
        f"jobs/{JOB}.started",
        f"bundles/{'a' * 64}",
        "bin/uv",
        "cache/lock",
        "envs/constraints.txt",
        f"wheels/{'3' * 16}/mine-1.0-py3-none-any.whl",
    ):
        (place / name).write_text("x")
    before = tree(place)
    gone, left = clean.remove_own_parts(str(place), EVERYTHING, dry=True)
    assert (gone[-1], left) == (".", []) and tree(place) == before
    assert clean.remove_own_parts(str(place), EVERYTHING, dry=False) == (gone, [])
    assert not place.exists()
    assert clean.remove_own_parts(str(place), EVERYTHING, dry=False) == ([], [])


def test_what_is_not_ours_stays_and_is_named(tmp_path: Path) -> None:
    place = as_of_0_1_0(tmp_path / "node")
    cluster_directory.make(str(place), [], dry=False)
    (place / "env").unlink()
    (place / "requirements.txt").unlink()
    (place / "requirements.txt").symlink_to(tmp_path)
    others = ["tools/env", "cache/pip", "wheels/old"]
    others += ["env", "bin/tool", "envs/venv", "jobs/photos", "bundles/0", "trash/old", f"jobs/{'1' * 8}", "notes"]
    for name in others:
        (place / name).mkdir(parents=True)
        (place / name / "thesis").write_text("x")
    (place / "jobs" / JOB).symlink_to(tmp_path)
    expected = {*others, "requirements.txt", f"jobs/{JOB}"}
    gone, left = clean.remove_own_parts(str(place), EVERYTHING, dry=False)
    assert set(left) == expected
    assert set(gone) == {f"envs/{'1' * 16}", "node.env"}
    assert all((place / name / "thesis").read_text() == "x" for name in others)
    assert (place / ".thunderhead").exists()


@as_root
def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    place = as_of_0_1_0(tmp_path / "node")
    cluster_directory.make(str(place), [], dry=False)
    (place / "jobs" / JOB).mkdir()
    os.chown(place / "jobs", NOBODY, -1)
    assert clean.remove_own_parts(str(place), ["jobs"], dry=False) == ([], ["jobs"])
    reply, _payload = clean.clean({"directory": str(place), "keep": 0, "dry": False, "seconds": 60, "owner": None}, b"")
    assert reply["jobs"] == []
    assert reply["left"] == [(f"jobs/{JOB}", "others than root and this account may write in jobs")]
    assert (place / "jobs" / JOB).exists()


def test_what_a_clean_leaves_alone(node: LocalNode) -> None:
    others = ["jobs/photos", "jobs/2026-photos", "envs/venv", "bundles/folder", "trash/old"]
    for name in others:
        (node.directory / name).mkdir(parents=True)
    (node.directory / "bundles" / "a.tar").write_text("x")
    before = tree(node.directory)
    reply = node.ask("clean", keep=0, dry=False, seconds=60, owner=None)
    assert [reply[name] for name in ("jobs", "bundles", "envs", "left")] == [[], [], [], []]
    assert tree(node.directory) == before


# ---------------------------------------------------------------------------------------------- operations, playbooks


@pytest.mark.parametrize("op", ["prepare", "clean"])
def test_without_the_marker_nothing_is_done(node: LocalNode, tmp_path: Path, op: str) -> None:
    (node.directory / ".thunderhead").unlink()
    before = tree(node.directory)
    assert refused(node, op, code(tmp_path / "code", ""), keep=0, seconds=60) == (
        f"node0 has a cluster_dir {node.directory} that was not made by setup.yml: there is no .thunderhead in it; "
        "run: ansible-playbook setup.yml, or correct cluster_dir in the inventory"
    )
    assert tree(node.directory) == before


@pytest.mark.parametrize("op", ["setup_facts", "prepare", "clean"])
def test_where_others_could_put_something_in_its_place_nothing_is_done(
    open_folder: Path, tmp_path: Path, op: str
) -> None:
    node = LocalNode(open_folder / "node").set_up()
    before = tree(node.directory)
    message = refused(node, op, code(tmp_path / "code", ""), keep=0, seconds=60)
    assert f"may write in {open_folder}; {BELOW}" in message
    assert tree(node.directory) == before


@pytest.mark.parametrize(
    ("playbook", "arguments"),
    [
        *(("setup.yml", []), ("setup.yml", ["--check"]), ("clean.yml", ["-e", "keep=0"])),
        *(("teardown.yml", []), ("teardown.yml", ["-e", "remove_jobs=true"])),
    ],
)
def test_a_playbook_leaves_a_foreign_folder_alone(tmp_path: Path, playbook: str, arguments: list[str]) -> None:
    mine = tmp_path / "mine"
    for name in ("jobs", "envs", "bundles", "trash", "env"):
        (mine / name).mkdir(parents=True)
        (mine / name / "thesis").write_text("x")
    mine.chmod(0o700)
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_address": "127.0.0.1",
        "cluster_dir": str(mine),
        "job_user": "",
        "firewall_provider": "none",
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": {"node0": variables}}}))
    before = tree(mine)
    result: subprocess.CompletedProcess[str] = play(tmp_path, playbook, *arguments)
    assert result.returncode != 0
    assert "not made by setup.yml" in result.stdout, result.stdout + result.stderr
    assert tree(mine) == before
