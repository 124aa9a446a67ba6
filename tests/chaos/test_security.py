# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may see what, and what a node is left with: over SSH, with systemd, as users have it."""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import detached
from machines import CACHE, JOBS, NODE_TIMEOUT_SECONDS, PROJECT, USER, Cluster, Node

DIRECTORY = str(Path(JOBS).parent)
ENV, VAULT, INDEX = "planted-in-env-7301", "planted-in-vault-7302", "planted-in-url-7303"
SECRETS = (ENV, VAULT, INDEX)
EVERYTHING = ["/opt", "/etc", "/home", "/root", "/run", "/srv", "/tmp", "/usr/local", "/var"]

# Collects what it may read of other processes, until it is told to stop, and prints it.
SPY = """\
import os, time
seen = set()
while not os.path.exists("/tmp/enough"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                seen.add(open(f"/proc/{pid}/{name}", "rb").read())
            except OSError:
                pass
    time.sleep(0.1)
os.write(1, b"\\n".join(seen))
"""
# An index that takes its time to say that it has nothing: meanwhile one can look at who asks.
INDEX_SERVER = """\
import http.server, time
class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(2)
        self.send_error(404)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Index).serve_forever()
"""


@contextlib.contextmanager
def spied_on(cluster: Cluster) -> Iterator[list[str]]:
    """Have somebody without rights look at all processes of every node, and root at those of this machine meanwhile."""
    seen: list[str] = []
    for node in cluster.nodes:
        node.execute("rm", "-f", "/tmp/enough")
    spies = [
        subprocess.Popen(
            ["docker", "exec", "--user=nobody", node.container, "python3", "-c", SPY], stdout=subprocess.PIPE
        )
        for node in cluster.nodes
    ]
    enough = threading.Event()

    def look() -> None:
        while not enough.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.append(path.read_bytes().decode(errors="replace"))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield seen
    finally:
        enough.set()
        looker.join()
        for node in cluster.nodes:
            node.execute("touch", "/tmp/enough")
        for spy in spies:
            seen.append(spy.communicate(timeout=20)[0].decode(errors="replace"))


def holders(node: Node, secret: str, user: str = "root") -> set[str]:
    """Return the files on a node that this user can read a secret in. The secret is in no command line."""
    grep = ["grep", "-rlaF", "--devices=skip", "-f", "-", *EVERYTHING]
    found = node.execute(*grep, check=False, text=secret, user=user)
    return {line for line in found.splitlines() if line.startswith("/")}


def assert_in_none(words: str, where: str) -> None:
    for secret in SECRETS:
        assert secret not in words, f"{secret} in {where}"


def vault(folder: Path) -> list[str]:
    """Return the arguments that give a job_env from a vault, and an env from a file."""
    (folder / "password").write_text("open sesame")
    secrets = folder / "secrets.yml"
    secrets.write_text(json.dumps({"job_env": {"TOKEN": VAULT}}))
    tool = Path(sys.executable).parent / "ansible-vault"
    encrypt = [tool, "encrypt", "--vault-password-file", folder / "password", secrets]
    subprocess.run(encrypt, check=True, capture_output=True)
    (folder / "env.yml").write_text(json.dumps({"env": {"INLINE": ENV}}))
    return ["--vault-password-file", f"{folder}/password", "-e", f"@{secrets}", "-e", f"@{folder}/env.yml"]


def test_secrets_in_setup(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("there-is-no-such-package==1.0\n")
    index = {
        "python_env_index_url": f"http://user:{INDEX}@127.0.0.1:8099/simple/",
        "python_env_requirements": f"{tmp_path}/requirements.txt",
    }
    (tmp_path / "index.yml").write_text(json.dumps(index))
    given = [*vault(tmp_path), "--diff", "-vvv"]
    servers = [
        subprocess.Popen(["docker", "exec", node.container, "python3", "-c", INDEX_SERVER]) for node in cluster.nodes
    ]
    try:
        with spied_on(cluster) as seen:
            check = cluster.playbook("setup.yml", "--check", *given)
            assert check.wait() == 0, check.text
            refused = cluster.playbook("setup.yml", "--check", "-e", f"@{tmp_path}/index.yml", *given)
            assert refused.wait() == 2, refused.text
            fails = cluster.playbook("setup.yml", "--tags", "python_env", "-e", f"@{tmp_path}/index.yml", *given)
            assert fails.wait() == 2, fails.text
            (tmp_path / "requirements.txt").write_text("idna\n")
            installs = cluster.playbook("setup.yml", "--tags", "python_env", "-e", f"@{tmp_path}/index.yml", *given)
            assert installs.wait() == 0, installs.text
            setup = cluster.playbook("setup.yml", "--tags", "node_env", *given)
            assert setup.wait() == 0, setup.text
    finally:
        for node in cluster.nodes:
            node.execute("pkill", "-KILL", "-f", "http.server", check=False)
        for server in servers:
            server.wait()
    for said in (refused, fails):
        assert "nothing was changed on any node. On node0, " in said.words
    for command in ("compile", "install"):
        assert any(f"pip\0{command}" in words for words in seen), "uv was seen at work"
    assert_in_none("\n".join(seen), "a process list")
    assert_in_none(check.text + refused.text + fails.text + installs.text + setup.text, "what setup.yml printed")
    for node in cluster.nodes:
        assert holders(node, INDEX) == set()
        assert holders(node, VAULT) == {f"{DIRECTORY}/node.env"}
        assert holders(node, VAULT, "nobody") == set()
        assert_in_none(node.execute("journalctl", "--no-pager", "--all"), "the journal")


def test_secrets_in_a_job(cluster: Cluster, tmp_path: Path) -> None:
    with spied_on(cluster) as seen:
        run = cluster.run("knows.py", *vault(tmp_path), "-vvvv")
        for name, secret in (("TOKEN", VAULT), ("INLINE", ENV)):
            run.await_line(f"{name} {hashlib.sha256(secret.encode()).hexdigest()}")
        job = run.job
        status = cluster.playbook("status.yml", "-vvvv", *vault(tmp_path))
        assert status.wait() == 0, status.text
        for node in cluster.nodes:
            assert holders(node, ENV) == {f"{JOBS}/{job}/node.env"}
            assert holders(node, VAULT) <= {f"{JOBS}/{job}/node.env", f"{DIRECTORY}/node.env"}
            assert all(holders(node, secret, user) == set() for secret in SECRETS for user in ("nobody", "admin"))
            assert_in_none(node.execute("systemctl", "show", f"thunderhead-{job}.scope"), "the job's unit")
            assert_in_none(node.execute("journalctl", "--no-pager", "--all"), "the journal")
        stop = cluster.playbook("stop.yml", "-vvvv", "-e", f"job={job}", *vault(tmp_path))
        assert stop.wait() == 0, stop.text
        assert run.wait() != 0
    assert any("knows.py" in words for words in seen), "the job was seen at work"
    assert_in_none("\n".join(seen), "a process list")
    assert_in_none(run.text + status.text + stop.text, "what was printed")
    kept = [path for folder in (cluster.runs, CACHE / "ansible") for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "job.json" for path in kept)
    for path in kept:
        assert_in_none(path.read_bytes().decode(errors="replace"), str(path))


def test_modes_and_owners(cluster: Cluster) -> None:
    job = detached(cluster, "count.py", "-e", "script_args=1000", ready="line 1")
    node = cluster.nodes[0]
    find = ["find", DIRECTORY, "-path", f"{DIRECTORY}/envs/*", "-prune", "-o", "-printf", "%P %M %u\\n"]
    found = dict(line.split(" ", 1) for line in node.execute(*find).splitlines())
    bundle = next(path for path in found if path.startswith("bundles/"))
    mine = f"jobs/{job}"
    work = f"{mine}/work"
    expected = {
        "": "drwxr-xr-x root",
        "bin": "drwxr-xr-x root",
        "bin/uv": "-rwxr-xr-x root",
        "bundles": "drwx------ root",
        bundle: "-rw------- root",
        "env": "lrwxrwxrwx root",
        "envs": "drwxr-xr-x root",
        "home": f"drwx------ {USER}",
        "jobs": "drwx--x--x root",
        "jobs/current": "-rw-r--r-- root",
        "jobs/lock": "-rw------- root",
        mine: f"drwx------ {USER}",
        f"{mine}.log": f"-rw------- {USER}",
        f"{mine}.started": "-rw-r--r-- root",
        f"{mine}/gang.json": f"-rw------- {USER}",
        f"{mine}/log": f"-rw------- {USER}",
        f"{mine}/node.env": f"-rw------- {USER}",
        f"{mine}/spec.json": f"-rw------- {USER}",
        f"{mine}/state.json": f"-rw------- {USER}",
        work: f"drwx------ {USER}",
        f"{work}/count.py": f"-rw-r--r-- {USER}",
        "node.env": f"-rw------- {USER}",
        "cache": "drwx------ root",
        "requirements.txt": "-rw-r--r-- root",
        "tools": "drwxr-xr-x root",
        "tools/env": "lrwxrwxrwx root",
    }
    assert {path: found.get(path) for path in expected} == expected
    # In the cache uv keeps locks that all could write, could they get there.
    find = ["find", DIRECTORY, "-path", f"{DIRECTORY}/cache", "-prune", "-o"]
    assert node.execute(*find, "-perm", "/o+w", "!", "-type", "l", "-print") == ""
    assert node.execute("find", f"{DIRECTORY}/envs", f"{DIRECTORY}/tools", "!", "-user", "root") == "", (
        "a job cannot change what others import"
    )


def test_the_agent_is_not_left_on_the_node(cluster: Cluster) -> None:
    look = ["find", *EVERYTHING, "-xdev", "-path", "/var/log/journal", "-prune", "-o", "-print"]
    node = cluster.nodes[1]
    before = set(node.execute(*look).splitlines())
    run = cluster.run("succeeds.py")
    assert run.wait() == 0, run.text
    for name in ("status.yml", "logs.yml"):
        assert cluster.playbook(name).wait() == 0
    new = set(node.execute(*look).splitlines()) - before
    job = f"{JOBS}/{run.job}"
    inside = ("log", "node.env", "spec.json", "state.json", "work")
    own = {job, f"{job}.log", f"{job}.started", *(f"{job}/{name}" for name in inside)}
    code = (f"{job}/work", f"{DIRECTORY}/bundles")
    others = {path for path in new - own if not path.startswith(tuple(f"{folder}/" for folder in code))}
    assert own <= new and others == set()
    assert node.execute("find", "/home", "/root", "-path", "*/.ansible/tmp/*") == ""
    assert node.execute("pgrep", "--list-full", "python3", check=False) == ""


def test_a_host_key_that_has_changed(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.change_host_key()
    cluster.disconnect()
    project = ["-e", "script=succeeds.py", "-e", f"project_dir={PROJECT}"]
    for name, consequence in (("run.yml", "Nothing was started"), ("setup.yml", "Nothing was changed")):
        playbook = cluster.playbook(name, *project)
        assert playbook.wait() == 2
        assert "node1 has another SSH host key than the one in known_hosts" in playbook.words
        assert f"ssh-keygen -R {node.address}" in playbook.words
        assert f"{consequence} on any node" in playbook.words
    assert not cluster.runs.exists()


@pytest.mark.parametrize("command", ["stop.yml", "logs.yml"])
def test_traps_in_a_jobs_own_folder(cluster: Cluster, command: str) -> None:
    shadow = [node.execute("cat", "/etc/shadow") for node in cluster.nodes]
    job = detached(cluster, "plants.py", ready="ready")
    status = cluster.playbook("status.yml")
    assert status.wait() == 0, status.text
    ends = cluster.playbook(command, "-e", f"job={job}", *(["-e", "collect=all"] if command == "logs.yml" else []))
    if command == "logs.yml":
        ends.await_line(r"^\[0 node0\] +planted")
        cluster.nodes[0].kill_processes(job, "plants.py")
    ends.wait(60)
    cluster.await_nothing_left(job, 10)
    clean = cluster.playbook("clean.yml", "-e", "keep=0")
    assert clean.wait(60) == 0, clean.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", status.text + ends.text + clean.text)
    assert [node.execute("cat", "/etc/shadow") for node in cluster.nodes] == shadow
    for path in cluster.runs.rglob("*"):
        assert (path.is_file() or path.is_dir()) and not path.is_symlink()
        assert path.is_dir() or b"root:" not in path.read_bytes()
    assert not [name for node in cluster.nodes for name in node.jobs() if name.startswith(job)]


def test_a_job_that_puts_a_pipe_in_the_place_of_its_log(cluster: Cluster) -> None:
    run = cluster.run("spoils.py", "-e", "logs=all")
    for rank, node in enumerate(cluster.nodes):
        run.await_line(
            rf"^rank {rank} \({node.name}\) put something else in the place of its log \(Not a regular file: "
            rf"{JOBS}/[^ ]+/log\); what it prints is shown all the same"
        )
    time.sleep(2 * NODE_TIMEOUT_SECONDS)  # and after that the nodes still reply
    for rank, node in enumerate(cluster.nodes):
        run.await_line(rf"^\[{rank} {node.name}\] +after {4 * NODE_TIMEOUT_SECONDS - 4}")
        agents = node.execute("pgrep", "--full", "--list-full", "^[^ ]*python3 -I -S -c", check=False).splitlines()
        assert 2 <= len(agents) <= 4, "its supervisor, the inspector, and who looks at it now"
        node.touch(run.job, "enough")
    assert run.wait() == 0, run.text
    assert run.words.count("put something else") == len(cluster.nodes), "it is said once for each"
    cluster.await_nothing_left(run.job, 10)
