# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv with the settings of the inventory and of the machine, and what its words mean."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomllib
from ansible_collections.thunderhead.cluster.plugins.action.python_env import indexes, links
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env import node, uv
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.installation import (
    Environment,
    alone,
    bound_cache,
    recorded,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure, Machine, Uv, because
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport import reply_schemas

SETTINGS: dict[str, Any] = {"index_url": "", "extra_index_urls": [], "find_links": [], "proxy": "", "uv_settings": {}}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_", "SSL_")) or name.lower() in uv.PROXY_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a machine."""
    (tmp_path / "etc" / "uv").mkdir(parents=True)
    return tmp_path


def made(root: Path, **settings: Any) -> Uv:
    machine = Machine(str(root), str(root / "home"))
    return Uv("/bin/true", {**SETTINGS, **settings}, str(root), machine=machine)


def variables(root: Path, **settings: Any) -> dict[str, str]:
    names = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "https_proxy", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE")
    environment = made(root, **settings).environment
    return {name: environment[name] for name in names if name in environment}


def test_a_uv_whose_parent_has_died_keeps_the_lock(root: Path) -> None:
    (root / "cache").mkdir()
    child = root / "uv"
    child.write_text(f"#!/bin/sh\nsleep 600 > {root}/child 2>&1 &\necho $! > {root}/pid\n")
    child.chmod(0o755)
    one, other = (Uv(str(child), SETTINGS, str(root), machine=Machine(str(root))) for _number in range(2))
    with alone(str(root), one):
        one.run()
    with (
        pytest.raises(Failure, match=f"another setup.yml installs in {root} at this moment; wait"),
        alone(str(root), other),
    ):
        pass
    os.kill(int((root / "pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        try:
            with alone(str(root), other):
                return
        except Failure:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOSYS, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_disk_without_locks(root: Path, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool) -> None:
    """Setup ended there: a file could not be changed: Function not implemented."""

    def flock(_file: int, _kind: int) -> None:
        raise OSError(number, os.strerror(number))

    (root / "cache").mkdir()
    monkeypatch.setattr(fcntl, "flock", flock)
    entered = False
    with (
        contextlib.nullcontext() if goes_on else pytest.raises(OSError, match="Input/output"),
        alone(str(root), made(root)),
    ):
        entered = True
    assert entered is goes_on


# --------------------------------------------------------------------------------------------- settings of the machine


def test_a_machine_without_settings(root: Path) -> None:
    assert variables(root) == {}
    assert made(root).environment["UV_SYSTEM_CERTS"] == "true"
    assert made(root).indexes("") == [uv.PYPI]


def test_the_proxy_that_sudo_has_lost(root: Path) -> None:
    (root / "etc/environment").write_text(
        "PATH=/bin\nexport https_proxy='http://proxy:3128'\nNO_PROXY=localhost # ours\n"
    )
    found = variables(root)
    assert (found["https_proxy"], found["HTTPS_PROXY"], found["no_proxy"]) == (*["http://proxy:3128"] * 2, "localhost")
    assert variables(root, proxy="http://other:1")["https_proxy"] == "http://other:1"


@pytest.mark.parametrize("host", ["mirror.example.org", "user:secret@mirror.example.org:8080"])
def test_an_index_that_is_reached_without_the_proxy(root: Path, host: str) -> None:
    (root / "etc/environment").write_text("https_proxy=http://proxy:3128\nno_proxy=mirror.example.org\n")
    assert made(root).proxy_for(f"https://{host}/simple") == ""
    assert made(root).proxy_for("https://pypi.org/simple") == "http://proxy:3128"


def test_the_environment_counts_more_than_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "etc/environment").write_text("https_proxy=http://proxy:3128\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://mine:1")
    assert "https_proxy" not in variables(root)


PIP_CONF = """[global]
index-url = https://mirror.example.org/simple
find_links = /srv/wheels
cert = /etc/company.pem
proxy = proxy:3128
extra-index-url = https://more.example.org/simple
[install]
trusted-host = mirror.example.org
"""


@pytest.mark.parametrize("place", ["etc/pip.conf", "home/.config/pip/pip.conf", "home/.pip/pip.conf"])
def test_pip_conf(root: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(PIP_CONF)
    assert variables(root) == {
        "UV_DEFAULT_INDEX": "https://mirror.example.org/simple",
        "UV_FIND_LINKS": "/srv/wheels",
        "https_proxy": "proxy:3128",
        "HTTPS_PROXY": "proxy:3128",
        "SSL_CERT_FILE": "/etc/company.pem",
    }
    assert made(root).machine.not_taken() == [
        f"{root}/{place} sets extra-index-url, which is not taken over; if packages depend on it, set "
        "python_env_extra_index_urls",
        f"{root}/{place} sets trusted-host, which is not taken over; if packages depend on it, set "
        "python_env_uv_settings: {allow-insecure-host: [...]}",
    ]


def test_where_hashes_say_what_is_meant_more_indexes_do_no_harm(root: Path) -> None:
    (root / "etc/pip.conf").write_text(PIP_CONF)
    settings = {**SETTINGS, "extra_index_urls": ["https://first.example.org/simple"]}
    locked = Uv("/bin/true", settings, str(root), machine=Machine(str(root), str(root)), is_locked=True)
    assert locked.environment["UV_INDEX"] == "https://first.example.org/simple https://more.example.org/simple"


def test_a_certificate_of_the_inventory(root: Path) -> None:
    """It is no setting of a uv.toml."""
    (root / "etc/pip.conf").write_text(PIP_CONF)
    one = made(root, uv_settings={"cert": "/etc/mine.pem"})
    one.run()
    assert one.environment["SSL_CERT_FILE"] == "/etc/mine.pem"
    assert not (root / "settings").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"index_url": "https://mine.example.org/simple"}, "https://mine.example.org/simple"),
        ({"uv_settings": {"index": [{"url": "https://x/", "default": True}]}}, None),
        ({"uv_settings": {"index": [{"url": "https://x/"}]}}, "https://mirror.example.org/simple"),
        ({"fallback_index_url": "https://controller.example.org/simple"}, "https://mirror.example.org/simple"),
    ],
)
def test_the_inventory_counts_more_than_pip_conf(root: Path, settings: dict[str, Any], expected: str | None) -> None:
    (root / "etc/pip.conf").write_text(PIP_CONF)
    assert variables(root, **settings).get("UV_DEFAULT_INDEX") == expected


def test_a_node_without_an_index_takes_that_of_the_resolution(root: Path) -> None:
    settings = {"fallback_index_url": "https://controller.example.org/simple"}
    assert variables(root, **settings)["UV_DEFAULT_INDEX"] == "https://controller.example.org/simple"
    (root / "etc/uv/uv.toml").write_text('[[index]]\nurl = "https://own.example.org/simple"\ndefault = true\n')
    assert "UV_DEFAULT_INDEX" not in variables(root, **settings)
    assert made(root, **settings).indexes("") == []  # not known here, so not tried
    (root / "etc/uv/uv.toml").write_text('[[index]]\nurl = "https://more.example.org/simple"\n# default = true\n')
    assert variables(root, **settings)["UV_DEFAULT_INDEX"] == "https://controller.example.org/simple"


def test_settings_become_a_uv_toml(root: Path) -> None:
    settings = {
        "index-strategy": "unsafe-best-match",
        "offline": False,
        "concurrent-downloads": 4,
        "index": [{"name": 'ö "x" \\ \t', "url": "https://example.org"}],
        "extra-build-dependencies": {"flash-attn": ["torch"]},
    }
    assert tomllib.loads(uv.uv_toml(settings)) == settings
    nothing = {"proxy": None, "index": [None, {"name": "a", "default": None}]}
    assert tomllib.loads(uv.uv_toml(nothing)) == {"index": [{"name": "a"}]}
    script = root / "uv"
    script.write_text('#!/bin/sh\ncat "$UV_PROJECT/uv.toml"; stat -c %a "$UV_PROJECT/uv.toml"\n')
    script.chmod(0o755)
    one = made(root, uv_settings=settings)
    one.binary, one.extra_build = str(script), {"other": ["torch==2.1"]}
    text, mode, _end = one.run()[0].rpartition("600\n")
    assert mode
    assert tomllib.loads(text)["extra-build-dependencies"] == {"flash-attn": ["torch"], "other": ["torch==2.1"]}
    assert not (root / "settings" / "pyproject.toml").read_text()


def test_the_environments_own_choice_of_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv would take that file alone, or none."""
    (root / "uv").write_text('#!/bin/sh\necho "$UV_CONFIG_FILE"\n')
    (root / "uv").chmod(0o755)
    settings = {"uv_settings": {"offline": True}}
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    one = made(root, **settings)
    one.binary = str(root / "uv")
    assert one.run()[0] == f"{root}/settings/uv.toml\n"
    monkeypatch.setenv("UV_CONFIG_FILE", "/srv/uv.toml")
    with pytest.raises(Failure, match=r"UV_CONFIG_FILE is set there, and uv takes that file alone.*; move the file to"):
        made(root, **settings).run()
    made(root).run()


@pytest.mark.parametrize(
    ("used", "written", "given", "expected"),
    [
        ([], [], {}, ("", [], "")),
        (["https://mirror/simple"], [], {}, ("", [], "https://mirror/simple")),
        (["https://mirror/simple"], ["https://${NAME}@mirror/simple"], {}, ("https://me@mirror/simple", [], "")),
        (["", "https://more/s"], [], {"extra_index_urls": ["https://a:b@more/s"]}, ("", ["https://a:b@more/s"], "")),
        (["", "https://more/s"], ["https://${NAME}@more/s"], {}, ("", ["https://me@more/s"], "")),
        (["https://x/s"], [], {"index_url": "https://a:b@x/s"}, ("https://a:b@x/s", [], "")),
    ],
)
def test_the_indexes_of_a_node(
    used: list[str],
    written: list[str],
    given: dict[str, Any],
    expected: tuple[str, list[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAME", "me")
    found = indexes(used, written, {"index_url": "", "extra_index_urls": [], **given})
    assert (found["index_url"], found["extra_index_urls"], found["fallback_index_url"]) == expected


def test_the_pages_of_links_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "me")
    written = ["https://${NAME}@wheels/x", "https://wheels/unused"]
    assert links(["https://wheels/x", "https://own/${NAME}"], written) == ["https://me@wheels/x", "https://own/${NAME}"]


# ------------------------------------------------------------------------------------------------- what keeps uv away


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes no connection and refuses none, as behind a firewall."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):  # more than wait in line
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        yield listener.getsockname()[1]
        for one in waiting:
            one.close()


def unreachable(root: Path, url: str, **settings: Any) -> str:
    with pytest.raises(Failure) as caught:
        made(root, **settings).require_reachable([url])
    return caught.value.why


def test_a_network_that_swallows_everything(root: Path, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert uv.REACH_SECONDS < 15
    monkeypatch.setattr(uv, "REACH_SECONDS", 1)
    began = time.monotonic()
    said = unreachable(root, f"http://127.0.0.1:{silent}/simple")
    assert said == (
        f"it does not reach the index http://127.0.0.1:{silent}/simple: 127.0.0.1 port {silent} gives no answer "
        "within 1 s; set python_env_index_url in the inventory to an index that it reaches, or python_env_proxy to the "
        "proxy"
    )
    assert time.monotonic() - began >= 1


def test_an_index_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "http://…@127.0.0.1:1/s: 127.0.0.1 port 1: Connection refused" in unreachable(
        root, "http://a:b@127.0.0.1:1/s"
    )
    assert "the name no-such.invalid does not resolve (" in unreachable(root, "https://no-such.invalid/simple")
    monkeypatch.setattr(uv, "TORCH_INDEX", "http://127.0.0.1:1/whl")
    assert "set python_env_torch_backend: none to take torch from" in unreachable(root, uv.TORCH_INDEX)
    through = unreachable(root, "https://pypi.org/simple", proxy="http://127.0.0.1:1")
    assert through.endswith("Connection refused; correct python_env_proxy, or the machine's own setting")


def test_no_index_is_tried_where_none_is_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:1/simple"
    assert "Connection refused" in unreachable(root, url, uv_settings={"offline": False})
    given: list[dict[str, Any]] = [{"index_url": "none"}, {"uv_settings": {"offline": True}}]
    for one in given:
        made(root, **one).require_reachable([url])
        assert made(root, extra_index_urls=[url], **one).indexes("cpu") == []
    monkeypatch.setenv("UV_OFFLINE", "1")
    made(root).require_reachable([url])
    assert made(root).indexes("cpu") == []


def test_an_index_that_is_there(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        made(root).require_reachable([f"{place}/simple"])
        made(root, proxy=place).require_reachable(["https://no-such.invalid/simple"])


def test_an_index_of_whose_addresses_one_is_dead(root: Path, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPv6 is in many networks: the other is tried meanwhile, however long the first gives no answer."""
    real = socket.getaddrinfo

    def resolved(host: str, *more: Any, **named: Any) -> list[Any]:
        if host != "both.example.org":
            return real(host, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with socket.create_server(("127.0.0.2", 0)) as server:
        places = [("127.0.0.1", silent), server.getsockname()]
        made(root).require_reachable(["http://both.example.org/simple"])
    places = [("127.0.0.1", 1), ("127.0.0.2", 1)]
    assert "both.example.org port 80: Connection refused" in unreachable(root, "http://both.example.org/simple")


GIT = "error: Git operation failed\n  cause: process didn't exit successfully\n  --- stderr\n  "
FETCHING = "error: Failed to fetch: `https://user:pass@example.org/simple/x/`\n  cause: "


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            FETCHING + "HTTP status client error (401 Unauthorized) for url (x)",
            "the index wants other credentials (HTTP",
        ),
        (
            FETCHING + "HTTP status client error (403 Forbidden) for url (x)",
            "the index refuses this (HTTP status client",
        ),
        (
            FETCHING + "invalid peer certificate: UnknownIssuer",
            "it does not trust the index's certificate (invalid peer",
        ),
        (FETCHING + "failed to lookup address information: Name", "a name does not resolve (failed to lookup address"),
        (
            FETCHING + "tcp connect error\n  cause: Connection refused (os error 111)",
            "it does not reach the index (tcp",
        ),
        (
            "error: Failed to install: x\n  cause: No space left on device (os error 28)",
            "the disk is full (No space left on device",
        ),
        ("fatal: unable to access 'https://x/': SSL certificate problem", "it does not trust the index's certificate"),
        (
            GIT + "Host key verification failed.\nfatal: Could not read from remote repository.",
            "ssh does not know the key of a repository's host (Host key verification failed.); add it to",
        ),
        (
            GIT + "No ED25519 host key is known for example.org and you have requested strict checking.\n"
            "Host key verification failed.",
            "ssh does not know the key of a repository's host (No ED25519 host key is known for example.org and",
        ),
        (
            "error: Git executable not found. Ensure that Git is installed",
            "a requirement comes from git, and there is no",
        ),
        (
            "  error: command 'gcc' failed: No such file or directory",
            "a package has no wheel for this Python and platform",
        ),
        *(
            (
                f"error: Failed to build `old==1`\n  x.c:1:10: fatal error: zlib.h: No such file\n  error: {said}",
                f"the compiler fails in the build of old (error: {said}); see below what it says, and install the",
            )
            for said in ("command '/usr/bin/cc' failed with exit code 1", "command 'g++' failed with exit status 1")
        ),
        ("x.c:1:10: fatal error: Python.h: No such file or directory", "a package has no wheel for this Python and"),
        ("  Hash mismatch for `x==1.0`", "a package is not the one whose hash the lock has: it was changed"),
        (
            "ModuleNotFoundError: No module named 'numpy'",
            "the build of PACKAGE needs another package, and does not declare it (ModuleNotFoundError: No module named "
            "'numpy'); set python_env_uv_settings: {extra-build-dependencies: {PACKAGE: [numpy]}} (in place of "
            "numpy, the package that has the module numpy), and where the requirements have only a URL, write PACKAGE "
            "@ URL; of a project",
        ),
        (
            "error: Failed to build `old @ git+file:x`\n  ModuleNotFoundError: No module named 'Cython'",
            "the build of old needs another package, and does not declare it (ModuleNotFoundError: No module named "
            "'Cython'); set python_env_uv_settings: {extra-build-dependencies: {old: [Cython]}} (in place of Cython, "
            "the package that has the module Cython); of a project of your",
        ),
        (
            "error: Failed to build `old==1`\n  ModuleNotFoundError: No module named 'pkg_resources'",
            "the build of old needs pkg_resources, which newer versions of setuptools lack (ModuleNotFoundError: No "
            "module named 'pkg_resources'); set python_env_uv_settings: {extra-build-dependencies: {old: "
            "['setuptools<81']}}, or take a newer",
        ),
        *(
            (
                f"error: Failed to build `old==1`\n  ModuleNotFoundError: No module named '{module}'",
                f"the build of old needs the module {module.partition('.')[0]}, which newer Pythons lack "
                f"(ModuleNotFoundError: No module named '{module}'); take a newer version of the package, or an "
                "older Python: python_env_python of the node and, if that is not what builds, python_env_resolve_on",
            )
            for module in ("imp", "distutils", "distutils.core")
        ),
        (
            "error: Failed to build `old==1`\n  ModuleNotFoundError: No module named 'importlib_metadata'",
            "the build of old needs another package, and does not declare it",
        ),
        (
            "error: Failed to build `old==1`\n  ModuleNotFoundError: No module named 'torch'",
            "the build of old needs torch, and does not declare it; set python_env_build_needs_torch: [old]; of a",
        ),
        (
            GIT + "fatal: unable to access 'https://u:pass@example.org/r.git/': Could not resolve host: example.org",
            "git does not reach a repository (fatal: unable to access 'https://…@example.org/r.git/': Could not",
        ),
        (GIT + "ssh: connect to host example.org port 22: Connection refused", "git does not reach a repository (ssh:"),
        (
            GIT + "fatal: could not read Username for 'https://example.org': terminal prompts disabled",
            "git finds no repository that it may read (fatal: could not read Username",
        ),
        (GIT + "git@example.org: Permission denied (publickey).", "git finds no repository that it may read (git@ex"),
        (
            "error: Git operation failed\n  cause: failed to find branch, tag, or commit `v9`",
            "a repository has no such branch, tag or commit (failed to find branch, tag, or commit `v9`); correct what",
        ),
        (
            "error: Failed to build `sklearn==0.0`\n  cause: The build backend returned an error",
            "the build of sklearn fails; see below what it says, and take a version of it that has a wheel, or another",
        ),
        (
            "error: Failed to download and build `old @ git+file:x`\n  cause: Git operation failed",
            "git could not fetch a repository",
        ),
        (GIT + "fatal: early EOF", "git could not fetch a repository; see below what it says, and correct"),
        (
            "error: failed to create\n  cause: Permission denied (os error 13)",
            "a program could not be run, or a file not",
        ),
        (
            "hint: x was found on y; use `--index-strategy unsafe-best-match`",
            "no version fits: of a package that several",
        ),
        ("something else", "otherwise"),
    ],
)
def test_each_cause_has_its_sentence(said: str, expected: str) -> None:
    found = because(said, "otherwise")
    assert found.startswith(expected)
    assert "pass@" not in found


def test_a_build_that_fails_for_what_it_needs() -> None:
    """Of the two packages, the setting has to name the one whose build lacks the module."""
    said = "error: Failed to build `/srv/outer`\n  cause: Failed to download and build `inner==1`\n"
    found = because(said + "ModuleNotFoundError: No module named 'numpy'", "otherwise", "outer")
    assert found.startswith("the build of inner needs another package")
    assert because("ModuleNotFoundError: No module named 'x'", "", "outer").startswith("the build of outer needs")


def test_a_uv_that_cannot_be_run(root: Path) -> None:
    one = made(root)
    one.binary = str(root / "none")
    with pytest.raises(Failure, match=r"/none cannot be run there: No such file or directory"):
        one.run()


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("error: Failed to build `flash-attn==2.5.8`\nModuleNotFoundError: No module named 'torch'", "flash-attn"),
        ("hint: This error likely indicates that `needs@2` depends on `torch`, but doesn't declare it as a", "needs"),
        ("error: Failed to build `other==1`\nModuleNotFoundError: No module named 'numpy'", ""),
        (
            "error: Failed to build `outer @ file:///x`\n  cause: Failed to download and build `inner==1`\n"
            "ModuleNotFoundError: No module named 'torch'",
            "inner",
        ),
    ],
)
def test_who_wants_torch(said: str, name: str) -> None:
    assert uv.wants_torch(said) == name


# ------------------------------------------------------------------------------------------------------------ the node


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (("linux", "x86_64", ["glibc", "2.36"]), "x86_64-manylinux_2_36"),
        (("linux", "aarch64", ["glibc", "2.27"]), "aarch64-manylinux_2_17"),
        (("linux", "x86_64", ["glibc", "2.43"]), "x86_64-manylinux_2_40"),
        (("linux", "x86_64", ["", ""]), "x86_64-unknown-linux-musl"),
        (("darwin", "arm64", ["", ""]), "aarch64-apple-darwin"),
    ],
)
def test_platforms(about: tuple[str, str, list[str]], expected: str) -> None:
    assert node.uv_platform(*about) == expected


def test_a_cluster_directory_whose_programs_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mounted:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(node.os, "statvfs", lambda _place: Mounted)
    with pytest.raises(Refusal, match=r"/no/such on a file system that is mounted noexec.*set cluster_dir"):
        node.require_executable("/no/such")


@pytest.mark.parametrize(("uid", "blocks", "expected"), [(0, 9, 7 * 512), (1000, 9, 2 * 512), (0, 0, sys.maxsize)])
def test_the_room_that_there_is(monkeypatch: pytest.MonkeyPatch, uid: int, blocks: int, expected: int) -> None:
    """Setup was refused by what is kept for root, as whom it installs, and for ever where the disk does not say."""
    disk = SimpleNamespace(f_blocks=blocks, f_bfree=7, f_bavail=2, f_frsize=512)
    monkeypatch.setattr(node.os, "statvfs", lambda _place: disk)
    monkeypatch.setattr(node.os, "geteuid", lambda: uid)
    assert node.free_bytes("/no/such") == expected
    assert reply_schemas.is_size(expected)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/no/such/python", r"has no Python that runs as /no/such/python \(No such file or directory\); install one"),
        ("/bin/false", r"has no Python that runs as /bin/false; install one from 3.10 to 3.13, or name it in"),
        ("/bin/echo", r"has something as /bin/echo that is no Python; name one in python_env_python"),
    ],
)
def test_no_python(tmp_path: Path, python: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        node.probe(str(tmp_path), python, "cpu", "", "", [])


def test_a_python_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(node, "ANSWER_SECONDS", 0.2)
    with pytest.raises(Refusal, match=r"has something as /\S+/python that does not answer within 0.2 s, as a Python"):
        node.probe(str(tmp_path), str(slow), "cpu", "", "", [])


@pytest.mark.parametrize("name", ["env", "tools/env", "bin/uv"])
def test_a_folder_where_setup_makes_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(Refusal, match=f"has a folder as {tmp_path}/{name}, where setup makes a link or a program"):
        node.probe(str(tmp_path), sys.executable, "cpu", "", "", [])


@pytest.mark.parametrize(
    ("said", "version"),
    [("uv 0.13.9", "0.13.9"), ("uv 0.13.9 (4ac1 2026-01-01)", "0.13.9"), ("uv 1/2_X", ""), ("uv \\377", ""), ("", "")],
)
def test_what_is_no_version_of_uv(tmp_path: Path, said: str, version: str) -> None:
    (tmp_path / "uv").write_text(f"#!/bin/sh\nprintf '{said}'\n")
    (tmp_path / "uv").chmod(0o755)
    assert node.uv_version(str(tmp_path / "uv")) == version


def test_a_path_that_leads_nowhere_ends() -> None:
    assert node.free_bytes("no/such/folder") > 0


def test_a_folder_of_wheels_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="has no folder /no/such; make it there, or correct python_env_find_links"):
        node.probe(str(tmp_path), sys.executable, "cpu", "", "", ["https://example.org/", "/no/such"])


def test_what_is_recorded_has_no_hashes() -> None:
    lock = "a==1 \\\n    --hash=sha256:0 \\\n    --hash=sha256:1\n"
    lock += "b @ file://${X}/b-2.0+l-py3-none-any.whl \\\n    --hash=sha256:2\n"
    assert recorded(lock, "r.txt", "f" * 64) == (
        "# requirements ffffffffffffffff, resolved by setup.yml from r.txt\na==1\nb==2.0+l\n"
    )


@pytest.mark.parametrize("most", [0, 1])
def test_a_cache_that_is_larger_than_it_may_be(root: Path, most: int) -> None:
    cache = root / "cache"
    cache.mkdir()
    (cache / "wheel").write_bytes(bytes(600_000))
    (cache / "shared").write_bytes(bytes(2**21))
    os.link(cache / "shared", root / "in-an-environment")  # takes no room here
    script = root / "uv"
    script.write_text(f'#!/bin/sh\necho "$@" > {root}/asked\n')
    script.chmod(0o755)
    one = made(root)
    one.binary = str(script)
    bound_cache(one, str(cache), most)
    assert (root / "asked").exists() is (most == 0)
    assert most or (root / "asked").read_text() == "cache clean --quiet\n"


def test_an_environment_that_jobs_could_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, and the reason is told."""
    for name, text in {
        "uv": f"mkdir -p {root}/envs/0",
        "chmod": "echo Operation not permitted >&2; exit 1",
    }.items():
        (root / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / name).chmod(0o755)
    one = made(root)
    one.binary = str(root / "uv")
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    with pytest.raises(Failure, match="cannot be opened to all accounts; see that the file system there") as caught:
        Environment(str(root), "envs/0", one, "python3", compiles=False).make("", "none", [], "", str(root), "")
    assert caught.value.output == "Operation not permitted"
    assert not (root / "envs" / "0").exists()


def installed(tmp_path: Path, uv_script: str, **given: Any) -> dict[str, Any]:
    """Run the module on a node whose environment is complete; return its result."""
    for name in ("bin", "cache", "tools", "envs/0/bin"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in ("installed.txt", "requirements.txt", "bin/python"):
        (tmp_path / "envs" / "0" / name).touch()
    (tmp_path / "env").symlink_to("envs/0")
    (tmp_path / "bin" / "uv").write_text(f"#!/bin/sh\n{uv_script}\n")
    (tmp_path / "bin" / "uv").chmod(0o755)
    node_ = {"complete": True, "current": True, "target": "envs/0", "executable": sys.executable}
    given |= {
        "directory": str(tmp_path),
        "node": {**node_, "tools": "tools/1", "tools_current": False},
        "digest": "0" * 64,
        "settings": json.dumps({**SETTINGS, "index_url": "http://127.0.0.1:1/simple"}),
    }
    (tmp_path / "arguments").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    module = "ansible_collections.thunderhead.cluster.plugins.modules.python_env_install"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", module, tmp_path / "arguments"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_tools_on_a_dead_network(tmp_path: Path) -> None:
    """Uv itself would try for a minute."""
    said = str(installed(tmp_path, f"touch {tmp_path}/asked", tools="py-spy==0.4.1")["warnings"])
    assert "py-spy could not be installed here, so the stacks of a job that hangs cannot be shown: " in said
    assert "it does not reach the index http://127.0.0.1:1/simple" in said
    assert not (tmp_path / "asked").exists()


def test_a_cache_that_cannot_be_emptied(tmp_path: Path) -> None:
    """The environment is in use by then: it is no failed install."""
    (tmp_path / "cache" / "uv").mkdir(parents=True)
    (tmp_path / "cache" / "uv" / "wheel").write_bytes(bytes(4096))
    result = installed(tmp_path, "echo no such luck >&2; exit 1", cache_max_mb=0)
    said = str(result["warnings"])
    assert (
        f"uv's cache {tmp_path}/cache/uv is larger than python_env_cache_max_mb and could not be emptied; remove that "
        "folder while no setup.yml runs. uv failed."
    ) in said
    assert "no such luck" in said
    assert (result.get("failed", False), result["changed"]) == (False, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:hush@example.org/a@b", "https://example.org/a@b"),
        ("https://user:hu@sh@example.org/", "https://example.org/"),
        ("HTTP://hush@example.org", "HTTP://example.org"),
        ('["https://example.org", "me@example.org"]', '["https://example.org", "me@example.org"]'),
        ("https://example.org me@example.org", "https://example.org me@example.org"),
    ],
)
def test_a_password_with_an_at(text: str, expected: str) -> None:
    assert uv.without_credentials(text) == expected
    assert "hu" not in uv.redacted(text)
