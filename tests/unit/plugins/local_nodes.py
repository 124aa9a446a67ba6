# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cluster nodes that are folders on this machine. Everything about them is real but the connection, a local shell."""

import contextlib
import functools
import json
import os
import pwd
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent import contract
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import (
    cluster_directory,
    files,
    find_cluster_directory,
    node_lock,
    processes,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import has_systemd
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.job import Job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import LOADER
from requests_on_the_wire import taken_apart

PYTHON = os.path.realpath(sys.executable)
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(  # the kernel lets nobody but root become another account; CI is root, and runs these
    not IS_ROOT, reason="only root can act as another account; CI runs the tests as root"
)
starts_jobs = pytest.mark.skipif(  # under systemd the agent refuses jobs as root; CI has no systemd, and runs these
    IS_ROOT and has_systemd(), reason="under systemd, root runs no jobs as root; tests/molecule runs jobs there"
)
NOBODY = pwd.getpwnam("nobody").pw_uid
ME = pwd.getpwuid(os.geteuid()).pw_name
SLEEP = "import time\nprint('ready')\ntime.sleep(600)\n"
DAEMON = """\
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        open("daemon.pid.part", "w").write(str(os.getpid()))
        os.rename("daemon.pid.part", "daemon.pid")
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("daemon.pid"): time.sleep(0.01)
"""


COMPRESSING = threading.Lock()


def rewritten(data: bytes, changes: tuple[tuple[str, str], ...]) -> bytes:
    """Return what an agent's interpreter is given, with changes (old, new) to the text of the modules."""
    start, sent, rest = taken_apart(data)
    with COMPRESSING:
        own = compressed_anew(sent, changes)
    head, _newline, asked = rest.partition(b"\n")
    return b"%d\n%b%d %b\n%b%b" % (len(start), start, len(own), head.split()[1], own, asked)


@functools.cache
def compressed_anew(modules: bytes, changes: tuple[tuple[str, str], ...]) -> bytes:
    texts: dict[str, str] = json.loads(zlib.decompress(modules))
    for old, new in changes:
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    return zlib.compress(json.dumps(texts).encode())


class Connection:
    """As much of a connection plugin as a channel uses: each call is a real shell with a real agent."""

    become = None
    # The agent is told that there is no systemd: as root it would make units of the jobs where there is.
    changes: tuple[tuple[str, str], ...] = (("/run/systemd/system", "/run/systemd/absent"),)

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self.variables = variables  # the login's environment; None: this process's

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        told = rewritten(in_data, self.changes) if LOADER in shlex.split(shlex.split(command)[-1]) else in_data
        result = subprocess.run(shlex.split(command), input=told, capture_output=True, env=self.variables)
        return result.returncode, result.stdout, result.stderr

    def close(self) -> None:
        pass


class Altered(Connection):
    """Sends an agent in which some text is another: a constant, so that a test need not wait."""

    def __init__(self, *changes: tuple[str, str]) -> None:
        super().__init__()
        agent = [path.read_text() for path in Path(contract.__file__).parent.rglob("*.py")]
        assert all(any(old in text for text in agent) for old, _new in changes), "what is to be altered is nowhere"
        self.changes = (*Connection.changes, *changes)


APART = (
    ("REACH_SECONDS = 2.0", "REACH_SECONDS = 0.0"),
    ("for rank in self._connections.to_dial(now):", "for rank in ():"),
)
"""Changes by which supervisors do not connect to each other, as where the nodes have no network."""
NO_PYTHON = ('job_directory(request), str(reply["python"])', 'job_directory(request), "/no/such/python"')
"""A change by which the interpreter of the environment is gone."""
PLAN = {
    **{"rank": 0, "world_size": 1, "spares": 0, "gang_key": "00", "node_timeout_seconds": 5, "grace_seconds": 2},
    **{"stall_timeout_seconds": 0, "rendezvous_timeout_seconds": 0, "master_port": 29500},
    **{"launcher": "lightning", "gang": True, "devices": None, "checkpoint": "", "companion": {}},
    **{"checkpoint_variables": ["CKPT_PATH"], "retries": 0, "return_seconds": 0, "retries_any": False},
    **{"launcher_arguments": [], "arguments": ["train.py"], "variables": {}, "given": {}, "spec": {}},
}
"""What the only node of a job runs."""


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Have a folder that nobody may look into, not even this process."""
    folder.chmod(0)
    if IS_ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if IS_ROOT:
            os.seteuid(0)
        folder.chmod(0o755)


@dataclass
class LocalNode:
    """A node with a folder of its own."""

    directory: Path
    host: str = "node0"
    address: str = "127.0.0.1"
    master_port: int = field(default_factory=lambda: free_port())
    user: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str = PYTHON
    connection: Any = field(default_factory=Connection)

    def set_up(self) -> "LocalNode":
        """Do what setup.yml does, as far as jobs need it."""
        for name in ("env/bin", "jobs", "bundles", "tools/env/bin"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / find_cluster_directory.MARKER).write_text(cluster_directory.MARKER_TEXT.decode())
        (self.directory / "env" / "bin" / "python").symlink_to(self.python)
        return self

    def channel(self) -> Channel:
        return Channel(self.host, self.connection, self.python, "/bin/sh")

    def settings(self) -> NodeSettings:
        return NodeSettings(
            self.host, self.address, str(self.directory), self.master_port, self.user, env=dict(self.variables)
        )

    def job_dir(self, job: str = "job-1") -> Path:
        return self.directory / "jobs" / job

    def state(self, job: str = "job-1") -> dict[str, Any]:
        """Return what the supervisor wrote last; nobody on the node is asked."""
        return files.read_json(str(self.job_dir(job) / "state.json")) or {}

    @property
    def jobs(self) -> list[str]:
        """The jobs that have something here, started or not, or about to be."""
        names = os.listdir(self.directory / "jobs")
        return sorted({re.sub(r"\.(start|started|log)(\.\d+)?$", "", name) for name in names if "job" in name})

    def supervisor(self) -> int | None:
        """The process that holds this node for a job."""
        holder = node_lock.read_holder(str(self.directory / "jobs"))["id"]
        return node_lock.LockHolder(self.request("", job=holder)).pid()

    def request(self, op: str, bundle: Bundle | None = None, job: str = "job-1", **more: Any) -> dict[str, Any]:
        return {
            "op": op,
            "directory": str(self.directory),
            "user": self.user,
            "job": {"id": job, "user": "trainer", "start": "2026-11-22T17:30:00+01:00"},
            "host": self.host,
            "address": self.address,
            "master_port": None,
            "plan": PLAN,
            "because": "",
            "bundle": bundle.sha256 if bundle else "0" * 64,
            "packed": None,
            "size": bundle.size if bundle else 0,
            "dry": False,
            "seconds": 0,
            **more,
        }

    def ask(self, op: str, bundle: Bundle | None = None, payload: bytes = b"", **more: Any) -> dict[str, Any]:
        """Return the reply to a request that has no payload in its answer."""
        reply, data = self.channel().call(self.request(op, bundle, **more), payload)
        assert data == b""
        return reply

    def prepare(self, bundle: Bundle, job: str = "job-1") -> dict[str, Any]:
        reply = self.ask("prepare", bundle, job=job)
        if not reply["has_bundle"]:
            self.ask("receive_code", bundle, bundle.content, job=job)
        return reply

    def start(
        self,
        bundle: Bundle,
        job: str = "job-1",
        args: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        grace_seconds: float = 5,
    ) -> None:
        """Prepare and start ``train.py`` of the bundle, as the only node of a job."""
        launch = gang_of([self], bundle, id=job, args=args, env=variables or {}, grace_seconds=grace_seconds)
        launch.prepare()
        launch.start()

    def follow(self, offset: int = 0, job: str = "job-1", **more: Any) -> tuple[dict[str, Any], bytes]:
        poll = {"offset": offset, "wait_seconds": 5, "linger_seconds": 0, "max_bytes": 2**20}
        poll |= {"pace_seconds": 0, "quiet": False, "gang_changed": 0, **more}
        return self.channel().call(self.request("follow", job=job, **poll))

    def wait(self, job: str = "job-1") -> tuple[dict[str, Any], str]:
        """Return the last state of a job and its whole log."""
        log, state = b"", {"state": "running", "more": False}
        deadline = time.monotonic() + 30
        while state["state"] in contract.GOING_ON or state["more"]:
            assert time.monotonic() < deadline, f"the job does not end: {state}"
            state, data = self.follow(len(log), job)
            log += data
        return state, log.decode()

    def run(self, script: str, folder: Path, **more: Any) -> tuple[dict[str, Any], str]:
        """Return how a job of one script ended, and its log."""
        self.start(code(folder, script), **more)
        return self.wait(more.get("job", "job-1"))

    def end_all(self) -> None:
        """Leave no process behind, whatever a test did."""
        pid = self.supervisor()
        if pid:
            for number in (signal.SIGTERM, signal.SIGCONT):
                os.kill(pid, number)
            until(lambda: not self.supervisor(), 15)
        for job in os.listdir(self.directory / "jobs") if self.directory.exists() else []:
            processes.signal_processes(processes.marked(str(self.job_dir(job))), signal.SIGKILL)


class Unobserving:
    """Takes what happens to a job that is followed, and keeps only what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def output(self, node: Node) -> None:
        pass

    def update_state(self, node: Node, state: Mapping[str, Any]) -> None:
        pass

    def report_state(self) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def gang_of(nodes: Sequence[LocalNode], bundle: Bundle, **changes: Any) -> Launch:
    """Return the launch of ``train.py`` of the bundle on these nodes; its ``gang`` is their gang."""
    about: dict[str, Any] = {
        "id": "job-1",
        "user": "trainer",
        "start": "2026-11-22T17:30:00+01:00",
        "bundle": bundle,
        "script": "train.py",
        "args": [],
        "env": {},
        "node_timeout_seconds": 5,
        "grace_seconds": 2,
        **changes,
    }
    identity = Identity(start=about.pop("start"), id=about.pop("id"), user=about.pop("user"))
    settings = [node.settings() for node in nodes]
    return Launch(Job(identity=identity, **about), NodeGroup(settings, opener(nodes)))


def opener(nodes: Sequence[LocalNode]) -> Callable[[str], Channel]:
    """Return what opens channels to these nodes by name."""
    return lambda host: next(node for node in nodes if node.host == host).channel()


def code(folder: Path, script: str) -> Bundle:
    """Return a project with one script, train.py, as a bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(script)
    return make_bundle(folder, "train.py", 100)


def refused(node: LocalNode, *arguments: Any, **more: Any) -> str:
    """Return the words with which a node refuses what it is asked (see LocalNode.ask)."""
    with pytest.raises(NodeError) as caught:
        node.ask(*arguments, **more)
    return str(caught.value)


def full(path: Path | str, free: int, needed: int) -> str:
    """Return the words for a disk with ``free`` MB left where ``needed`` MB are."""
    return (
        f"has too little disk space in {path} ({free} MB free, and this job needs {needed} MB); free some there, or "
        "move cluster_dir to a larger disk"
    )


def daemon_of(node: LocalNode) -> int:
    """Return the process that DAEMON left behind in the first job."""
    return int((node.job_dir() / "work" / "daemon.pid").read_text())


def by_rank(*scripts: str) -> str:
    """Return one script that does something else on every rank."""
    return f"import os, time\nexec({list(scripts)!r}[int(os.environ['NODE_RANK'])])\n"


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for ``condition``, and fail if it does not come to be true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead but not yet reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def free_port() -> int:
    """Return a free TCP port outside the range that outgoing connections take theirs from."""
    first, last = ephemeral_ports()
    while True:
        port = random.randrange(1024, 65535)
        if not first <= port <= last:
            with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
                return port


def within_reach_of_nobody(python: str) -> bool:
    """Return whether that account can run a Python."""
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-I", "-S", "-c", ""], user="nobody").returncode == 0
    return False


@contextlib.contextmanager
def node_of_nobody() -> Iterator[LocalNode]:
    """A node whose jobs run as the account nobody; the test is skipped where that reaches no Python."""
    python = next(filter(within_reach_of_nobody, (PYTHON, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("the account nobody reaches no Python here")
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-") as name:  # unlike tmp_path, in reach of nobody
        os.chmod(name, 0o755)
        yield LocalNode(Path(name) / "node", user="nobody", python=python).set_up()
