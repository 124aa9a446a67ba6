"""A resolution with a program in uv's place, which writes down how it was called."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils.python_env.resolution import resolve
from ansible_collections.thunderhead.cluster.plugins.module_utils.python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.locks import Kept

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
    folder = arguments[arguments.index("--out-dir") + 1]
    os.makedirs(folder)
    with zipfile.ZipFile(folder + "/mine-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mine.py", str(os.getpid()))
    if "without-wheel" in arguments[-1]:
        os.unlink(folder + "/mine-1.0-py3-none-any.whl")
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
        uv = self.folder / "uv"
        uv.write_text(UV.format(python=sys.executable, folder=self.folder, lock=lock))
        uv.chmod(0o755)
        given = {"uv": str(uv), "cache": "", "folder": str(self.folder), "project": "", "arguments": [], "lines": lines}
        given |= {
            "constraints": [],
            "hashes": {},
            "targets": {"here": TARGET},
            "settings": SETTINGS,
            "variables": {},
            "commits": {},
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


def test_a_build_that_leaves_no_wheel(bench: Bench) -> None:
    with pytest.raises(Failure, match="the build of without-wheel leaves no wheel; correct its backend"):
        resolve(bench.request(["x"], "x @ file:///srv/without-wheel\n"))
