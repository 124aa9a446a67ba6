# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role python_env on nodes on this machine, with wheels of a few bytes from an index that wants a password."""

import base64
import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import platform
import pwd
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.modules import python_env_resolve
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.fetch_uv import HASHES, fetch
from packages import Quiet, make_wheel
from playing import ROOT, play

PASSWORD = "hush-hush-4711"
UV_VERSION = yaml.safe_load((ROOT / "roles" / "python_env" / "defaults" / "main.yml").read_text())[
    "python_env_uv_version"
]


class Index(Quiet):
    """A package index for whoever has the password."""

    def do_GET(self) -> None:
        expected = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {expected}":
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()


@dataclass
class Site:
    """A node, and the wheels that there are for it."""

    folder: Path
    hashes: dict[str, str]
    url: str

    def setup(self, requirements: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "requirements.txt").write_text(requirements)
        return play(self.folder, "setup.yml", "--tags", "python_env", *arguments, **self.caches)

    @property
    def caches(self) -> dict[str, str]:
        """Variables that keep what is kept below the folder."""
        return {"UV_CACHE_DIR": str(self.folder / "uv"), "XDG_CACHE_HOME": str(self.folder / "cache")}

    @property
    def installed(self) -> set[str]:
        """The packages in the node's environment."""
        return {path.name.split("-")[0] for path in self.folder.glob("node/env/lib/*/site-packages/*.dist-info")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    hashes = {}
    for name in ("tiny", "other", "third"):
        (folder / "simple" / name).mkdir(parents=True)
        hashes[name] = make_wheel(folder / "simple" / name, name)
    handler = lambda *arguments: Index(*arguments, directory=str(folder))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://user:{PASSWORD}@127.0.0.1:{server.server_port}/simple/"
    # What the role would fetch with pip: the very uv that made this environment.
    cache = folder / "cache" / "thunderhead" / f"uv-{UV_VERSION}-manylinux2014_{platform.machine()}" / "bin"
    cache.mkdir(parents=True)
    shutil.copy(Path(sys.executable).parent / "uv", cache / "uv")
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{folder}/node",
        "cluster_address": "127.0.0.1",
        "job_user": "",
        "python_env_python": sys.executable,
        "python_env_requirements": f"{folder}/requirements.txt",
        "python_env_index_url": url,
        "python_env_torch_backend": "none",
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": {"node0": variables}}}))
    yield Site(folder, hashes, url)
    server.shutdown()


def test_the_right_hash_and_a_password_that_nobody_sees(site: Site) -> None:
    text = f"# --hash is explained in the role's README\ntiny==1.0 \\\n    --hash=sha256:{site.hashes['tiny']}\n"
    result = site.setup(text, "-vvv", "--diff")
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert site.installed == {"tiny"}
    assert PASSWORD not in output
    kept = [path for path in site.folder.rglob("*") if path.is_file() and path.name != "hosts.yml"]
    assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            "tiny==1.0 --hash=sha256:{tiny}\nother==1.0 --hash=sha256:{tiny}\n",
            "FOLDER/requirements.txt could not be resolved, and nothing was changed on any node. On the controller, "
            "other is not the package whose hash the requirements give (Hash mismatch): it was changed on its way or "
            "at its source, or the hash is of another file; find out which, correct the hash only if you know the "
            "package.",
        ),
        (
            "tiny==1.0 --hash=sha256:{tiny}\nother==1.0\n",
            "the requirements give hashes, and none for other, which is needed besides; where one has a hash all must "
            "have one: uv pip compile --generate-hashes writes such a file.",
        ),
        (
            "tiny @ https://user:token@example.org/tiny-1.0-py3-none-any.whl\n",
            "FOLDER/requirements.txt line 1 holds a password or a token in a URL, which is no place for one; take it "
            "out; git finds it by itself in its credential helper or in ~/.netrc of the machine that resolves,",
        ),
    ],
    ids=["wrong", "missing", "token"],
)
def test_what_is_refused_leaves_nothing_behind(site: Site, requirements: str, message: str) -> None:
    before = {path for path in site.folder.glob("node/envs/*/") if path.is_dir()}, site.installed
    result = site.setup(requirements.format(**site.hashes))
    output = " ".join((result.stdout + result.stderr).split())
    assert result.returncode != 0
    assert message.replace("FOLDER", str(site.folder)) in output, output
    assert ({path for path in site.folder.glob("node/envs/*/") if path.is_dir()}, site.installed) == before


def test_an_address_in_a_comment_is_no_password(site: Site) -> None:
    """R6; nor is the user of a git repository, which test_requirements tries."""
    result = site.setup("tiny==1.0 # see https://example.com?mail=a@b and https://user:pass@example.com\n", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_password_is_not_shown_either(site: Site) -> None:
    wrong = site.url.replace(PASSWORD, "a-$$wrong-password-0815")
    result = site.setup("third==1.0\n", "-vvv", "-e", f"python_env_index_url={wrong}")
    assert result.returncode != 0
    assert "On the controller, the index wants other credentials (" in result.stdout
    assert "wrong-password" not in result.stdout + result.stderr


@pytest.mark.parametrize("platform_name", ["../../../evil", "manylinux2014_x86_64/../../evil", "{{ 7 * 7 }}"])
def test_a_node_whose_platform_is_a_path(site: Site, platform_name: str) -> None:
    node = site.folder / "lying-python"
    about = ["/x", "3.11.0", [3, 11], platform_name, "linux", ["glibc", "2.36"]]
    node.write_text(f"#!{sys.executable}\nprint({about!r})\n")
    node.chmod(0o755)
    result = site.setup("tiny==1.0\n", "-e", f"python_env_python={node}")
    assert result.returncode != 0
    assert "node0 sent an invalid reply to python_env_info (field" in result.stdout
    assert not list(site.folder.parent.rglob("evil"))


# ------------------------------------------------------------------------------------- requirements as people have them

BACKEND = """import zipfile
{imports}
def build_wheel(folder, config_settings=None, metadata_directory=None):
    file, about = "{name}-1.0-py3-none-any.whl", "{name}-1.0.dist-info"
    with zipfile.ZipFile(folder + "/" + file, "w") as wheel:
        wheel.writestr("{name}.py", "")
        wheel.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(about + "/RECORD", "".join(n + ",,\\n" for n in [*wheel.namelist(), about + "/RECORD"]))
    return file
"""


def make_project(folder: Path, name: str, imports: str = "") -> None:
    """Make a project that is built without any other package, or with one that it does not declare."""
    folder.mkdir(parents=True)
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (folder / "pyproject.toml").write_text(f'{build}[project]\nname = "{name}"\nversion = "1.0"\n')
    (folder / "backend.py").write_text(BACKEND.format(name=name, imports=imports))


def commit(folder: Path) -> None:
    """Make a folder a git repository, with all that is in it."""
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", folder, *command], check=True)


def test_what_a_file_names_beside_itself_reaches_the_nodes(site: Site) -> None:
    """Relative to the file, built on the controller, and with torch where the build needs it."""
    beside = site.folder / "beside"
    (beside / "wheels").mkdir(parents=True)
    for name in ("linked", "torch"):
        make_wheel(beside / "wheels", name)
    make_project(beside / "mine", "mine")
    make_project(beside / "needs", "needs", "import torch")
    make_project(beside / "repo", "fromgit")
    commit(beside / "repo")
    (beside / "base.txt").write_text("-c limits.txt\ntiny\n")
    (beside / "limits.txt").write_text("tiny<2\n")
    text = f"-r base.txt\n--find-links wheels\nlinked\ntorch==1.0\n-e mine\n./needs\ngit+file://{beside}/repo\n"
    (beside / "all.txt").write_text(text)
    asked = ("--diff", "-e", f"python_env_requirements={beside}/all.txt")
    check = site.setup("", "--check", *asked)
    assert check.returncode == 0, check.stdout
    assert "+mine @ file://${THUNDERHEAD_WHEELS}/mine-1.0-py3-none-any.whl" in check.stdout
    result = site.setup("", *asked)
    assert result.returncode == 0, result.stdout
    assert site.installed == {"tiny", "linked", "torch", "mine", "needs", "fromgit"}
    assert (site.folder / "node" / "requirements.txt").read_text().splitlines()[1:] == [
        f"{name}==1.0" for name in ("fromgit", "linked", "mine", "needs", "tiny", "torch")
    ]
    assert not (site.folder / "node" / "wheels").exists()
    again = site.setup("", *asked)
    assert "1 node done in " in again.stdout and "nothing changed" in again.stdout
    (beside / "mine" / "backend.py").write_text(BACKEND.format(name="mine", imports="# changed"))
    assert "1 node done in " in (said := site.setup("", "--check", *asked).stdout) and "nothing" not in said


def test_a_project_of_ones_own_and_a_folder_of_wheels_on_the_nodes(site: Site) -> None:
    """The wheel that was built came in the folder's place, so that setup failed where --check had not."""
    make_wheel(site.folder / "on the nodes", "only")
    make_project(site.folder / "lone", "lone")
    (site.folder / "links.yml").write_text(yaml.safe_dump({"python_env_find_links": [f"{site.folder}/on the nodes"]}))
    result = site.setup("-e lone\nonly\ntiny\n", "-e", f"@{site.folder}/links.yml")
    assert result.returncode == 0, result.stdout
    assert site.installed == {"lone", "only", "tiny"}


def test_a_node_may_resolve_for_all(site: Site) -> None:
    """What a file names is brought there, and what is built there comes back."""
    make_project(site.folder / "theirs", "theirs")
    result = site.setup("third\n-e theirs\n", "-e", "python_env_resolve_on=node0")
    assert result.returncode == 0, result.stdout
    assert site.installed == {"third", "theirs"}
    backend = '[project]\nname = "x"\nversion = "1"\ndependencies = ["tiny"]\n'
    (site.folder / "pyproject.toml").write_text(backend)
    project = ("-e", f"python_env_requirements={site.folder}/pyproject.toml", "-e", "python_env_resolve_on=node0")
    assert site.setup("", *project).returncode == 0
    assert site.installed == {"tiny"}
    wrong = site.setup("third\n", "-e", "python_env_resolve_on=node9")
    assert "python_env_resolve_on is node9, which is none of the nodes (node0); set it to one" in wrong.stdout
    missing = site.setup("no-such\n", "-e", "python_env_resolve_on=node0")
    assert "nothing was changed on any node. On node0, uv finds no set of packages that" in missing.stdout


def test_what_others_put_into_a_nodes_tmp_decides_nothing(site: Site) -> None:
    """A workspace above a project says where its packages come from."""
    shared = site.folder / "tmp"
    make_wheel(shared, "tiny", module="evil = True\n")
    evil = f'[tool.uv.sources]\ntiny = {{ path = "{shared}/tiny-1.0-py3-none-any.whl" }}\n'
    (shared / "pyproject.toml").write_text(f'[tool.uv.workspace]\nmembers = ["*/project"]\n{evil}')
    (site.folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "2"\ndependencies = ["tiny"]\n')
    (site.folder / "requirements.txt").write_text("")
    project = ("-e", f"python_env_requirements={site.folder}/pyproject.toml", "-e", "python_env_resolve_on=node0")
    result = play(site.folder, "setup.yml", "--tags", "python_env", *project, **site.caches, TMPDIR=str(shared))
    assert result.returncode == 0, result.stdout
    (module,) = site.folder.glob("node/env/lib/*/site-packages/tiny.py")
    assert module.read_text() == ""


@pytest.mark.parametrize("opened", ["", "home"])
def test_a_node_resolves_where_nobody_else_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: str
) -> None:
    home = tmp_path / "home" / "me"
    home.mkdir(parents=True)
    (tmp_path / opened).chmod(0o777)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(Failure) as caught:
        python_env_resolve.make_workshop()
    assert str(caught.value) == (
        f"others may write in {tmp_path / opened}, and uv, which works in {home}, goes by files there; chmod go-w it, "
        "or set python_env_resolve_on to another node or to localhost"
    )
    assert list(home.iterdir()) == []


def test_what_a_broken_off_resolution_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be gigabytes; what another one works in at this moment stays, and the next waits for it."""
    place = tmp_path / ".thunderhead-resolve"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(python_env_resolve, "is_open", lambda _found: False)
    broken_off, lock = python_env_resolve.make_workshop()
    (Path(broken_off) / "cache").mkdir()
    (Path(broken_off) / "cache" / "torch").touch()
    os.close(lock)
    one, held = python_env_resolve.make_workshop()
    assert ([str(path) for path in place.iterdir()], os.listdir(one)) == ([one], [])
    assert place.stat().st_mode & 0o777 == 0o700
    with ThreadPoolExecutor() as pool:
        next_one = pool.submit(python_env_resolve.make_workshop)
        with pytest.raises(TimeoutError):
            next_one.result(timeout=0.5)
        shutil.rmtree(place)
        os.close(held)
        other, lock = next_one.result(timeout=30)
    assert [str(path) for path in place.iterdir()] == [other]
    os.close(lock)


def test_a_node_resolves_in_no_folder_of_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "home" / ".thunderhead-resolve"
    place.mkdir(parents=True)
    (place / "notes").touch()
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.setattr(python_env_resolve, "is_open", lambda found: stat.S_IMODE(found.st_mode) == 0o777)
    place.chmod(0o777)
    with pytest.raises(Failure, match=f"{place} is not .*'s alone, and uv goes by files there; remove it"):
        python_env_resolve.make_workshop()
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="thunderhead-resolve"):
        python_env_resolve.make_workshop()
    assert os.listdir(tmp_path / "elsewhere") == ["notes"]


def test_a_node_whose_home_belongs_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """chmod go-w, which setup advised, changes nothing there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(python_env_resolve, "trusted", lambda: {12345678})
    owner, me = (pwd.getpwuid(uid).pw_name for uid in (tmp_path.stat().st_uid, os.geteuid()))
    with pytest.raises(Failure) as caught:
        python_env_resolve.make_workshop()
    assert str(caught.value) == (
        f"{tmp_path} belongs to {owner}, and uv, which works in {tmp_path}, goes by files there; chown it to {me}, "
        "or set python_env_resolve_on to another node or to localhost"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["setup", "check"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idna @ file:///croot/x\npkg-resources==0.0.0\n", "requirements.txt has 2 lines that nodes cannot install:"),
        ("no-such==1.0\n", "uv finds no set of packages that meets the requirements"),
        (
            "tiny\nno-such==1.0\ntorch==1.0+cu121\nother==7\n",
            "requirements.txt line 4 asks for other==7: no index has this version",
        ),
        (
            "tiny\nno-such==1.0\ntorch==1.0+cu121\nother==7\n",
            "requirements.txt line 2 asks for no-such==1.0: no index has such a package",
        ),
        (
            "torch==1.0+cu121\n",
            "requirements.txt line 1: pins the build cu121 of torch; write torch==1.0: ",
        ),
    ],
)
def test_a_fault_is_told_once_before_any_node_is_changed(
    site: Site, text: str, message: str, check: tuple[str, ...]
) -> None:
    """With --check too."""
    hosts = yaml.safe_load((site.folder / "hosts.yml").read_text())["cluster"]["hosts"]
    nodes = {f"two{n}": {**hosts["node0"], "cluster_dir": f"{site.folder}/two{n}"} for n in (1, 2)}
    nodes["two2"]["cluster_address"] = "127.0.0.2"
    (site.folder / "two.yml").write_text(yaml.safe_dump({"cluster": {"hosts": nodes}}))
    (site.folder / "requirements.txt").write_text(text)
    result = play(site.folder, "setup.yml", "--tags", "python_env", *check, inventory="two.yml", **site.caches)
    assert result.returncode != 0
    assert message in result.stdout
    assert result.stdout.count("[ERROR]: ") == 1
    assert not list(site.folder.glob("two[12]"))


def test_the_tools_come_apart_from_the_environment(site: Site) -> None:
    """Whatever the requirements are; a package of this index stands for py-spy."""
    tools = {"__python_env_tools": f"tiny==1.0 --hash=sha256:{site.hashes['tiny']}\n"}
    (site.folder / "tools.yml").write_text(yaml.safe_dump(tools))
    asked = ("other==1.0\n", "-e", f"@{site.folder}/tools.yml")
    assert site.setup(*asked).returncode == 0
    assert site.installed == {"other"}
    link = site.folder / "node" / "tools" / "env"
    assert list(link.glob("lib/*/site-packages/tiny-1.0.dist-info"))
    again = site.setup(*asked).stdout
    assert "nothing changed" in again
    assert "Resolve the requirements" not in again, "nothing is missing on any node"
    environment = (site.folder / "node" / "env").readlink()
    link.unlink()
    again = site.setup(*asked)
    assert (again.returncode, link.is_dir()) == (0, True)
    assert (site.folder / "node" / "env").readlink() == environment
    without = site.setup("other==1.0\n")  # py-spy itself, which this index has not
    assert without.returncode == 0
    assert "py-spy could not be installed here, so the stacks of a job that hangs cannot be shown" in (
        without.stdout + without.stderr
    )


def test_an_index_that_shadows_another(site: Site) -> None:
    """What uv says then can be done."""
    make_wheel(site.folder / "more" / "tiny", "tiny", "0.9")
    more = {"python_env_extra_index_urls": [site.url.replace("/simple/", "/more/")]}
    (site.folder / "more.yml").write_text(yaml.safe_dump(more))
    result = site.setup("tiny==1.0\n", "-e", f"@{site.folder}/more.yml")
    assert result.returncode != 0
    expected = "so that nobody can put another in its place; if you trust all of them, set python_env_uv_settings: {"
    assert expected in result.stdout
    settings = {"python_env_uv_settings": {"index-strategy": "unsafe-best-match"}}
    (site.folder / "more.yml").write_text(yaml.safe_dump({**more, **settings}))
    result = site.setup("tiny==1.0\n", "-vvv", "-e", f"@{site.folder}/more.yml")
    assert (result.returncode, site.installed) == (0, {"tiny"}), result.stdout
    assert PASSWORD not in result.stdout + result.stderr
    nonsense = site.setup("tiny==1.0\n", "-e", '{"python_env_uv_settings": {"no-such-setting": 1}}')
    assert "On the controller, python_env_uv_settings has what no uv.toml may have" in nonsense.stdout


def test_a_package_that_was_changed_after_it_was_locked(site: Site) -> None:
    """What is checked is what is installed."""
    make_wheel(site.folder / "simple" / "fourth", "fourth")
    before = site.installed
    make_project(site.folder / "locked", "locked")
    assert site.setup("fourth\n-e locked\n", "--check").returncode == 0
    make_wheel(site.folder / "simple" / "fourth", "fourth", module="evil = True\n")
    shutil.rmtree(site.folder / "uv")
    result = site.setup("fourth\n-e locked\n")
    assert result.returncode != 0
    assert not (site.folder / "node" / "wheels").exists()
    expected = (
        f"This node has no new environment, and {site.folder}/node/env is as it was, because a package is not the one "
        "whose hash the lock has"
    )
    assert expected in " ".join(result.stdout.split())
    assert site.installed == before


def test_lists_that_are_empty_texts(site: Site) -> None:
    """As -e python_env_find_links= gives; a node was said to have no folder of no name."""
    result = site.setup("third\n", "-e", "python_env_find_links=", "-e", "python_env_extra_index_urls=")
    assert (result.returncode, site.installed) == (0, {"third"}), result.stdout


def test_one_setup_at_a_time(site: Site) -> None:
    """Of one whose ansible-playbook was killed, uv works on, and removed at its end what the next one had installed."""
    assert site.setup("tiny==1.0\n").returncode == 0
    node = site.folder / "node"
    (node / "wheels").mkdir()
    with open(node / "cache" / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = site.setup("tiny==1.0\nother==1.0\n")
    assert refused.returncode != 0
    assert (
        f"This node has no new environment, and {node}/env is as it was, because another setup.yml installs in {node} "
        "at this moment; wait until it has ended, or if it was broken off, end what is left of it there: "
        f"pkill -f {node}/bin/uv, and run setup again."
    ) in " ".join(refused.stdout.split())
    assert site.installed == {"tiny"}
    assert (node / "wheels").is_dir(), "they are the other's"
    assert site.setup("tiny==1.0\nother==1.0\n").returncode == 0
    assert site.installed == {"tiny", "other"}


def test_wheels_of_two_setups_at_once(site: Site) -> None:
    """One setup's wheel took the place of another's of the same name, and the first to end removed both."""
    assert site.setup("tiny==1.0\n").returncode == 0
    node = site.folder / "node"
    make_project(site.folder / "twice", "twice")
    with open(node / "cache" / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for content in ("# one", "# two"):
            backend = BACKEND.format(name="twice", imports="").replace('.py", ""', f'.py", "{content}"')
            (site.folder / "twice" / "backend.py").write_text(backend)
            assert "another setup.yml installs" in " ".join(site.setup("-e twice\n").stdout.split())
    one, two = sorted(node.glob("wheels/*/twice-1.0-py3-none-any.whl"), key=lambda path: path.stat().st_mtime)
    result = site.setup("-e twice\n")
    assert (result.returncode, site.installed) == (0, {"twice"}), result.stdout
    assert (one.exists(), two.parent.exists()) == (True, False)
    shutil.rmtree(node / "wheels")


def test_without_torch_setup_says_so_each_time(site: Site) -> None:
    """R12; and torch's index is not needed then."""
    for backend in ("none", "cpu", "cpu"):
        result = site.setup("tiny==1.0\n", "-e", f"python_env_torch_backend={backend}")
        assert result.returncode == 0, result.stdout
        assert "requirements.txt installs no torch, so no job can train" in result.stdout + result.stderr


# ---------------------------------------------------------------------------------------------------- uv for the nodes

OWN = f"manylinux2014_{platform.machine()}"
UV = Path(sys.executable).parent / "uv"


@pytest.fixture
def without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bin of an environment without pip and uv, whose Python this process takes for its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")):
            monkeypatch.delenv(name)
    return tmp_path / "venv" / "bin"


def test_a_torn_uv_is_fetched_again(tmp_path: Path, without_pip: Path) -> None:
    folder = tmp_path / "uv"
    (without_pip / "uv").symlink_to(UV)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "uv").write_bytes(UV.read_bytes()[:100_000])
    (folder / "bin" / "uv").chmod(0o755)
    fetch(UV_VERSION, OWN, folder, {})
    assert (folder / "bin" / "uv").read_bytes() == UV.read_bytes()
    (without_pip / "uv").unlink()
    fetch(UV_VERSION, OWN, folder, {})  # it is there
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("uv")) == ["uv"]


def test_setup_gives_no_node_a_torn_uv(site: Site) -> None:
    """Nor does it leave one in the cache, for every setup after it."""
    (cached,) = site.folder.glob("cache/thunderhead/uv-*/bin/uv")
    cached.write_bytes(UV.read_bytes()[:100_000])
    node = site.folder / "torn"
    result = site.setup("third==1.0\n", "-e", f"cluster_dir={node}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (node / "bin" / "uv").read_bytes() == cached.read_bytes() == UV.read_bytes()
    assert list(node.glob("env/lib/*/site-packages/third.py"))


@pytest.mark.parametrize("kept", [100, 1000])
@pytest.mark.usefixtures("without_pip")
def test_a_uv_for_another_platform_is_told_by_its_hash(tmp_path: Path, kept: int) -> None:
    """It cannot be run here."""
    folder = tmp_path / "uv"
    binary, about = folder / "bin" / "uv", folder / f"uv-{UV_VERSION}.dist-info"
    for path in (binary.parent, about):
        path.mkdir(parents=True)
    digest = base64.urlsafe_b64encode(hashlib.sha256(bytes(1000)).digest()).decode().rstrip("=")
    (about / "RECORD").write_text(f"../../bin/uv,sha256={digest},1000\n")
    binary.write_bytes(bytes(kept))
    with contextlib.nullcontext() if kept == 1000 else pytest.raises(JobError, match="has neither pip nor uv"):
        fetch(UV_VERSION, "manylinux2014_s390x", folder, {})
    assert binary.stat().st_size == kept


def test_a_uv_that_was_changed_on_its_way(tmp_path: Path, without_pip: Path) -> None:
    """R11."""
    (without_pip / "uv").symlink_to(UV)
    index = tmp_path / "simple" / "uv"
    index.mkdir(parents=True)
    with zipfile.ZipFile(index / f"uv-{UV_VERSION}-py3-none-manylinux2014_s390x.whl", "w") as wheel:
        wheel.writestr(
            f"uv-{UV_VERSION}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: uv\nVersion: {UV_VERSION}\n"
        )
        wheel.writestr(f"uv-{UV_VERSION}.data/scripts/uv", "#!/bin/sh\n")
    settings = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)}
    with pytest.raises(JobError, match=r"could not fetch it with uv: .* Computed: sha256:"):
        fetch(UV_VERSION, "manylinux2014_s390x", tmp_path / "uv", settings)
    assert not (tmp_path / "uv").exists()
    assert f"uv=={UV_VERSION} " in HASHES.read_text()


def test_a_disk_without_room_for_uv(tmp_path: Path, without_pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (without_pip / "uv").symlink_to(UV)

    def fill(source: str, _target: Path) -> None:
        raise OSError(28, "No space left on device", source)

    monkeypatch.setattr(shutil, "copy", fill)
    with pytest.raises(
        JobError, match=rf"^uv could not be put into {tmp_path}/uv on the controller \(.* No space left"
    ):
        fetch(UV_VERSION, OWN, tmp_path / "uv", {})


def test_no_password_where_uv_cannot_be_fetched(tmp_path: Path, without_pip: Path) -> None:
    (without_pip / "uv").write_text("#!/bin/sh\necho no uv at $UV_DEFAULT_INDEX; exit 1\n")
    (without_pip / "uv").chmod(0o755)
    with pytest.raises(JobError, match=r"could not fetch it with uv: no uv at https://…@mirror\.example\.org/simple; "):
        fetch(UV_VERSION, OWN, tmp_path / "uv", {"UV_DEFAULT_INDEX": "https://u:hush-4711@mirror.example.org/simple"})


def test_neither_pip_nor_uv(tmp_path: Path, without_pip: Path) -> None:
    folder = tmp_path / "cache" / "uv"
    with pytest.raises(JobError) as caught:
        fetch(UV_VERSION, OWN, folder, {})
    assert str(caught.value) == (
        f"This machine needs uv {UV_VERSION} for {OWN}, and has neither pip nor uv; install pip for "
        f"{without_pip}/python or uv, see that it reaches a package index, or put the binary at {folder}/bin/uv"
    )
    assert list(folder.parent.iterdir()) == []


def test_setup_says_it_in_one_sentence(site: Site) -> None:
    (site.folder / "requirements.txt").write_text("third==1.0\n")
    index = "http://127.0.0.1:1/"
    nowhere = {"PIP_INDEX_URL": index, "PIP_RETRIES": "0", "UV_DEFAULT_INDEX": index, "UV_HTTP_RETRIES": "0"}
    nowhere["XDG_CACHE_HOME"] = str(site.folder / "empty")
    result = play(site.folder, "setup.yml", "--tags", "python_env", "-e", "python_env_uv_version=0.0.1", **nowhere)
    assert result.returncode != 0
    assert f"This machine needs uv 0.0.1 for {OWN}, and could not fetch it with uv: " in result.stdout
    assert "see that it reaches a package index, or put the binary at" in result.stdout
    assert "Make the folders of uv" not in result.stdout
    assert list((site.folder / "empty" / "thunderhead").iterdir()) == []


def test_a_cache_that_cannot_be_written(site: Site) -> None:
    """As in a home that is mounted read-only."""
    (site.folder / "requirements.txt").write_text("third\nother\n")
    caches = {**site.caches, "XDG_CACHE_HOME": str(site.folder / "hosts.yml")}
    result = play(site.folder, "setup.yml", "--tags", "python_env", "--check", **caches)
    assert result.returncode != 0
    expected = (
        f"{site.folder}/hosts.yml/thunderhead on the controller cannot be used (Not a directory), and locks are kept"
    )
    assert expected in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_pyproject_with_a_project_beside_it(site: Site) -> None:
    make_project(site.folder / "near" / "lib", "lib")
    (site.folder / "near" / "app").mkdir()
    path = site.folder / "near" / "app" / "pyproject.toml"
    sources = '[tool.uv.sources]\nlib = { path = "../lib" }\n'
    path.write_text(f'[project]\nname = "x"\nversion = "1"\ndependencies = ["lib"]\n{sources}')
    result = site.setup("", "-e", f"python_env_requirements={path}")
    assert result.returncode == 0, result.stdout
    assert site.installed == {"lib"}


JOB = "20261122-173000-train-9f3a"


def test_the_project_that_a_file_lies_in(site: Site) -> None:
    """-e ., an archive and an index that the file names; what jobs and tools leave there later changes nothing."""
    mine = site.folder / "own"
    make_project(mine, "own")
    make_project(mine / "libs" / "boxed", "boxed")
    shutil.make_archive(str(mine / "libs" / "boxed-1.0"), "gztar", mine / "libs", "boxed")
    shutil.rmtree(mine / "libs" / "boxed")
    make_wheel(site.folder / "more" / "apart", "apart")
    more = site.url.replace("/simple/", "/more/").replace(PASSWORD, "${MORE_PASSWORD}")
    (mine / "requirements.txt").write_text(f"--extra-index-url {more}\napart\n./libs/boxed-1.0.tar.gz\n-e .\n")
    commit(mine)
    asked = ("setup.yml", "--tags", "python_env", "-e", f"python_env_requirements={mine}/requirements.txt")
    settings = {**site.caches, "MORE_PASSWORD": PASSWORD}
    result = play(site.folder, *asked, **settings)
    assert (result.returncode, site.installed) == (0, {"apart", "boxed", "own"}), result.stdout
    for name in (f"runs/{JOB}/job.json", f"runs/{JOB}/logs/rank0.log", "venv/pyvenv.cfg", "venv/lib/x.py"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).touch()
    assert "nothing changed" in play(site.folder, *asked, **settings).stdout


def test_a_project_and_its_locks(site: Site) -> None:
    """pyproject.toml with extras and groups, uv.lock, pylock.toml; of conda's file it is said what it is."""
    make_wheel(site.folder / "simple" / "pinned", "pinned")
    project = site.folder / "app"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = ["pinned"]\n'
        '[project.optional-dependencies]\nmore = ["other"]\n[dependency-groups]\ngpu = ["third"]\ndev = ["tiny"]\n'
    )
    environment = {"PATH": "/usr/bin:/bin", "UV_DEFAULT_INDEX": site.url, "UV_CACHE_DIR": site.caches["UV_CACHE_DIR"]}
    export = ["export", "--quiet", "--format=pylock.toml", "--no-emit-project", "--no-default-groups"]
    for command in (["lock", "--quiet"], [*export, "--output-file=pylock.toml"]):
        subprocess.run([UV, *command, "--python", sys.executable], cwd=project, env=environment, check=True)
    make_wheel(site.folder / "simple" / "pinned", "pinned", "1.1")
    more = {"python_env_extras": ["more"], "python_env_groups": ["gpu"]}
    for name, settings, expected in (
        ("pyproject.toml", more, {"pinned==1.1", "other==1.0", "third==1.0"}),
        ("uv.lock", more, {"pinned==1.0", "other==1.0", "third==1.0"}),
        ("pylock.toml", {}, {"pinned==1.0"}),
    ):
        result = site.setup("", "-e", json.dumps({"python_env_requirements": f"{project}/{name}", **settings}))
        assert result.returncode == 0, result.stdout
        assert set((site.folder / "node" / "requirements.txt").read_text().splitlines()[1:]) == expected, name
        assert site.installed == {one.partition("==")[0] for one in expected}
    (project / "environment.yml").write_text("name: x\nchannels: [conda-forge]\ndependencies:\n  - pytorch\n")
    result = site.setup("", "--check", "-e", f"python_env_requirements={project}/environment.yml")
    assert result.returncode != 0
    assert f"{project}/environment.yml is an environment of conda, and nodes are set up with" in result.stdout


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("lightning==2.6.2 --hash=sha256:HASH\n", "utf-8-sig", "line 1 asks for lightning 2.6.2, which was malware"),
        ("lightning==2.6.2 --hash=sha256:HASH\n", "utf-16", "line 1 asks for lightning 2.6.2, which was malware"),
        (
            "http://x/lightning%2D2.6.2-py3-none-any.whl\n",
            "utf-8",
            "line 1 asks for lightning 2.6.2, which was malware",
        ),
        (
            "-r INDEX/bad.txt\n",
            "utf-8",
            "lightning 2.6.2 and 2.6.3 were malware (GHSA-w37p-236h-pfx3), and neither is ever installed",
        ),
        (
            "wants==1.0\n",
            "utf-8",
            "lightning 2.6.2 and 2.6.3 were malware (GHSA-w37p-236h-pfx3), and neither is ever installed",
        ),
    ],
)
def test_malware_gets_in_by_no_way(site: Site, text: str, encoding: str, message: str) -> None:
    """What is checked is what is installed. The package here is an empty one of that name."""
    digest = make_wheel(site.folder / "simple" / "lightning", "lightning", "2.6.2")
    make_wheel(site.folder / "simple" / "wants", "wants", requires="lightning==2.6.2")
    (site.folder / "bad.txt").write_text("lightning==2.6.2\n")
    index = site.url.removesuffix("/simple/").replace(PASSWORD, "${BAD_PASSWORD}")
    path = site.folder / "encoded.txt"
    path.write_text(text.replace("HASH", digest).replace("INDEX", index), encoding)
    asked = ("setup.yml", "--tags", "python_env", "-e", f"python_env_requirements={path}")
    result = play(site.folder, *asked, **site.caches, BAD_PASSWORD=PASSWORD)
    assert result.returncode != 0
    assert message in result.stdout
    assert not list(site.folder.glob("node/envs/*/lib/*/site-packages/lightning*"))


def test_a_file_as_powershell_writes_it(site: Site) -> None:
    """R5."""
    path = site.folder / "powershell.txt"
    path.write_text("tiny==1.0\r\n", "utf-16")
    result = site.setup("", "-e", f"python_env_requirements={path}")
    assert (result.returncode, site.installed) == (0, {"tiny"}), result.stdout


def make_sdist(folder: Path, name: str, imports: str) -> None:
    """Make a package that each node has to build, with a build that needs another package and does not say so."""
    make_project(folder / f"{name}-1.0", name, imports)
    (folder / f"{name}-1.0" / "PKG-INFO").write_text(f"Metadata-Version: 2.2\nName: {name}\nVersion: 1.0\n")
    shutil.make_archive(str(folder / f"{name}-1.0"), "gztar", folder, f"{name}-1.0")
    shutil.rmtree(folder / f"{name}-1.0")


def test_packages_whose_build_needs_more_than_it_says(site: Site) -> None:
    """torch by itself or by its name, another by a setting of uv; each node builds them."""
    make_wheel(site.folder / "torches", "torch")
    hidden = "try:\n    import torch\nexcept ImportError:\n    raise SystemExit('install PyTorch first') from None"
    for name, imports in {"flash": "import torch", "hides": hidden, "odd": "import tiny"}.items():
        make_sdist(site.folder / "simple" / name, name, imports)
    text = "--find-links torches\ntorch==1.0\nflash\n"
    assert (site.setup(text).returncode, site.installed) == (0, {"torch", "flash"})
    failed = site.setup(f"{text}hides\n")
    assert failed.returncode != 0
    assert "install PyTorch first" in failed.stdout
    result = site.setup(f"{text}hides\n", "-e", "python_env_build_needs_torch=hides")
    assert (result.returncode, site.installed) == (0, {"torch", "flash", "hides"}), result.stdout
    failed = site.setup("odd\n")
    assert failed.returncode != 0
    expected = (
        "the build of odd needs another package, and does not declare it (ModuleNotFoundError: No module named 'tiny'"
    )
    assert expected in failed.stdout
    assert "; set python_env_uv_settings: {extra-build-dependencies: {odd: [tiny]}}" in failed.stdout
    settings = {"python_env_uv_settings": {"extra-build-dependencies": {"odd": ["tiny"]}}}
    result = site.setup("odd\n", "-e", json.dumps(settings))
    assert (result.returncode, site.installed) == (0, {"odd"}), result.stdout


def test_what_a_build_needs_comes_from_the_first_index(site: Site) -> None:
    """It has no hash: on the nodes a package of its name in any other index ran during the build."""
    make_sdist(site.folder / "simple" / "builds", "builds", "import helper; assert helper.OWN")
    make_wheel(site.folder / "simple" / "helper", "helper", "1.0", "OWN = True")
    mark = site.folder / "another's package ran"
    make_wheel(site.folder / "others" / "helper", "helper", "9.0", f"open({str(mark)!r}, 'w'); OWN = False")
    make_wheel(site.folder / "others" / "later", "later", "1.0")
    variables = {
        "python_env_extra_index_urls": [site.url],
        "python_env_index_url": site.url.replace("/simple/", "/others/"),
        "python_env_uv_settings": {"extra-build-dependencies": {"builds": ["helper"]}},
    }
    result = site.setup("builds\nlater\n", "-e", json.dumps(variables))
    assert (result.returncode, site.installed) == (0, {"builds", "later"}), result.stdout
    assert not mark.exists()


def test_a_build_beside_a_wheel_of_another_index(site: Site) -> None:
    """As torch, of an index that another has with other versions, beside a package that has no wheel."""
    for name in ("alone", "lonely"):
        make_sdist(site.folder / "simple" / name, name, "")
    make_wheel(site.folder / "first" / "tiny", "tiny", "0.9")
    folder = site.folder / "node-pip.conf"
    folder.write_text(f"[global]\nextra-index-url = {site.url.replace('/simple/', '/first/')}\n")
    (site.folder / "requirements.txt").write_text("tiny==1.0\nalone\nlonely\n")
    # The node asks its own index first, which has another tiny.
    result = play(site.folder, "setup.yml", "--tags", "python_env", **site.caches, PIP_CONFIG_FILE=str(folder))
    assert (result.returncode, site.installed) == (0, {"tiny", "alone", "lonely"}), result.stdout


def certified(folder: Path) -> Path:
    """Make a company's CA and a certificate of it for this machine; return the folder."""
    folder.mkdir()
    days = ["-days", "2", "-subj"]
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    for command in (
        [*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", *days, "/CN=Company"],
        [*new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=index"],
        [
            *("openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-out", "server.pem", "-extfile", "extensions"),
        ],
    ):
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_an_index_with_a_company_s_certificate(site: Site) -> None:
    """What the machine's pip.conf says of index and certificate counts, and uv_settings name it too."""
    folder = certified(site.folder / "company")
    make_wheel(site.folder / "company" / "simple" / "inside", "inside")
    handler = lambda *arguments: Quiet(*arguments, directory=str(folder))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = secure.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    index = f"https://127.0.0.1:{server.server_port}/simple/"
    (folder / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    (site.folder / "requirements.txt").write_text("inside==1.0\n")
    nothing = {"python_env_index_url": "", "python_env_requirements": f"{site.folder}/requirements.txt"}
    asked = ("setup.yml", "--tags", "python_env", "-e", json.dumps(nothing))
    settings = {**site.caches, "PIP_CONFIG_FILE": str(folder / "pip.conf"), "SSL_CERT_FILE": ""}
    refused = play(site.folder, *asked, **settings)
    assert refused.returncode != 0
    assert "On the controller, it does not trust the index's certificate (" in refused.stdout
    assert "put your company's CA into the system's store there" in refused.stdout
    named = json.dumps({"python_env_uv_settings": {"cert": f"{folder}/ca.pem"}})
    result = play(site.folder, *asked, "-e", named, **settings)
    assert (result.returncode, site.installed) == (0, {"inside"}), result.stdout
    (folder / "pip.conf").write_text(f"[global]\nindex-url = {index}\ncert = {folder}/ca.pem\n")
    (site.folder / "requirements.txt").write_text("inside==1.0 # again\n")
    result = play(site.folder, *asked, **settings)
    server.shutdown()
    assert (result.returncode, site.installed) == (0, {"inside"}), result.stdout


class Proxy(Quiet):
    """Takes requests for any host, and answers them from its folder."""

    def do_GET(self) -> None:
        self.path = urlsplit(self.path).path
        super().do_GET()


def test_a_proxy(site: Site) -> None:
    """Of the inventory, or of the machine's pip.conf; only it knows the index's name."""
    folder = site.folder / "behind"
    for name in ("first", "second"):
        make_wheel(folder / "simple" / f"{name}-behind", f"{name}_behind")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Proxy(*given, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = f"http://127.0.0.1:{server.server_port}"
    (folder / "pip.conf").write_text(f"[global]\nproxy = {proxy}\n")
    asked = ["setup.yml", "--tags", "python_env", "-e", "python_env_index_url=http://index.invalid/simple/"]
    names = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
    own = [f"--unset={one}" for name in names for one in (name, name.upper())]
    for name, more, settings in (
        ("first", ["-e", f"python_env_proxy={proxy}"], {}),
        ("second", [], {"PIP_CONFIG_FILE": str(folder / "pip.conf")}),
    ):
        (site.folder / "requirements.txt").write_text(f"{name}-behind==1.0\n")
        result = play(site.folder, *asked, *more, within=["env", *own], **site.caches, **settings)
        assert (result.returncode, site.installed) == (0, {f"{name}_behind"}), result.stdout
    server.shutdown()


def test_the_cache_of_a_node(site: Site) -> None:
    """Below cluster_dir, and bounded. Nodes on this machine share one, but under this name of the connection."""
    other = {"ansible_connection": "ansible.builtin.local"}
    asked = ("third==1.0\n", "-e", json.dumps({**other, "cluster_dir": f"{site.folder}/cached"}))
    assert site.setup(*asked).returncode == 0
    assert list((site.folder / "cached" / "cache" / "uv").iterdir())
    again = site.setup("third==1.0\ntiny==1.0\n", *asked[1:], "-e", "python_env_cache_max_mb=0")
    assert again.returncode == 0
    assert not list((site.folder / "cached" / "cache" / "uv").glob("wheels*"))
