# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A resolution with a program in uv's place, which writes down how it was called."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env import uv
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import resolve
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.locks import Kept

SETTINGS: dict[str, Any] = {"index_url": "", "extra_index_urls": [], "find_links": [], "proxy": "", "uv_settings": {}}
TARGET = {
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
    "platform": "x86_64-manylinux_2_28",
    "machine": "x86_64",
    "backend": "none",
    "driver": "",
}
UV = """#!{python}
import json, os, sys, zipfile
arguments = sys.argv[1:]
with open("{folder}/calls", "a") as file:
    file.write(json.dumps([arguments, dict(os.environ)]) + "\\n")
if arguments[0] == "build":
    folder, given = arguments[arguments.index("--out-dir") + 1], {{}}
    for name in ("needs", "pyproject.toml"):
        path = os.path.join(arguments[-1], name)
        given[name] = open(path).read() if os.path.exists(path) else ""
    if given["needs"] not in given["pyproject.toml"]:
        sys.exit("ModuleNotFoundError: No module named '" + given["needs"] + "'")
    os.makedirs(folder)
    built = "mine-1.0-cp3-cp3-linux_x86_64.whl" if "compiled" in arguments[-1] else "mine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + built, "w") as wheel:
        wheel.writestr("mine.py", str(os.getpid()))
        wheel.writestr("mine.so", b"\\x7fELF\\0GLIBC_2.17\\0GLIBC_2.34\\0")
    if "without-wheel" in arguments[-1]:
        os.unlink(folder + "/mine-1.0-py3-none-any.whl")
elif os.path.exists("{folder}/uv-says"):
    sys.exit(open("{folder}/uv-says").read())
elif os.path.exists("{folder}/takes-only") and open("{folder}/takes-only").read() not in arguments:
    sys.exit("error: No solution found when resolving dependencies")
elif arguments[0] == "export":
    print(open("{folder}/exported").read())
elif "--output-file" in arguments:
    with open(arguments[arguments.index("--output-file") + 1], "w") as file:
        file.write({lock!r})
"""


class Bench:
    """A workshop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sources").mkdir()

    def request(self, lines: list[str], lock: str = "", **changes: Any) -> dict[str, Any]:
        binary = self.folder / "uv"
        binary.write_text(UV.format(python=sys.executable, folder=self.folder, lock=lock))
        binary.chmod(0o755)
        given = {
            "uv": str(binary),
            "cache": "",
            "folder": str(self.folder),
            "project": "",
            "arguments": [],
            "uv_settings": {},
        }
        given |= {
            "lines": lines,
            "constraints": [],
            "hashes": {},
            "targets": {"here": TARGET},
            "settings": SETTINGS,
            "variables": {},
            "commits": {},
            "builder": {},
        }
        return {**given, "needs_torch": [], "takes_prereleases": False, "preferred": "", **changes}

    @property
    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        return [tuple(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_INDEX_URL", "UV_OFFLINE", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path)


def test_no_password_is_an_argument(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every account of the machine sees arguments, and builds are long."""
    monkeypatch.delenv("TOKEN", raising=False)  # a node knows none of the controller's variables
    lines = [
        "--index-url https://user:${TOKEN}@127.0.0.1/simple",
        "--extra-index-url https://user:${TOKEN}@127.0.0.1/more",
        "--find-links https://user:${TOKEN}@127.0.0.1/wheels",
        "mine @ file:///srv/mine",
    ]
    settings = {**SETTINGS, "index_url": "none", "find_links": ["/srv/wheels"]}
    resolve(bench.request(lines, "mine @ file:///srv/mine\n", settings=settings, variables={"TOKEN": "hush-4711"}))
    assert [arguments[0] for arguments, _environment in bench.calls] == ["pip", "build"]
    assert "hush-4711" not in str([arguments for arguments, _environment in bench.calls])
    environment = bench.calls[-1][1]
    assert environment["UV_DEFAULT_INDEX"] == "https://user:hush-4711@127.0.0.1/simple"
    assert environment["UV_INDEX"] == "https://user:hush-4711@127.0.0.1/more"
    folders = environment["UV_FIND_LINKS"].split(",")  # besides, those of this machine
    assert folders[:2] == ["https://user:hush-4711@127.0.0.1/wheels", "/srv/wheels"]


def commit(folder: Path) -> str:
    """Make a commit in a repository; return its name."""
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    for command in (["init", "-q", "-b", "main"], [*identity, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    told = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return told.stdout.strip()


@pytest.mark.parametrize("ref", ["", "@main", "@feature/x"])
def test_a_node_that_comes_later_gets_the_same_commit(bench: Bench, ref: str) -> None:
    """A branch has moved meanwhile."""
    repository = bench.folder / "repository"
    repository.mkdir()
    first = commit(repository)
    url = f"git+file://{repository}"
    result = resolve(bench.request([f"mine @ {url}{ref}#subdirectory=."], f"mine @ {url}@{first}\n"))
    assert result["commits"] == {url: first}
    resolve(bench.request([f"mine @ {url}{ref}#egg=mine"], "", commits=result["commits"]))
    assert (bench.folder / "requirements.in").read_text() == f"mine @ {url}@{first}#egg=mine\n"


def test_a_page_of_links_with_odd_characters(bench: Bench) -> None:
    """uv's variable takes several, with commas between them."""
    lock = "--find-links https://u:${TOKEN}@example.org/a b,c\n--find-links https://example.org/a b,c\n"
    assert resolve(bench.request(["x"], lock))["find_links"] == ["https://example.org/a%20b%2Cc"]


def test_a_commit_that_no_branch_has(bench: Bench) -> None:
    """As of a pull request; a clone does not have it."""
    repository = bench.folder / "repository"
    repository.mkdir()
    commit(repository)
    second = commit(repository)
    for command in (["update-ref", "refs/pull/1/head", second], ["reset", "-q", "--hard", "HEAD~1"]):
        subprocess.run(["git", "-C", repository, *command], check=True)
    url = f"git+file://{repository}@{second}"
    assert resolve(bench.request([f"mine @ {url}"], f"mine @ {url}\n"))["wheels"] == ["mine-1.0-py3-none-any.whl"]
    lost = f"git+file://{repository}@{'0' * 40}"
    with pytest.raises(Failure, match="a repository has no such branch, tag or commit"):
        resolve(bench.request([f"mine @ {lost}"], f"mine @ {lost}\n", folder=str(bench.folder / "other")))


def test_a_repository_of_which_two_commits_are_taken(bench: Bench) -> None:
    repository = bench.folder / "repository"
    repository.mkdir()
    first, second = commit(repository), commit(repository)
    url = f"git+file://{repository}"
    result = resolve(bench.request(["x"], f"mine @ {url}@{first}\nmine @ {url}@{second}\n"))
    assert result["commits"] == {}


def test_the_same_sources_become_the_same_wheel(bench: Bench) -> None:
    resolve(bench.request(["x"], "mine @ file:///srv/mine\n"))
    assert bench.calls[-1][1]["SOURCE_DATE_EPOCH"] == "315532800"


def test_a_wheel_that_is_built_again_for_another_kind_of_node(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel that the first lock names by its hash stays, and the second lock names the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = "mine @ file:///srv/mine"
    for target in ("first", "second"):
        result = resolve(bench.request([line], f"{line}\n", targets={target: TARGET}))
        Kept("0" * 64).add(result, bench.folder, "localhost")
        (bench.folder / "made0").rmdir()
    kept = Kept("0" * 64)
    content = (kept.folder / "wheels" / "mine-1.0-py3-none-any.whl").read_bytes()
    place = "mine @ file://${THUNDERHEAD_WHEELS}/mine-1.0-py3-none-any.whl"
    expected = f"{place} \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    assert kept.locks == {"first": expected, "second": expected}
    assert content != (bench.folder / "wheels" / "mine-1.0-py3-none-any.whl").read_bytes()


def test_a_node_that_resolves_is_left_as_it_was(bench: Bench, tmp_path: Path) -> None:
    """The cache of uv may hold gigabytes, and the account's home is not the product's."""
    request = bench.request(["mine @ file:///srv/mine"], "mine @ file:///srv/mine\n")
    with tarfile.open(tmp_path / "workshop.tar", "w") as archive:
        for name in ("uv", "sources"):
            archive.add(bench.folder / name, name)
    given = {"archive": str(tmp_path / "workshop.tar"), "request": json.dumps(request)}
    (tmp_path / "arguments").write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    (tmp_path / "tmp").mkdir()
    module = "ansible_collections.thunderhead.cluster.plugins.modules.python_env_resolve"
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".thunderhead-home-") as home:  # others may write in /tmp
        environment = {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": str(tmp_path / "tmp")}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-m", module, str(tmp_path / "arguments")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        assert not os.listdir(home)
    assert json.loads(done.stdout)["resolution"]["wheels"] == ["mine-1.0-py3-none-any.whl"]
    for _arguments, called in bench.calls:
        assert called["UV_CACHE_DIR"].startswith(f"{home}/.thunderhead-")
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("name", ["torn.zip", "torn.tar.xz", "torn.tgz", "torn.tar.bz2"])
def test_an_archive_that_is_damaged(bench: Bench, name: str) -> None:
    (bench.folder / name).write_bytes(b"PK torn")
    with pytest.raises(
        Failure, match=rf"the archive file://\S+/{name} cannot be unpacked \(.*\); fetch or make it again"
    ):
        resolve(bench.request(["x"], f"torn @ file://{bench.folder}/{name}\n"))


def test_what_a_pyproject_takes_from_beside_it_is_relative_to_it(bench: Bench) -> None:
    """As uv writes it into a lock; it was taken from wherever ansible-playbook was started."""
    (bench.folder / "app").mkdir()
    (bench.folder / "app" / "pyproject.toml").write_text("")
    project = {"arguments": ["pyproject.toml"], "project": str(bench.folder / "app")}
    resolve(bench.request([], "-e ../lib\n", **project))
    assert bench.calls[-1][0][-1] == str(bench.folder / "lib")


@pytest.mark.parametrize("named", ["{}/a%20b", "file://{}/a%2520b", "file:{}/a%2520b"])
def test_a_folder_whose_name_looks_like_a_part_of_a_url(bench: Bench, named: str) -> None:
    """uv writes a path into a lock as it is, and a URL with escapes."""
    resolve(bench.request([], f"lib @ {named.format(bench.folder)}\n"))
    assert bench.calls[-1][0][-1] == str(bench.folder / "a%20b")


def test_a_build_that_leaves_no_wheel(bench: Bench) -> None:
    with pytest.raises(Failure, match="the build of without-wheel leaves no wheel; correct its backend"):
        resolve(bench.request(["x"], "x @ file:///srv/without-wheel\n"))


def repository_that_needs(bench: Bench, module: str, pyproject: str) -> str:
    """Make a repository whose build needs a module; return its URL, with the commit."""
    repository = bench.folder / "repository"
    repository.mkdir()
    (repository / "needs").write_text(module)
    if pyproject:
        (repository / "pyproject.toml").write_text(pyproject)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"]):
        subprocess.run(["git", "-C", repository, *command], check=True)
    return f"git+file://{repository}@{commit(repository)}"


@pytest.mark.parametrize(
    ("pyproject", "expected"),
    [
        ("", 'requires = ["setuptools", "wheel", "torch>=1"]'),
        ("[tool.black]\n", 'requires = ["setuptools", "wheel", "torch>=1"]'),
        ('[build-system]\nbackend-path = ["."]\nrequires = ["x"]\n', 'requires = ["torch>=1", "x"]'),
    ],
)
def test_a_repository_whose_build_needs_torch(bench: Bench, pyproject: str, expected: str) -> None:
    """As Detectron2: uv gives a build what it needs besides by the name in [project], and there is none."""
    url = repository_that_needs(bench, "torch", pyproject)
    result = resolve(bench.request([f"mine @ {url}", "torch>=1"], f"mine @ {url}\n"))
    assert (result["needs_torch"], result["wheels"]) == (["mine"], ["mine-1.0-py3-none-any.whl"])
    assert expected in (bench.folder / "git0" / "pyproject.toml").read_text()
    describe = ["git", "-C", bench.folder / "git0", "describe", "--always", "--dirty"]
    told = subprocess.run(describe, check=True, capture_output=True, text=True)
    assert "dirty" not in told.stdout, "its version, if it takes that from git, would be another"


def test_a_machine_without_git(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.folder))
    with pytest.raises(Failure, match="a requirement comes from git, and there is no git; install git there"):
        resolve(bench.request(["x"], f"mine @ git+https://example.org/r.git@{'0' * 40}\n"))


def test_a_repository_whose_build_needs_what_a_setting_says(bench: Bench) -> None:
    url = repository_that_needs(bench, "numpy", "")
    line = f"Mine_ @ {url}"
    expected = r"the build of Mine_ needs another .*set python_env_uv_settings: \{extra-build-dependencies: \{Mine_: \["
    with pytest.raises(Failure, match=expected + "numpy"):
        resolve(bench.request([line], f"{line}\n"))
    for path in ("git0", "made0"):
        subprocess.run(["rm", "-r", "-f", bench.folder / path], check=True)
    given = {"mine-": ["cython", {"requirement": "numpy", "match-runtime": False}]}
    settings = {**SETTINGS, "uv_settings": {"extra-build-dependencies": given}}
    assert resolve(bench.request([line], f"{line}\n", settings=settings))["wheels"] == ["mine-1.0-py3-none-any.whl"]
    text = (bench.folder / "git0" / "pyproject.toml").read_text()
    assert 'requires = ["setuptools", "wheel", "cython", "numpy"]' in text


def test_a_project_of_the_user_is_left_as_it_is(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs = tmp_path_factory.mktemp("theirs")
    (theirs / "lib").mkdir()
    (theirs / "lib" / "needs").write_text("torch")
    project = {"arguments": ["pyproject.toml"], "project": str(theirs), "needs_torch": ["lib"]}
    with pytest.raises(Failure, match="the build of lib needs torch"):
        resolve(bench.request([], "lib @ lib\n", **project))
    assert not (theirs / "lib" / "pyproject.toml").exists()


@pytest.mark.parametrize(
    ("locked", "message"),
    [
        ("tiny==1.0", "tiny is not the package whose hash the requirements give"),
        (
            "tiny==2.0",
            "the requirements give hashes for tiny 1.0.0, and 2.0 is needed: a marker, or python_env_uv_settings",
        ),
    ],
)
def test_hashes_of_another_version(bench: Bench, locked: str, message: str) -> None:
    """A changed package is an alarm; another version is none."""
    hashes = {"tiny": ["sha256:00"]}
    with pytest.raises(Failure, match=message):
        resolve(bench.request(["tiny==1.0.0 ; x > '1'"], f"{locked} \\\n    --hash=sha256:11\n", hashes=hashes))


UV_LOCK = """version = 1
[[package]]
name = "tiny"
version = "1.0"
source = { registry = "https://pypi.org/simple" }
wheels = [{ url = "https://example.org/tiny.whl", hash = "sha256:00" }]
[[package]]
name = "tiny"
version = "1.0"
source = { registry = "https://cpu.example.org/whl/" }
wheels = [{ url = "https://example.org/tiny-cpu.whl", hash = "sha256:11" }]
[[package]]
name = "other"
version = "1.0"
source = { registry = "https://more.example.org/simple" }
wheels = [{ url = "https://example.org/other.whl", hash = "sha256:22" }]
"""


def test_the_indexes_of_a_uv_lock(bench: Bench) -> None:
    """One of an extra that is not taken is not asked; of those asked, hashes say which package is meant."""
    (bench.folder / "uv.lock").write_text(UV_LOCK)
    exported = ["--index-url https://pypi.org/simple", "--extra-index-url https://cpu.example.org/whl"]
    exported += ["--extra-index-url https://more.example.org/simple", "tiny==1.0 \\", "    --hash=sha256:00"]
    exported += ["other==1.0 \\", "    --hash=sha256:22", ""]
    (bench.folder / "exported").write_text("\n".join(exported))
    settings = {**SETTINGS, "index_url": "none"}
    resolve(bench.request([], "", arguments=["uv.lock"], project=str(bench.folder), settings=settings))
    lines = (bench.folder / "requirements.in").read_text().splitlines()
    assert [line.split()[1] for line in lines if "index" in line] == [
        "https://pypi.org/simple",
        "https://more.example.org/simple",
    ]


@pytest.mark.parametrize(
    ("locked", "exported", "is_kept"),
    [
        ("idx", "./idx", True),
        ("{project}/idx", "file://{project}/idx", True),
        ("../a%20b", "../a%20b", True),
        ("{project}/a b", "file://{project}/a%20b", True),
        ("https://cpu.example.org/whl", "https://CPU.example.org/whl/", True),
        ("https://cpu.example.org/whl", "https://other.example.org/whl", True),  # whose it is cannot be seen
        ("https://cpu.example.org/whl/", "https://CPU.example.org/whl", False),
        ("idx", "./idx", False),
    ],
)
def test_an_index_that_a_uv_lock_spells_differently(bench: Bench, locked: str, exported: str, is_kept: bool) -> None:
    digest = "00" if is_kept and "other" not in exported else "99"
    entry = f'[[package]]\nname = "tiny"\nversion = "1.0"\nsource = {{ registry = "{locked}" }}\n'
    entry += f'wheels = [{{ url = "x", hash = "sha256:{digest}" }}]\n'
    (bench.folder / "uv.lock").write_text(entry.replace("{project}", str(bench.folder)))
    line = f"--extra-index-url {exported}".replace("{project}", str(bench.folder))
    (bench.folder / "exported").write_text(f"{line}\ntiny==1.0 \\\n    --hash=sha256:00\n")
    settings = {**SETTINGS, "index_url": "none"}
    resolve(bench.request([], arguments=["uv.lock"], project=str(bench.folder), settings=settings))
    assert ("--extra-index-url" in (bench.folder / "requirements.in").read_text()) is is_kept


OF_ALL_INDEXES = "--index-strategy=unsafe-best-match"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-r {site}/plain.txt", ""),
        ("-r {site}/plain@v1.txt", ""),
        ("-r {login}/locked.txt", "http://…@127.0.0.1:{port}/locked.txt, a file of requirements"),
        ("-c {site}/locked.txt", "{site}/locked.txt, a file of requirements that is named by its URL, has hashes or"),
        ("-r {site}/options.txt", "{site}/options.txt, a file of requirements that is named by its URL, has hashes or"),
        (
            "--requirement={site}/outer.txt",
            "{site}/sub/inner.txt, a file of requirements that is named by its URL, has",
        ),
        ("-r {site}/none.txt", "{site}/none.txt cannot be fetched (HTTP Error 404: File not found)"),
    ],
)
def test_hashes_in_a_file_that_is_named_by_its_url(bench: Bench, line: str, why: str) -> None:
    """Read by uv alone, which does not heed them."""
    (bench.folder / "sub").mkdir()
    locked = "tiny==1.0 \\\n    --hash=sha256:00\n"
    files = {
        "plain@v1.txt": "--pre\n--no-index\n",
        "options.txt": "--extra-index-url x \\\n  --trusted-host y\n",
        "plain.txt": "-r plain.txt # --hash=sha256:00\ntiny\n",
        "locked.txt": locked,
        "sub/inner.txt": locked,
    }
    for name, text in {**files, "outer.txt": "-c 'sub/inner.txt'\n"}.items():
        (bench.folder / name).write_text(text)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(bench.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        places = {
            "site": f"http://127.0.0.1:{server.server_port}",
            "login": f"http://user:p@127.0.0.1:{server.server_port}",
            "port": server.server_port,
        }
        request = bench.request(
            ["six"], settings={**SETTINGS, "index_url": "none"}, constraints=[line.format(**places)]
        )
        with pytest.raises(Failure, match=re.escape(why.format(**places))) if why else contextlib.nullcontext():
            resolve(request)
        server.shutdown()


def test_of_all_indexes_nothing_is_built(bench: Bench) -> None:
    """What a build needs has no hash: a package of its name from another index would run on the machine."""
    given = {"hashes": {"tiny": ["sha256:00"]}, "settings": {**SETTINGS, "index_url": "none"}}
    lock = "tiny==1.0 \\\n    --hash=sha256:00\n"
    assert resolve(bench.request(["tiny==1.0"], lock, **given))["locks"]["here"] == lock
    assert [OF_ALL_INDEXES in arguments for arguments, _environment in bench.calls] == [False]
    (bench.folder / "takes-only").write_text(OF_ALL_INDEXES)
    assert resolve(bench.request(["tiny==1.0"], lock, **given))["locks"]["here"] == lock
    arguments = [arguments for arguments, _environment in bench.calls]
    assert [OF_ALL_INDEXES in one for one in arguments] == ["--no-build" in one for one in arguments]
    assert [OF_ALL_INDEXES in one for one in arguments] == [False, False, True]


@pytest.mark.parametrize("settings", [{"index-strategy": "first-index"}, {}])
def test_packages_without_hashes_come_from_the_first_index(bench: Bench, settings: dict[str, Any]) -> None:
    """And whatever the inventory says of indexes counts."""
    (bench.folder / "takes-only").write_text("--index-strategy=unsafe-best-match")
    hashes = {"tiny": ["sha256:00"]} if settings else {}
    with pytest.raises(Failure, match="uv finds no set of packages"):
        given = {**SETTINGS, "index_url": "none", "uv_settings": settings}
        resolve(bench.request(["tiny==1.0"], hashes=hashes, settings=given))
    assert OF_ALL_INDEXES not in str(bench.calls)


def test_a_uv_lock_with_packages_of_an_index_without_hashes(bench: Bench) -> None:
    (bench.folder / "uv.lock").write_text(UV_LOCK.replace(', hash = "sha256:22"', ""))
    (bench.folder / "exported").write_text("tiny==1.0 \\\n    --hash=sha256:00\nother==1.0\n")
    given = {"arguments": ["uv.lock"], "project": str(bench.folder), "settings": {**SETTINGS, "index_url": "none"}}
    (bench.folder / "takes-only").write_text("export")
    with pytest.raises(Failure, match="uv finds no set of packages"):
        resolve(bench.request([], "", **given))
    assert OF_ALL_INDEXES not in str(bench.calls)


def test_a_build_that_fails_is_not_looked_for_in_all_indexes(bench: Bench) -> None:
    """uv says of what it needs that there is no solution."""
    said = "error: Failed to build `tiny==1.0`\n  cause: No solution found when resolving: `setuptools`, `inner`\n"
    (bench.folder / "uv-says").write_text(said + "  cause: Failed to build `inner==1`")
    given = {"hashes": {"tiny": ["sha256:00"]}, "settings": {**SETTINGS, "index_url": "none"}}
    with pytest.raises(Failure, match="the build of inner fails"):
        resolve(bench.request(["tiny==1.0"], **given))
    assert OF_ALL_INDEXES not in str(bench.calls)


def test_what_no_index_has_is_looked_for_in_all(bench: Bench) -> None:
    """Where hashes protect, a line is not said to be missing of which another index has the version."""
    (bench.folder / "uv-says").write_text("error: No solution found\n  Because there is no version of tiny==1.0")
    given = {"hashes": {"tiny": ["sha256:00"]}, "settings": {**SETTINGS, "index_url": "none"}}
    with pytest.raises(Failure) as caught:
        resolve(bench.request(["tiny==1.0"], **given))
    assert caught.value.unmet == [("tiny==1.0", "no index has this version")]
    assert OF_ALL_INDEXES in bench.calls[-1][0]
    assert bench.calls[-1][0].count("--no-build") == 1


def test_a_uv_lock_with_two_versions_of_a_package(bench: Bench) -> None:
    """By markers: one node takes the first of them, another the second."""
    (bench.folder / "uv.lock").write_text(UV_LOCK)
    locks = [f"tiny=={number}.0 \\\n    --hash=sha256:{number}{number}\n" for number in (1, 2)]
    marked = [one.replace(" \\", f" ; python_version {sign} '3.12' \\") for one, sign in zip(locks, ("<", ">="))]
    (bench.folder / "exported").write_text("".join(marked))
    given = {"arguments": ["uv.lock"], "project": str(bench.folder), "settings": {**SETTINGS, "index_url": "none"}}
    for lock in locks:
        assert resolve(bench.request([], lock, **given))["locks"]["here"] == lock


def test_what_a_uv_lock_takes_from_a_folder(bench: Bench) -> None:
    """It has no hash of it, and a file of the same name and version from an index stays outside."""
    (bench.folder / "uv.lock").write_text(UV_LOCK)
    (bench.folder / "exported").write_text("tiny==1.0 \\\n    --hash=sha256:00\nlocal==1.0\n")
    (bench.folder / "folder").mkdir()
    (bench.folder / "folder" / "local-1.0-py3-none-any.whl").write_bytes(b"")
    settings = {**SETTINGS, "index_url": "none", "find_links": [str(bench.folder / "folder")]}
    given = {"arguments": ["uv.lock"], "project": str(bench.folder), "settings": settings}

    def lock(**hashes: str) -> str:
        return "".join(f"{name}==1.0 \\\n    --hash=sha256:{value}\n" for name, value in hashes.items())

    mine = hashlib.sha256(b"").hexdigest()
    assert resolve(bench.request([], lock(tiny="00", local=mine), **given))["locks"]["here"] == lock(
        tiny="00", local=mine
    )
    for name, locked in {"local": lock(tiny="00", local="33"), "more": lock(tiny="00", more="44")}.items():
        with pytest.raises(
            Failure, match=f"the requirements give hashes, and none for {name}, which is needed besides"
        ):
            resolve(bench.request([], locked, **given))


@pytest.mark.parametrize("folder", ["./a b", "{project}/a b", "file://{project}/a%20b"])
def test_a_folder_that_the_project_of_a_uv_lock_names(bench: Bench, folder: str) -> None:
    """Relative to the project, and its files go to the nodes."""
    (bench.folder / "uv.lock").write_text(UV_LOCK)
    (bench.folder / "a b").mkdir()
    (bench.folder / "a b" / "local-1.0-py3-none-any.whl").write_bytes(b"")
    folder = folder.replace("{project}", str(bench.folder))
    (bench.folder / "exported").write_text(f"--extra-index-url ./idx\n--find-links {folder}\nlocal==1.0\n")
    lock = f"local==1.0 \\\n    --hash=sha256:{hashlib.sha256(b'').hexdigest()}\n"
    given = {"arguments": ["uv.lock"], "project": str(bench.folder), "settings": {**SETTINGS, "index_url": "none"}}
    result = resolve(bench.request([], lock, **given))
    assert (result["locks"]["here"], result["wheels"]) == (lock, ["local-1.0-py3-none-any.whl"])
    lines = (bench.folder / "requirements.in").read_text().splitlines()
    assert lines[0] == f"--extra-index-url {bench.folder}/idx"
    assert lines[1].removeprefix("--find-links ").startswith(("/", "file:///"))


def test_an_index_of_the_requirements_that_is_not_reached(bench: Bench) -> None:
    """Before uv tries for a minute; and PyPI is not asked where they name another in its place."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        for option in ("--index-url", "--extra-index-url"):
            with pytest.raises(Failure, match=rf"does not reach the index {url}: .*; take it out of the requirements"):
                settings = {**SETTINGS, "index_url": "" if option == "--index-url" else "file:///srv/simple"}
                resolve(bench.request([f"{option} {url}", "six"], settings=settings))


def test_the_inventorys_index_takes_the_place_of_that_of_the_requirements(bench: Bench) -> None:
    """As uv has it: so theirs need not be reached, and a build asks the same index as all else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        lines = ["--index-url http://127.0.0.1:1/simple", "mine @ file:///srv/mine"]
        resolve(bench.request(lines, "mine @ file:///srv/mine\n", settings={**SETTINGS, "index_url": url}))
    assert bench.calls[-1][0][0] == "build"
    assert bench.calls[-1][1]["UV_DEFAULT_INDEX"] == url


def test_pypi_of_a_uv_lock_that_is_not_reached(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uv.lock is written out with it: nobody can take it out of there."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (bench.folder / "uv.lock").write_text(UV_LOCK)
    (bench.folder / "exported").write_text("--index-url https://pypi.org/simple\ntiny==1.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(uv, "Machine", partial(uv.Machine, str(bench.folder), str(bench.folder)))
    monkeypatch.setattr(uv.Uv, "_try", staticmethod(lambda place, problems: problems.update({place: "it is closed"})))
    with pytest.raises(Failure, match=r"not reach the index https://pypi.org/simple: .*; set python_env_index_url"):
        resolve(bench.request([], arguments=["uv.lock"], project=str(bench.folder)))


def test_a_version_without_a_wheel_for_a_nodes_python(bench: Bench) -> None:
    (bench.folder / "uv-says").write_text(
        "error: No solution found\n  Because x==1 has no wheels with a matching Python ABI"
    )
    with pytest.raises(Failure) as caught:
        resolve(bench.request(["x==1"], settings={**SETTINGS, "index_url": "none"}))
    about = f"Python {TARGET['python']} on x86_64"
    expected = f"it has no wheel for {about}; take another version, or Python (python_env_python)"
    assert caught.value.unmet == [("x==1", expected)]


@pytest.mark.parametrize(
    ("said", "may_matter"), [("x was not found in the package registry", True), ("x==1 needs y<2", False)]
)
def test_settings_of_pip_are_named_where_they_may_help(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: str, may_matter: bool
) -> None:
    (bench.folder / "pip.conf").write_text("[global]\nextra-index-url = https://more.example.org/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(bench.folder / "pip.conf"))
    (bench.folder / "uv-says").write_text(f"error: No solution found\n  Because {said}")
    with pytest.raises(Failure) as caught:
        resolve(bench.request(["x==1"], settings={**SETTINGS, "index_url": "none"}))
    assert (f"{bench.folder}/pip.conf sets extra-index-url" in caught.value.why) is may_matter


HERE = {"executable": "/usr/bin/python3.11", "python": "3.11", "machine": "x86_64", "platform": "x86_64-manylinux_2_39"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"platform": "x86_64-manylinux_2_34"}, ""),
        (
            {"platform": "x86_64-manylinux_2_31"},
            "for glibc 2.34, and a node is x86_64-manylinux_2_31; set python_env_res",
        ),
        ({"platform": "x86_64-unknown-linux-musl"}, "for glibc 2.34, and a node is x86_64-unknown-linux-musl; set"),
        (
            {"python": "3.12"},
            "for Python 3.11 on x86_64, and a node has Python 3.12 on x86_64; set python_env_resolve_on",
        ),
    ],
)
def test_compiled_code_is_for_nodes_that_can_load_it(bench: Bench, changes: dict[str, str], message: str) -> None:
    """What builds is the Python of the node that resolves, not the one that Ansible has there."""
    lock = "mine @ file:///srv/compiled\n"
    request = bench.request(["x"], lock, targets={"here": {**TARGET, **HERE, **changes}}, builder=HERE)
    with pytest.raises(Failure, match=re.escape(message)) if message else contextlib.nullcontext():
        assert resolve(request)["wheels"] == ["mine-1.0-cp3-cp3-linux_x86_64.whl"]
    for arguments, _environment in bench.calls:
        assert arguments[arguments.index("--python") + 1] == "/usr/bin/python3.11"


def test_a_wheel_that_uv_has_checked(bench: Bench) -> None:
    """It is for the nodes' Python, whatever this machine's is."""
    wheel = bench.folder / "mine-1.0-cp310-cp310-linux_x86_64.whl"
    wheel.write_bytes(b"")
    request = bench.request(["x"], f"mine @ {wheel.as_uri()}\n", targets={"here": {**TARGET, "python": "3.10"}})
    assert resolve(request)["wheels"] == [wheel.name]
