import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import gang as gang_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Ending, Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from local_nodes import Connection, LocalNode, code, gang_of, until


class Logs:
    """Each rank's log in a folder, and what was shown live."""

    def __init__(self, folder: Path, nodes: list[LocalNode]) -> None:
        self.files = {node.host: RankLog(folder / f"{node.host}.log") for node in nodes}
        self.shown: dict[str, bytes] = {node.host: b"" for node in nodes}

    def show(self, node: Any, data: bytes) -> None:
        self.shown[node.host] += data

    def read(self, host: str) -> bytes:
        return self.files[host].path.read_bytes()


def followed(gang: Gang, logs: Logs, live: str = "node0", show: Any = None) -> dict[str, Ending]:
    return gang.follow(logs.files, lambda node: node.host in live, show or logs.show)


def by_rank(*scripts: str) -> str:
    """One script that does something else on every rank."""
    return f"import os, time\nexec({list(scripts)!r}[int(os.environ['NODE_RANK'])])\n"


@pytest.fixture(autouse=True)
def _quiet_ranks_are_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_module, "QUIET_SECONDS", 0.05)


# ------------------------------------------------------------------------------------------------------------ preparing


def test_all_nodes_are_prepared_and_ranked(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang = gang_of(list(reversed(nodes)), code(tmp_path / "code", ""))
    topology = gang.prepare()
    assert [(one.rank, one.host, one.address, one.interface) for one in topology.nodes] == [
        (0, "node1", "127.0.0.2", "lo"),
        (1, "node0", "127.0.0.1", "lo"),
    ]
    assert [node.jobs for node in nodes] == [["job-1"]] * 2


def test_a_dry_preparation_changes_nothing(nodes: list[LocalNode], tmp_path: Path) -> None:
    assert gang_of(nodes, code(tmp_path / "code", "")).prepare(dry=True).world_size == 2
    shutil.rmtree(nodes[1].directory / "env")
    with pytest.raises(JobError):
        gang_of(nodes, code(tmp_path / "code", "")).prepare(dry=True)
    assert [node.jobs for node in nodes] == [[], []]


@pytest.mark.parametrize("broken", [[0], [1], [0, 1]])
def test_if_one_node_cannot_nothing_is_left_on_any(nodes: list[LocalNode], tmp_path: Path, broken: list[int]) -> None:
    for number in broken:
        shutil.rmtree(nodes[number].directory / "env")
    with pytest.raises(JobError) as caught:
        gang_of(nodes, code(tmp_path / "code", "")).prepare()
    reasons = [
        f"node{number} was never set up: there is no {nodes[number].directory}/env/bin/python; "
        "run: ansible-playbook setup.yml"
        for number in broken
    ]
    separator = ". " if len(broken) == 1 else "\n"
    assert str(caught.value) == separator.join([*reasons, "Nothing was started on any node."]).replace(
        "setup.yml. ", "setup.yml. "
    )
    assert [node.jobs for node in nodes] == [[], []]


def test_a_node_without_an_answer_is_cleaned_up_too(nodes: list[LocalNode], tmp_path: Path) -> None:
    class LosesTheFirstReply(Connection):
        lost = False

        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            answer = super().exec_command(command, in_data)
            if b"'op': 'prepare'" in in_data and not self.lost:
                self.lost = True
                raise AnsibleConnectionFailure("Connection reset by peer")
            return answer

    nodes[1].connection = LosesTheFirstReply()
    with pytest.raises(JobError) as caught:
        gang_of(nodes, code(tmp_path / "code", "")).prepare()
    assert str(caught.value) == ("node1 is unreachable: Connection reset by peer. Nothing was started on any node.")
    assert [node.jobs for node in nodes] == [[], []]


def test_two_hosts_that_are_one(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].address = nodes[0].address
    with pytest.raises(JobError) as caught:
        gang_of(nodes, code(tmp_path / "code", ""))
    assert str(caught.value) == (
        "node0 and node1 have the same address 127.0.0.1, but every node needs its own; fix ansible_host or "
        "cluster_address in the inventory, or remove one of them"
    )


def test_a_busy_node_names_its_job_and_frees_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "import time; time.sleep(600)")
    nodes[1].start(bundle, job="other-job")
    with pytest.raises(JobError) as caught:
        gang_of(nodes, bundle).prepare()
    assert str(caught.value) == (
        "node1 runs job other-job, which trainer started at 2026-11-22T17:30:00+01:00, and a node runs one job at a "
        f"time; wait for it, end it there with: kill {nodes[1].supervisor()}, or leave the node out with "
        "--limit. Nothing was started on any node."
    )
    assert [node.jobs for node in nodes] == [[], ["other-job"]]
    assert nodes[1].follow(wait_seconds=0, job="other-job")[0]["state"] == "running"


def test_a_node_that_cannot_start_stops_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang = gang_of(nodes, code(tmp_path / "code", "import time; time.sleep(600)"))
    gang.prepare()
    (nodes[1].directory / "jobs" / "job-1.start.part").mkdir()
    with pytest.raises(JobError) as caught:
        gang.start()
    assert str(caught.value).startswith(f"node1 could not write {nodes[1].directory}/jobs/job-1.start: ")
    assert str(caught.value).endswith(". The job was stopped on every other node.")
    (nodes[1].directory / "jobs" / "job-1.start.part").rmdir()
    assert [node.supervisor() for node in nodes] == [None, None]
    assert nodes[1].jobs == []


# ------------------------------------------------------------------------------------------------------------ following


def test_every_rank_has_its_environment(nodes: list[LocalNode], tmp_path: Path) -> None:
    names = ["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "JOB_ID", "A", "B", "C"]
    script = f"import os, json, sys\nprint(json.dumps([os.environ.get(n) for n in {names!r}] + sys.argv[1:]))"
    for node in nodes:
        node.variables = {"A": f"inventory {node.host}", "B": "inventory"}
    gang = gang_of(nodes, code(tmp_path / "code", script), env={"B": "user", "C": "ü $x"}, args=["--lr", "a b"])
    gang.prepare()
    gang.start()
    logs = Logs(tmp_path, nodes)
    endings = followed(gang, logs, live="")
    assert [ending.state for ending in endings.values()] == ["succeeded", "succeeded"]
    port = str(nodes[0].master_port)
    assert [json.loads(logs.read(host)) for host in ("node0", "node1")] == [
        ["127.0.0.1", port, "2", str(rank), "2", "job-1", f"inventory node{rank}", "user", "ü $x", "--lr", "a b"]
        for rank in (0, 1)
    ]
    assert logs.shown == {"node0": b"", "node1": b""}


def test_the_first_that_fails_ends_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = by_rank("print('waiting'); time.sleep(600)", "time.sleep(0.5); raise SystemExit(7)")
    gang = gang_of(nodes, code(tmp_path / "code", script))
    gang.prepare()
    gang.start()
    began, logs = time.monotonic(), Logs(tmp_path, nodes)
    endings = followed(gang, logs)
    assert time.monotonic() - began < 6
    assert list(endings) == ["node0", "node1"]
    assert [(one.state, one.exit_code, one.signal) for one in endings.values()] == [
        ("stopped", 143, 15),
        ("failed", 7, None),
    ]
    assert endings["node1"].arrived < endings["node0"].arrived
    assert endings["node1"].seconds is not None and 0.4 < endings["node1"].seconds < 5
    assert logs.shown == {"node0": b"waiting\n", "node1": b""}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second between retries is a twentieth here."""
    real = time.sleep
    monkeypatch.setattr(gang_module.time, "sleep", lambda seconds: real(min(seconds, 0.05)))
    yield


class EverySecond(Connection):
    """Fails at every second poll: before it is sent, with its reply lost, or with half of its reply."""

    polls = 0

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if b"'op': 'follow'" not in in_data:
            return super().exec_command(command, in_data)
        self.polls += 1
        kind = self.polls % 6
        if kind == 1:
            raise AnsibleConnectionFailure("Connection refused")
        code, output, errors = super().exec_command(command, in_data)
        if kind == 3:
            raise AnsibleConnectionFailure("Connection reset by peer")
        if kind == 5:
            return 255, output[: len(output) - 7], b"client_loop: send disconnect: Broken pipe"
        return code, output, errors


@pytest.mark.usefixtures("_impatient")
def test_a_bad_connection_loses_and_repeats_nothing(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang_module, "CHUNK_BYTES", 997)
    noise = random.Random(3).randbytes(4000)
    project = tmp_path / "code"
    project.mkdir()
    (project / "noise").write_bytes(noise)
    script = (
        "import sys, time\ndata = open('noise', 'rb').read()\n"
        "for start in range(0, len(data), 200):\n"
        "    sys.stdout.buffer.write(data[start:start + 200]); sys.stdout.flush(); time.sleep(0.04)\n"
    )
    for node in nodes:
        node.connection = EverySecond()
    gang = gang_of(nodes, code(project, script))
    gang.prepare()
    gang.start()
    logs = Logs(tmp_path, nodes)
    endings = followed(gang, logs, live="node0 node1")
    assert [ending.state for ending in endings.values()] == ["succeeded", "succeeded"]
    assert [logs.read(node.host) for node in nodes] == [noise, noise]
    assert [logs.shown[node.host] for node in nodes] == [noise, noise]
    assert all(node.connection.polls > 6 for node in nodes)


class Cut(Connection):
    """Works until ``cut`` is set."""

    cut = False

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if self.cut:
            return 255, b"", b"ssh: connect to host 198.18.0.2 port 22: No route to host\r\n"
        return super().exec_command(command, in_data)


@pytest.mark.usefixtures("_impatient")
def test_a_node_that_stays_away_is_lost_and_ends_the_others(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang_module, "POLL_SECONDS", 0.3)
    cut = nodes[1].connection = Cut()
    gang = gang_of(nodes, code(tmp_path / "code", "import time; print(1); time.sleep(600)"), node_timeout_seconds=1)
    gang.prepare()
    gang.start()
    threading.Timer(0.5, lambda: setattr(cut, "cut", True)).start()
    began = time.monotonic()
    endings = followed(gang, Logs(tmp_path, nodes))
    assert 1 < time.monotonic() - began < 8
    assert [(one.state, one.note) for one in endings.values()] == [
        ("stopped", ""),
        ("lost", "is unreachable: ssh: connect to host 198.18.0.2 port 22: No route to host"),
    ]
    cut.cut = False


@pytest.mark.usefixtures("_impatient")
def test_a_node_that_freezes_is_lost(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_module, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(gang_module, "STOP_SECONDS", 1)
    thaw = threading.Event()

    class Frozen(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b"'op': 'follow'" in in_data or b"'op': 'stop'" in in_data:
                thaw.wait(30)
            return super().exec_command(command, in_data)

    nodes[1].connection = Frozen()
    gang = gang_of(nodes, code(tmp_path / "code", "import time; time.sleep(600)"), node_timeout_seconds=1)
    gang.prepare()
    gang.start()
    began = time.monotonic()
    endings = followed(gang, Logs(tmp_path, nodes))
    assert time.monotonic() - began < 8
    thaw.set()
    assert [(one.state, one.note) for one in endings.values()] == [
        ("stopped", ""),
        ("lost", f"gave no sign of life for {endings['node1'].note.split()[-2]} s"),
    ]


def test_a_job_that_was_killed_from_outside(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang = gang_of(nodes, code(tmp_path / "code", "import os, time; print(os.getpid()); time.sleep(600)"))
    gang.prepare()
    gang.start()
    until(lambda: nodes[1].follow(wait_seconds=0)[1])
    state, data = nodes[1].follow(wait_seconds=0)
    for pid in (state["pid"], int(data)):
        os.kill(pid, signal.SIGKILL)
    endings = followed(gang, Logs(tmp_path, nodes))
    assert [(one.state, one.exit_code, one.note) for one in endings.values()] == [
        ("stopped", 143, ""),
        ("lost", None, "lost the process that looked after it"),
    ]


def test_a_job_whose_folder_is_gone(nodes: list[LocalNode], tmp_path: Path) -> None:
    gang = gang_of(nodes, code(tmp_path / "code", by_rank("time.sleep(600)", "pass")))
    gang.prepare()
    gang.start()
    nodes[1].wait()
    shutil.rmtree(nodes[1].job_dir())
    endings = followed(gang, Logs(tmp_path, nodes))
    assert [(one.state, one.note) for one in endings.values()] == [("stopped", ""), ("lost", "has no job job-1")]


def test_a_slow_terminal_does_not_make_a_node_lost(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang_module, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(gang_module, "LINGER_SECONDS", 0)
    script = by_rank("for n in range(250):\n  print(n)\n  time.sleep(0.01)", "time.sleep(1)")
    gang = gang_of(nodes, code(tmp_path / "code", script), node_timeout_seconds=1)
    gang.prepare()
    gang.start()
    logs = Logs(tmp_path, nodes)

    def show(node: Any, data: bytes) -> None:
        if not logs.shown["node0"]:
            time.sleep(4)
        logs.show(node, data)

    endings = followed(gang, logs, show=show)
    assert [(one.state, one.note) for one in endings.values()] == [("succeeded", ""), ("succeeded", "")]
    assert logs.shown["node0"] == logs.read("node0") == b"".join(b"%d\n" % n for n in range(250))


def test_what_the_controller_holds_is_bounded(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang_module, "CHUNK_BYTES", 10_000)
    gang = gang_of(nodes, code(tmp_path / "code", "print('x' * 199_999)"))
    gang.prepare()
    gang.start()
    logs, sizes = Logs(tmp_path, nodes), []

    def show(node: Any, data: bytes) -> None:
        sizes.append(len(data))
        logs.show(node, data)

    followed(gang, logs, show=show)
    assert max(sizes) <= 10_000
    assert [len(logs.read(node.host)) for node in nodes] == [200_000, 200_000]
