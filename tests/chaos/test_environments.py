# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What setup installs: nothing but what was locked, whoever is on the nodes, and wherever it was broken off."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import USER, Cluster, Node, until
from measuring import Timeline
from playbook import Playbook

DIRECTORY = "/opt/other"
"""A cluster_dir for these tests, so that the others' environments stay as they are."""
LINKS = "/srv/wheels"
FILE = "tiny-1.0-py3-none-any.whl"
CHANGED = "a package is not the one whose hash the lock has: it was changed on its way or at its source"
AS_IT_WAS = f"This node has no new environment, and {DIRECTORY}/env is as it was, because "

# Looks, until it is told to stop, for what this account may write and does not own, and prints it.
PLANTER = """\
import os, time
found = set()
while not os.path.exists("/tmp/enough"):
    time.sleep(0.05)
    for top in ("/opt/other", "/home", "/root", "/tmp", "/var/tmp"):
        for folder, folders, files in os.walk(top):
            for path in [folder, *(os.path.join(folder, name) for name in files)]:
                try:
                    about = os.lstat(path)
                except OSError:
                    continue
                if about.st_uid != os.getuid() and not about.st_mode & 0o1000 and os.access(path, os.W_OK):
                    found.add(path)
print(*found, sep="\\n")
"""


@dataclass
class Site:
    """The nodes, and packages for them."""

    cluster: Cluster
    folder: Path

    def wheel(self, content: str = "", size: int = 0, folder: str = "wheels") -> Path:
        """Make the package tiny: a module, and a file of so many null bytes, which take no room in the wheel."""
        path, about = self.folder / folder / FILE, "tiny-1.0.dist-info"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("tiny.py", content)
            wheel.writestr("tiny.bin", bytes(size))
            wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "".join(f"{one},,\n" for one in [*wheel.namelist(), f"{about}/RECORD"]))
        return path

    def setup(self, *arguments: str, text: str = "tiny\n", links: str = LINKS) -> Playbook:
        """Start a setup of the environment: with wheels that lie in a folder of the nodes, where one resolves."""
        (self.folder / "requirements.txt").write_text(text)
        given = [f"cluster_dir={DIRECTORY}", f"python_env_requirements={self.folder}/requirements.txt"]
        given.append(f"python_env_find_links={links}")
        options = [word for one in given for word in ("-e", one)]
        return self.cluster.playbook("setup.yml", "--tags", "python_env", *options, *arguments)

    def installed(self, node: Node) -> str:
        """Return the module that jobs would import, or why there is none."""
        return node.execute("sh", "-c", f"cat {DIRECTORY}/env/lib/*/site-packages/tiny.py 2>&1", check=False)

    @property
    def locks(self) -> Path:
        """What the controller has kept."""
        return self.folder / "cache" / "thunderhead" / "locks"


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    cache = tmp_path / "cache" / "thunderhead"
    cache.mkdir(parents=True)
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for uv in (usual / "thunderhead").glob("uv-*"):
        (cache / uv.name).symlink_to(uv)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Site(cluster, tmp_path)
    wheel = made.wheel()
    for node in cluster.nodes:
        node.execute(
            *("sh", "-ec"),
            f"mkdir -p {DIRECTORY}; cd {DIRECTORY}; mkdir -p bin jobs bundles; chmod 711 jobs; chmod 700 bundles; "
            "ln -f ../thunderhead/bin/uv bin; cp ../thunderhead/.thunderhead .",
        )
        node.put(wheel, LINKS)
    yield made
    for node in cluster.nodes:
        node.heal()
        node.execute("pkill", "-KILL", "-f", f"{DIRECTORY}/bin/uv", check=False)
        node.execute("rm", "-rf", DIRECTORY, LINKS)


# --------------------------------------------------------------------------------------------- what was locked, or not


def assert_refused(site: Site, setup: Playbook) -> None:
    """Fail if node1 has installed anything, or is left with anything."""
    assert setup.wait() == 2, setup.text
    assert f"{AS_IT_WAS}{CHANGED}" in setup.words
    node = site.cluster.nodes[1]
    assert "No such file" in site.installed(node)
    assert node.execute("ls", f"{DIRECTORY}/envs") == ""
    assert node.execute("ls", "-d", f"{DIRECTORY}/wheels", check=False) == ""


def test_a_package_that_is_another_on_a_node(site: Site, timeline: Timeline) -> None:
    site.cluster.nodes[1].put(site.wheel("evil = True\n", folder="evil"), LINKS)
    setup = site.setup()
    assert_refused(site, setup)
    assert "once for all nodes, on node0" in setup.text and "node2:" not in setup.text
    timeline.note("a node's folder of wheels has another package than the one that resolves", f"refused: {CHANGED}")


def test_a_package_or_a_lock_that_is_changed_on_the_controller(site: Site, timeline: Timeline) -> None:
    """What lies beside the requirements goes to the nodes from there."""
    text, evil = f"--find-links {site.folder}/wheels\ntiny\n", site.wheel("evil = True\n", folder="evil")
    check = site.setup("--check", "--limit", "node1", text=text, links="")
    assert check.wait() == 0, check.text
    (kept,), (lock,) = site.locks.glob(f"*/wheels/{FILE}"), site.locks.glob("*/3*.txt")
    shutil.copy(evil, kept)
    assert_refused(site, site.setup("--limit", "node1", text=text, links=""))
    shutil.copy(site.folder / "wheels" / FILE, kept)
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()
    lock.write_text(re.sub(r"sha256:\w+", f"sha256:{digest}", lock.read_text()))
    assert_refused(site, site.setup("--limit", "node1", text=text, links=""))
    timeline.note("a wheel or a lock on the controller is changed after the resolution", f"refused: {CHANGED}")


@contextlib.contextmanager
def planters(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Have two accounts without rights look for what they may write on every node meanwhile; give what they found."""
    found: dict[str, str] = {}
    for node in cluster.nodes:
        node.execute("rm", "-f", "/tmp/enough")
    accounts = {f"{user} on {node}": (user, node) for node in cluster.nodes for user in ("nobody", USER)}
    running = {
        name: subprocess.Popen(
            ["docker", "exec", f"--user={user}", node.container, "python3", "-c", PLANTER], stdout=subprocess.PIPE
        )
        for name, (user, node) in accounts.items()
    }
    try:
        yield found
    finally:
        for node in cluster.nodes:
            node.execute("touch", "/tmp/enough")
        for name, planter in running.items():
            found[name] = planter.communicate(timeout=60)[0].decode()


def test_what_other_accounts_do_on_the_nodes_meanwhile(site: Site, timeline: Timeline) -> None:
    cluster = site.cluster
    evil = site.wheel("evil = True\n", folder="evil")
    workspace = '[tool.uv.workspace]\nmembers = ["*/project"]\n'
    traps = {
        "pyproject.toml": f'{workspace}[tool.uv.sources]\ntiny = {{ path = "/tmp/evil/{FILE}" }}\n',
        "uv.toml": "this is no TOML",
        "constraints.txt": "tiny==2.0\n",
    }
    project = site.folder / "pyproject.toml"
    project.write_text('[project]\nname = "x"\nversion = "1"\ndependencies = ["tiny"]\n')
    for node in cluster.nodes:
        node.put(evil, "/tmp/evil")
        for name, text in traps.items():
            node.execute("sh", "-c", f"cat > /tmp/{name}", text=text, user="nobody")
    try:
        with planters(cluster) as found:
            setup = site.setup("-e", f"python_env_requirements={project}")
            assert setup.wait() == 0, setup.text
    finally:
        for node in cluster.nodes:
            node.execute("rm", "-rf", "/tmp/evil", *(f"/tmp/{name}" for name in traps))
    assert "once for all nodes, on node0" in setup.text
    for name, paths in found.items():
        # uv makes its locks so; whoever may read one could hold it as well.
        assert [path for path in paths.split() if not path.endswith("/.lock")] == [], name
    for node in cluster.nodes:
        assert site.installed(node) == ""
        assert node.execute("find", DIRECTORY, "!", "-user", "root") == ""
    timeline.note(
        "other accounts put a workspace and settings of uv into /tmp of the node that resolves",
        "they decide nothing, and may write nothing that setup uses",
    )


# --------------------------------------------------------------------------------------------------------- broken off


def is_at_work(node: Node) -> bool:
    return "pip install" in node.execute("pgrep", "-af", f"^{DIRECTORY}/bin/uv", check=False)


def test_a_setup_that_is_broken_off(site: Site, timeline: Timeline) -> None:
    cluster = site.cluster
    _head, *others = cluster.nodes
    for node in others:  # uv waits for a wheel that comes
        node.execute("sh", "-c", f"rm {LINKS}/{FILE}; mkfifo {LINKS}/{FILE}")
    first = site.setup()
    until(lambda: all(map(is_at_work, others)), "uv installs on node1 and node2", 120)
    first.kill()
    cluster.kill_connections()
    cluster.disconnect()
    assert all(map(is_at_work, others)), "nobody has told it that its ansible-playbook is gone"

    second = site.setup()
    assert second.wait() == 2, second.text
    remedy = f"pkill -f {DIRECTORY}/bin/uv"
    sentence = (
        f"another setup.yml installs in {DIRECTORY} at this moment; wait until it has ended, or if it was broken "
    )
    sentence += f"off, end what is left of it there: {remedy}, and run setup again"
    alike = rf"\[ERROR\]: (node1|node2): {AS_IT_WAS}{sentence}.* \[ERROR\]: (?!\1)node[12]: the same as \1 "
    assert re.search(alike, second.words), second.text

    others[0].power_off()  # in the middle of it
    others[0].heal()
    others[1].execute("sudo", *remedy.split(), check=False)  # sudo has that in its command line too
    until(lambda: not is_at_work(others[1]), "uv ends on node2")
    cluster.disconnect()
    run = cluster.run("succeeds.py", "-e", f"cluster_dir={DIRECTORY}")
    assert run.wait() == 2
    for node in others:
        told = f"{node} is not set up: there is no {DIRECTORY}/env/bin/python; run: ansible-playbook"
        assert told in run.words or f" {node}: the same as node" in run.words
    assert "Nothing was started on any node" in run.words

    for node in others:
        node.execute("rm", f"{LINKS}/{FILE}")
        node.put(site.folder / "wheels" / FILE, LINKS)
    third = site.setup()
    assert third.wait() == 0, third.text
    assert [site.installed(node) for node in cluster.nodes] == ["", "", ""]
    timeline.note(
        "setup.yml is killed while it installs, and a node loses power", "no job uses what is left; setup goes on"
    )


def test_a_disk_that_is_too_small_for_an_environment(site: Site, timeline: Timeline) -> None:
    node = site.cluster.nodes[1]
    node.small_disk("/opt/small", 20)
    node.put(site.wheel(size=60_000_000), LINKS)
    small = ("--limit", "node1", "-e", "cluster_dir=/opt/small")
    full = site.setup(*small)
    assert full.wait() == 2
    assert re.search(
        r"node1 has 2[01]\.\d MB free where its cluster_dir lies, and uv and the wheels that setup copies there take "
        r"\d+\.\d MB; make room there, or set cluster_dir .*Nothing was changed on any node\.",
        full.words,
    ), full.text
    node.execute("mount", "-o", "remount,size=80m", "/opt/small")
    full = site.setup(*small)
    assert full.wait() == 2
    assert "This node has no new environment, and /opt/small/env is as it was, because the disk is full (" in full.words
    assert node.execute("readlink", "/opt/small/env") == "/opt/thunderhead/env\n"
    assert node.execute("ls", "/opt/small/envs") == ""
    node.execute("mount", "-o", "remount,size=300m", "/opt/small")
    setup = site.setup(*small)
    assert setup.wait() == 0, setup.text
    assert node.execute("readlink", "/opt/small/env").startswith("envs/")
    timeline.note(
        "a node's disk is full while it installs", "it says so, keeps its environment, and has the new one later"
    )
