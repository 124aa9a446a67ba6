# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller keeps and fetches for its nodes."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.action.python_env_lock import ActionModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure, uv_toml
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements import fetch_uv, locks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.locks import Plan, Wanted

NODE = {
    "python": "3.11",
    "machine": "x86_64",
    "platform": "x86_64-manylinux_2_28",
    "wheel_platform": "manylinux2014_x86_64",
    "backend": "none",
    "driver": "",
    "uv": "",
    "complete": True,
    "free": 10**9,
    "executable": "/usr/bin/python3",
}


class Controller:
    """With requirements, and a function that says that it has fetched a uv."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.calls: list[str] = []
        self.failing = "no index fails"
        (folder / "requirements.txt").write_text("six\n")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setattr(fetch_uv, "fetch", self.fetch)

    def fetch(self, version: str, wanted: str, place: Path, variables: Mapping[str, str]) -> None:
        index = variables.get("UV_DEFAULT_INDEX")
        self.calls.append(f"{version} {wanted} {index} {variables.get('https_proxy')}")
        if self.failing in str(index):
            raise JobError("uv cannot be fetched")
        (place / "bin").mkdir(parents=True, exist_ok=True)
        (place / "bin" / "uv").write_bytes(bytes(20_000_000))

    def plan(self, hosts: dict[str, dict[str, Any]]) -> Plan:
        common = {"requirements": str(self.folder / "requirements.txt"), "uv_version": "0.0.1"}
        given = {host: {**common, **values} for host, values in hosts.items()}

        def value(host: str, name: str, default: Any) -> Any:
            return given[host].get(name.removeprefix("python_env_"), default)

        return Plan({host: Wanted.of(host, value) for host in hosts})


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    return Controller(tmp_path, monkeypatch)


def test_uv_is_asked_for_once_per_platform(controller: Controller) -> None:
    """Of a hundred nodes each would cost a process of Python."""
    hosts = [f"node{number}" for number in range(5)]
    nodes = {host: NODE for host in hosts}
    nodes["node4"] = {**NODE, "wheel_platform": "manylinux2014_aarch64"}
    result = controller.plan({host: {} for host in hosts}).resolve(nodes, None, False)
    assert controller.calls == [f"0.0.1 manylinux2014_{machine} None None" for machine in ("x86_64", "aarch64")]
    assert len({one["uv"] for one in result["hosts"].values()}) == 2


def test_uv_is_fetched_by_the_inventorys_index_and_proxy(controller: Controller) -> None:
    settings = {"index_url": "https://u:hush-4711@mirror.example.org/simple", "proxy": "http://proxy.example.org:3128"}
    controller.plan({"node0": settings}).resolve({"node0": NODE}, None, False)
    expected = f"0.0.1 manylinux2014_x86_64 {settings['index_url']} {settings['proxy']}"
    assert controller.calls == [expected]
    controller.failing = "mirror"  # has no uv
    controller.plan({"node0": settings}).resolve({"node0": NODE}, None, False)
    assert controller.calls == [expected, expected, "0.0.1 manylinux2014_x86_64 None None"]


@pytest.mark.parametrize(
    ("requires", "is_met"),
    [("<3.11", False), (">=3.12", False), (">=3.9", True), (">=3.11.4,<3.12", True), ("==3.11.*", True), ("no", True)],
)
def test_a_project_that_is_not_for_the_nodes_python(controller: Controller, requires: str, is_met: bool) -> None:
    """uv resolves it nevertheless."""
    project = controller.folder / "pyproject.toml"
    project.write_text(f'[project]\nname = "mine"\nversion = "1"\nrequires-python = "{requires}"\n')
    plan = controller.plan({host: {"requirements": str(project)} for host in ("node0", "node1")})
    nodes = {host: NODE for host in ("node0", "node1")}
    if is_met:
        assert plan.resolve(nodes, None, True)["hosts"]
        return
    with pytest.raises(JobError) as caught:
        plan.resolve(nodes, None, True)
    assert str(caught.value) == (
        f"{project} is for Python {requires} (requires-python), and node0, node1 would use 3.11; set "
        "python_env_python in the inventory to another Python there, or correct that line. Nothing was changed on any "
        "node."
    )


@pytest.mark.parametrize("given", ["no mapping", "[1]", ["a"], 7])
def test_settings_of_uv_that_are_no_mapping(controller: Controller, given: Any) -> None:
    with pytest.raises(
        JobError, match="python_env_uv_settings of node0 is no mapping of settings to values; correct it"
    ):
        controller.plan({"node0": {"uv_settings": given}})


NO_NEEDS = (
    "extra-build-dependencies is no mapping of packages to lists of requirements, which uv expects; correct it, as in: "
    "{package: [setuptools]}"
)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("index", 5, "index is no list, which uv expects; correct it"),
        ("extra-index-url", "https://one.example/simple", "extra-index-url is no list, which uv expects; correct it"),
        ("find-links", {"a": "b"}, "find-links is no list, which uv expects; correct it"),
        ("extra-build-dependencies", ["a"], NO_NEEDS),
        ("extra-build-dependencies", {"mine": "torch"}, NO_NEEDS),
        ("extra-build-dependencies", {"mine": [5]}, NO_NEEDS),
        ("extra-build-dependencies", {"mine": [{"match-runtime": True}]}, NO_NEEDS),
    ],
)
@pytest.mark.parametrize("file", ["uv.toml", "pyproject.toml"])
def test_a_setting_of_uv_of_another_form(controller: Controller, name: str, given: Any, words: str, file: str) -> None:
    with pytest.raises(JobError) as caught:
        controller.plan({"node0": {"uv_settings": {name: given}}})
    assert str(caught.value) == f"python_env_uv_settings of node0: {words}"
    controller.plan({"node0": {"uv_settings": {name: None}}})
    project = controller.folder / "pyproject.toml"
    project.write_text('[project]\nname = "mine"\nversion = "1"\ndependencies = []\n[tool.uv]\n')
    with (controller.folder / file).open("a") as settings:
        settings.write(uv_toml({name: given}))
    with pytest.raises(JobError) as caught:
        controller.plan({"node0": {"requirements": str(project)}})
    assert str(caught.value) == f"{controller.folder / file}, settings of uv: {words}"


def test_a_home_that_cannot_be_written(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    (controller.folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(controller.folder / "file"))
    with pytest.raises(OSError, match="file") as caught:
        controller.plan({"node0": {}}).resolve({"node0": {**NODE, "complete": False}}, None, False)
    said = locks.explained(caught.value)
    assert said.startswith(f"{controller.folder}/file")
    assert " on the controller cannot be used (Not a directory), and locks are kept in " in said
    assert said.endswith("or set XDG_CACHE_HOME to another folder")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            PermissionError(13, "Permission denied", "/srv/lib/x"),
            "/srv/lib/x on the controller cannot be used (Permission",
        ),
        (
            shutil.Error([("/srv/a", "b", "[Errno 13] Permission denied: '/srv/a'")]),
            "a folder that the requirements name",
        ),
        (
            ValueError("odd"),
            "The requirements could not be resolved on the controller (odd); correct what python_env_re",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(error: Exception, expected: str) -> None:
    assert locks.explained(error).startswith(expected)


def test_no_node_is_told_the_passwords_of_others(controller: Controller) -> None:
    asked: list[str] = []

    def there(_workshop: Path, request: Any) -> dict[str, Any]:
        asked.append(str(request["settings"]))
        raise Failure("enough")

    hosts: dict[str, dict[str, Any]] = {host: {"resolve_on": "node1"} for host in ("node0", "node1")}
    hosts["node0"]["index_url"] = "https://u:hush-4711@example.org/simple"
    nodes = {host: {**NODE, "complete": False} for host in hosts}
    with pytest.raises(JobError, match="node1 would resolve for node0 too, whose python_env_ variables"):
        controller.plan(hosts).resolve(nodes, there, False)
    assert asked == []
    for host in hosts:  # what differs is no matter of indexes
        hosts[host] |= {"index_url": "", "torch_backend": {"node0": "cpu", "node1": "none"}[host]}
    with pytest.raises(JobError, match="On node1, enough"):
        controller.plan(hosts).resolve(nodes, there, False)


def test_one_machine_resolves_for_all(controller: Controller) -> None:
    (controller.folder / "here").mkdir()
    given: dict[str, dict[str, Any]] = {
        "node0": {},
        "node1": {"find_links": [str(controller.folder / "here"), "https://example.org/wheels"]},
        "node2": {"find_links": ["/srv/only-there"]},
    }
    assert controller.plan({host: given[host] for host in ("node0", "node1")}).resolver() == "localhost"
    assert controller.plan(given).resolver() == "node2"
    given["node1"]["resolve_on"] = "node2"
    with pytest.raises(JobError) as caught:
        controller.plan(given).read()
    assert str(caught.value) == (
        "python_env_resolve_on is auto and node2 on different hosts, and one machine resolves for all; set one value "
        "for group cluster"
    )


def resolution(lock: str) -> dict[str, Any]:
    name = locks.target_of(NODE)
    found: dict[str, Any] = {
        "locks": {name: lock},
        "backends": {name: "none"},
        "indexes": [],
        "find_links": [],
        "needs_torch": [],
    }
    return {**found, "wheels": [], "warnings": [], "commits": {}}


def test_a_node_gets_no_history_and_sends_no_password(controller: Controller) -> None:
    project = controller.folder / "mine"
    project.mkdir()
    (project / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\n')
    subprocess.run(["git", "init", "-q", project], check=True)
    (controller.folder / "requirements.txt").write_text("-e mine\n")
    sent: list[str] = []

    def there(workshop: Path, request: Any) -> dict[str, Any]:
        assert request["builder"] == {name: NODE[name] for name in ("executable", "python", "machine", "platform")}
        sent.extend(str(path.relative_to(workshop)) for path in workshop.rglob("*"))
        return resolution("far @ https://user:hush-4711@example.org/far-1.0.tar.gz\n")

    plan = controller.plan({"node0": {"resolve_on": "node0"}})
    with pytest.raises(JobError, match=r"requirements\.txt leads to far, with a password or a token in its URL"):
        plan.resolve({"node0": {**NODE, "complete": False}}, there, False)
    assert "sources/0/mine/pyproject.toml" in sent
    assert not [name for name in sent if ".git" in name]
    assert not list(controller.folder.glob("cache/thunderhead/locks/*"))


def test_a_disk_with_no_room_for_what_is_copied(controller: Controller) -> None:
    """Said before anything is, for all nodes at once; later it would be an error of Ansible's own."""
    wheel = controller.folder / "wheels" / "mine-1.0-py3-none-any.whl"

    def there(workshop: Path, _request: Any) -> dict[str, Any]:
        (workshop / "wheels").mkdir()
        (workshop / "wheels" / wheel.name).write_bytes(bytes(5_000_000))
        return {**resolution(""), "wheels": [wheel.name]}

    room = {"node0": 24_900_000, "node1": 25_000_000, "node2": 1000}
    nodes = {host: {**NODE, "complete": False, "free": free} for host, free in room.items()}
    plan = controller.plan({host: {"resolve_on": "node1"} for host in nodes})
    with pytest.raises(JobError) as caught:
        plan.resolve(nodes, there, False)
    sentence = (
        "{} has {} free where its cluster_dir lies, and uv and the wheels that setup copies there take 25.0 MB; make "
        "room there, or set cluster_dir in the inventory to a folder on a larger disk\n"
    )
    assert str(caught.value) == (
        f"{sentence.format('node0', '24.9 MB')}{sentence.format('node2', '1.0 kB')}Nothing was changed on any node."
    )
    nodes = {host: {**node, "uv": "0.0.1", "complete": True} for host, node in nodes.items()}
    plan.resolve(nodes, there, False)  # nothing is copied


def test_what_a_hostile_node_answers_stays_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The action hands on, and writes, only what was checked."""
    (tmp_path / "workshop").mkdir()
    answer = {"resolution": resolution(""), "contents": {"../notes": "aGFsbG8="}}
    answer["resolution"]["wheels"] = ["../notes"]
    for name, value in {
        "_make_tmp_path": lambda _self: "/tmp/x",
        "_transfer_file": lambda *_arguments: None,
        "_fixup_perms2": lambda *_arguments, **_named: None,
        "_remove_tmp_path": lambda *_arguments: None,
        "_execute_module": lambda *_arguments, **_named: answer,
    }.items():
        monkeypatch.setattr(ActionModule, name, value)
    action = object.__new__(ActionModule)
    action._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/tmp/x"))
    with pytest.raises(Failure, match=r"what the node answers is no resolution: in its wheels stands \.\./notes"):
        action._on_node(tmp_path / "workshop", {"targets": {locks.target_of(NODE): NODE}}, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["workshop"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ('mine = { index = "company" }', ["", "https://company.example.org/simple"]),
        ('mine = [{ index = "company", marker = "x" }]', ["", "https://company.example.org/simple"]),
        ('mine = { index = "known" }', []),
        ('unused = { index = "company" }', []),
    ],
)
@pytest.mark.parametrize("where", ["pyproject.toml", "requirements.txt", "workspace"])
def test_an_index_of_only_the_packages_that_name_it(
    controller: Controller, sources: str, expected: list[str], where: str
) -> None:
    """uv does not tell of it, and every node found no such version."""
    indexes = "".join(
        f'[[tool.uv.index]]\nname = "{name}"\nurl = "https://{name}.example.org/simple"\n{more}\n'
        for name, more in (("known", ""), ("company", "explicit = true"), ("unused", "explicit = true"))
    )
    project = controller.folder / "app" / "pyproject.toml"
    project.parent.mkdir()
    if where == "workspace":
        root = controller.folder / "pyproject.toml"
        root.write_text(f'[tool.uv.workspace]\nmembers = ["app"]\n{indexes}')
        indexes = ""
    project.write_text(f'[project]\nname = "app"\nversion = "1"\n[tool.uv.sources]\n{sources}\n{indexes}')
    path = project
    if where == "requirements.txt":
        path = controller.folder / "requirements.txt"
        path.write_text("-e app\n")
    plan = controller.plan({"node0": {"requirements": str(path), "resolve_on": "node0"}})
    result = plan.resolve({"node0": {**NODE, "complete": False}}, lambda *_arguments: resolution("mine==1\n"), False)
    assert result["hosts"]["node0"]["indexes"] == expected
    settings = {"requirements": str(path), "resolve_on": "node0", "uv_settings": {"no-sources": True}}
    plan = controller.plan({"node0": settings})
    result = plan.resolve({"node0": {**NODE, "complete": False}}, lambda *_arguments: resolution("mine==1\n"), False)
    assert result["hosts"]["node0"]["indexes"] == []


def test_a_local_project_has_the_limit_of_the_inventory(controller: Controller) -> None:
    """That of a job's code."""
    (controller.folder / "pyproject.toml").touch()
    (controller.folder / "requirements.txt").write_text("-e .\n")
    (controller.folder / "data.bin").write_bytes(bytes(2**20))
    controller.plan({"node1": {"job_bundle_max_mb": "2"}})
    for given, message in {
        1: r"has 1\.\d MB of files, and a local project that",
        "x": "of node1 is x, no number of",
    }.items():
        with pytest.raises(JobError, match=message):
            controller.plan({"node1": {"job_bundle_max_mb": given}})
