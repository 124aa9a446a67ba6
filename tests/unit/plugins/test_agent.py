import contextlib
import fcntl
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils import agent
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import Bundle, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from local_nodes import PYTHON, Connection, LocalNode, alive, code, free_port, until

IS_ROOT = os.geteuid() == 0
ME = pwd.getpwuid(os.geteuid()).pw_name
SLEEP = "import time\nprint('ready')\ntime.sleep(600)\n"


def refused(node: LocalNode, *arguments: Any, **more: Any) -> str:
    with pytest.raises(NodeError) as caught:
        node.ask(*arguments, **more)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ a job from end to end


def test_a_job_from_start_to_end(node: LocalNode, tmp_path: Path) -> None:
    script = "import sys, pathlib\nprint('hello', *sys.argv[1:])\npathlib.Path('out/a').parent.mkdir()\n"
    bundle = code(tmp_path / "code", script + "pathlib.Path('out/a').write_bytes(bytes(range(256)))\n")
    prepared = node.ask("prepare", bundle)
    assert prepared == {
        "address": "127.0.0.1",
        "interface": "lo",
        "python": str(node.directory / "env/bin/python"),
        "job_dir": str(node.job_dir()),
        "gate": f"{node.job_dir()}.start",
        "has_bundle": False,
    }
    node.ask("deliver", bundle, bundle.content)
    assert node.follow(wait_seconds=0)[0] == {"state": "prepared", "offset": 0, "more": False}
    node.ask("discard")
    node.start(bundle, args=["two words", "ü", "$HOME", ""])
    state, log = node.wait()
    assert log == "hello two words ü $HOME \n"
    assert state == {
        "state": "succeeded",
        "pid": state["pid"],
        "started": state["started"],
        "ended": state["ended"],
        "exit_code": 0,
        "signal": None,
        "offset": len(log.encode()),
        "more": False,
    }
    assert time.time() - 30 < state["started"] < state["ended"] <= time.time()
    assert not alive(state["pid"])
    assert node.ask("artifacts")["files"] == [("out/a", 256)]
    reply, data = node.channel().call(node.request("read", parts=[["out/a", 0, 2], ["out/a", 250, 99], ["no", 0, 5]]))
    assert (reply["lengths"], data) == ([2, 6, 0], bytes([0, 1, 250, 251, 252, 253, 254, 255]))


def test_code_that_a_node_has_is_not_sent_again(node: LocalNode, tmp_path: Path) -> None:
    node.run("print(1)", tmp_path / "code")
    bundle = code(tmp_path / "elsewhere", "print(1)")
    assert node.ask("prepare", bundle, job="job-2")["has_bundle"] is True
    assert (node.job_dir("job-2") / "work" / "train.py").read_text() == "print(1)"


def test_each_job_has_its_own_copy_of_the_code(node: LocalNode, tmp_path: Path) -> None:
    script = "open('train.py', 'w').write('changed')"
    assert [node.run(script, tmp_path / "code", job=job)[0]["exit_code"] for job in ("job-1", "job-2")] == [0, 0]


def test_the_code_arrives_as_it_was(node: LocalNode, tmp_path: Path) -> None:
    project = tmp_path / "code"
    code(project, "")
    (project / "lib").mkdir()
    (project / "lib" / "tool.sh").write_text("#!/bin/sh\n")
    (project / "lib" / "tool.sh").chmod(0o700)
    (project / os.fsdecode(b"latin-\xe9")).write_bytes(b"\xff")
    for name, target in {"in": "train.py", "out": "/etc/hostname", "up": "../../../..", "folder": "lib"}.items():
        (project / name).symlink_to(target)
    node.prepare(make_bundle(project, "train.py", 1))
    work = node.job_dir() / "work"
    assert sorted(os.listdir(work)) == sorted(os.listdir(project))
    assert {name: os.readlink(work / name) for name in ("in", "out", "up", "folder")} == {
        "in": "train.py",
        "out": "/etc/hostname",
        "up": "../../../..",
        "folder": "lib",
    }
    assert os.access(work / "lib" / "tool.sh", os.X_OK)
    assert stat.S_IMODE((work / "train.py").stat().st_mode) & 0o111 == 0


@pytest.mark.parametrize(
    ("script", "state", "exit_code", "signal_number"),
    [
        ("pass", "succeeded", 0, None),
        ("raise SystemExit(3)", "failed", 3, None),
        ("raise SystemExit(255)", "failed", 255, None),
        ("import os; os.kill(os.getpid(), 9)", "failed", 137, 9),
        ("import os; os.kill(os.getpid(), 15)", "failed", 143, 15),
        ("import os; os.abort()", "failed", 134, 6),
    ],
)
def test_how_a_job_ended(
    node: LocalNode, tmp_path: Path, script: str, state: str, exit_code: int, signal_number: int | None
) -> None:
    ended, _log = node.run(script, tmp_path / "code")
    assert (ended["state"], ended["exit_code"], ended["signal"]) == (state, exit_code, signal_number)


def test_a_python_that_is_gone(node: LocalNode, tmp_path: Path) -> None:
    ended, _log = node.run("pass", tmp_path / "code", python="/no/such/python")
    assert (ended["state"], ended["error"]) == ("failed", "did not start: No such file or directory: /no/such/python")


# ------------------------------------------------------------------------------------------------------ its environment


def test_a_job_starts_from_a_clean_environment(node: LocalNode, tmp_path: Path) -> None:
    dirty = {"LOCAL_RANK": "0", "RANK": "0", "GROUP_RANK": "0", "SLURM_NTASKS": "2", "TORCHELASTIC_RUN_ID": "x"}
    node.connection = Connection({**os.environ, **dirty, "SECRET_OF_THE_LOGIN": "x", "LANG": "C", "PYTHONPATH": "/x"})
    script = "import json, os\nprint(json.dumps(dict(os.environ)))"
    _state, log = node.run(script, tmp_path / "code", variables={"TOKEN": "it's ü\n$1", "HOME": "/else where"})
    assert json.loads(log) == {
        "HOME": "/else where",
        "USER": ME,
        "LOGNAME": ME,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": f"{node.directory}/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(node.master_port),
        "WORLD_SIZE": "1",
        "NODE_RANK": "0",
        "NUM_NODES": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "=lo",
        "JOB_ID": "job-1",
        "JOB_DIR": str(node.job_dir()),
        "TOKEN": "it's ü\n$1",
    }


def test_nobody_else_may_read_what_a_job_has(node: LocalNode, tmp_path: Path) -> None:
    node.run("open('result', 'w').write('x')", tmp_path / "code", variables={"TOKEN": "hush-hush-31"})
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in node.job_dir().iterdir()}
    assert modes == {"node.env": 0o600, "state.json": 0o600, "log": 0o600, "work": 0o700}
    assert stat.S_IMODE(node.job_dir().stat().st_mode) == 0o700
    others = [path for path in node.directory.rglob("*") if path.is_file() and b"hush-hush-31" in path.read_bytes()]
    assert others == [node.job_dir() / "node.env"]
    assert environment.parse((node.job_dir() / "node.env").read_text())["TOKEN"] == "hush-hush-31"


def test_the_process_list_shows_no_values(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP), variables={"TOKEN": "very-secret"})
    until(lambda: node.follow(wait_seconds=0)[1])
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{node.directory}/env/bin/python train.py" in shown
    assert "very-secret" not in shown


def test_a_script_has_no_input_and_both_its_outputs_are_kept_in_order(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import sys\nfor n in range(3):\n    print('out', n)\n    print('err', n, file=sys.stderr)\n"
        "print(sys.stdin.read(), end='')"
    )
    _state, log = node.run(script, tmp_path / "code")
    assert log.splitlines() == ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("present", "missing"),
    [("", ""), (".", "/env/bin/python"), ("jobs", "/env/bin/python"), ("env/bin/python", "/env/bin/python")],
)
def test_a_node_that_was_never_set_up(tmp_path: Path, present: str, missing: str) -> None:
    directory = tmp_path / "node"
    if present == "env/bin/python":
        LocalNode(directory).set_up()
        (directory / "jobs").rmdir()
    elif present:
        (directory / present).mkdir(parents=True)
    assert refused(LocalNode(directory), "prepare") == (
        f"node0 was never set up: there is no {directory}{missing}; run: ansible-playbook setup.yml"
    )
    assert directory.exists() is bool(present)


BUSY = (
    "node0 runs job job-1, which trainer started at 2026-11-22T17:30:00+01:00, and a node runs one job at a time; wait "
    "for it, end it there with: kill PID, or leave the node out with --limit"
)


def without_pid(message: str) -> str:
    return re.sub(r"kill (\d+|\?)", "kill PID", message)


def test_a_second_job_is_refused_while_one_runs(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", SLEEP)
    node.start(bundle)
    assert without_pid(refused(node, "prepare", bundle, job="job-2")) == BUSY
    assert node.jobs == ["job-1"]
    node.ask("stop", grace_seconds=5)
    assert node.ask("prepare", bundle, job="job-2")["has_bundle"]


def test_a_prepared_job_holds_the_node_until_it_is_discarded(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    assert without_pid(refused(node, "prepare", bundle, job="job-2")) == BUSY
    assert node.ask("prepare", bundle, job="job-2", dry=True)["has_bundle"], "a look does not mind"
    node.ask("discard")
    assert node.prepare(bundle, "job-2")["job_dir"] == str(node.job_dir("job-2"))


def test_a_prepared_job_whose_controller_vanished_is_given_up(node: LocalNode, tmp_path: Path) -> None:
    class Hasty(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            assert b"GATE_SECONDS = 300" in in_data
            return super().exec_command(command, in_data.replace(b"GATE_SECONDS = 300", b"GATE_SECONDS = 0.3"))

    node.connection = Hasty()
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    until(lambda: not node.supervisor())
    assert node.jobs == []
    node.prepare(bundle, "job-2")


def test_a_prepared_job_whose_supervisor_was_killed_holds_nothing(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    supervisor = node.supervisor()
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not node.supervisor())
    assert node.follow(wait_seconds=0)[0]["state"] == "lost"
    node.prepare(bundle, "job-2")


def test_who_holds_a_node_may_be_unknown(node: LocalNode, tmp_path: Path) -> None:
    with open(node.directory / "jobs" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refused(node, "prepare", code(tmp_path / "code", "")) == (
            "node0 runs job ?, which ? started at ?, and a node runs one job at a time; wait for it, end it there "
            "with: kill ?, or leave the node out with --limit"
        )


def test_a_look_does_not_keep_a_job_out(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.run("", tmp_path / "code")
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            node.follow(wait_seconds=0.2)

    watchers = [threading.Thread(target=look) for _number in range(2)]
    for watcher in watchers:
        watcher.start()
    for number in range(2, 8):
        node.ask("prepare", bundle, job=f"job-{number}")
        node.ask("discard", job=f"job-{number}")
    ended.set()
    for watcher in watchers:
        watcher.join()


def test_of_jobs_that_come_at_the_same_moment_one_is_let_in(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    outcomes: list[str] = []

    def prepare(number: int) -> None:
        try:
            node.ask("prepare", bundle, job=f"job-{number}")
            outcomes.append("prepared")
        except NodeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("prepared") == 1
    held = re.compile(re.escape(BUSY).replace("job\\-1", r"job-\d").replace("PID", r"(\d+|\?)"))
    assert all(held.fullmatch(outcome) for outcome in outcomes if outcome != "prepared"), outcomes
    assert len(node.jobs) == 1


def test_a_look_changes_nothing(node: LocalNode, tmp_path: Path) -> None:
    before = sorted(node.directory.rglob("*"))
    node.ask("prepare", code(tmp_path / "code", ""), dry=True)
    node.ask("inspect")
    assert sorted(node.directory.rglob("*")) == before


def test_a_job_that_is_not_here(node: LocalNode) -> None:
    for op in ("follow", "artifacts", "read"):
        assert refused(node, op, parts=[], offset=0) == "node0 has no job job-1"
    assert refused(node, "stop", grace_seconds=1) == "node0 has no job job-1"


@pytest.mark.parametrize("damage", ["other content", "half of it", "garbage", "nothing"])
def test_a_damaged_bundle_leaves_nothing(node: LocalNode, tmp_path: Path, damage: str) -> None:
    bundle = code(tmp_path / "code", "print(1)\n" * 500)
    payload = {
        "other content": code(tmp_path / "other", "print(2)").content,
        "half of it": bundle.content[: len(bundle.content) // 2],
        "garbage": b"\0" * 100,
        "nothing": b"",
    }[damage]
    node.ask("prepare", bundle)
    with pytest.raises(NodeError) as caught:
        node.ask("deliver", bundle, payload)
    assert str(caught.value) == "node0 received a bundle that does not match its SHA-256; run the playbook again"
    assert node.jobs == list((node.directory / "bundles").iterdir()) == []
    node.prepare(bundle, "job-2")


def test_an_address_that_is_not_here(tmp_path: Path) -> None:
    message = refused(LocalNode(tmp_path, address="198.18.255.254"), "inspect")
    assert re.fullmatch(
        r"node0 does not hold the address 198\.18\.255\.254 on any interface \(it has: .+\); set cluster_address for "
        "it in the inventory to the address its peers reach",
        message,
    )


INTERFACES = [("lo", "127.0.0.1", True), ("eth0", "198.18.0.7", False), ("eth1", "198.19.0.7", False)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("198.19.0.7", ("198.19.0.7", "eth1")),
        (None, ("198.18.0.7", "eth0")),
        ("127.0.0.1", ("127.0.0.1", "lo")),
        ("127.0.0.77", ("127.0.0.77", "lo")),
        (
            "198.18.0.8",
            "does not hold the address 198.18.0.8 on any interface (it has: 198.18.0.7 (eth0), 198.19.0.7 "
            "(eth1)); set cluster_address for it in the inventory to the address its peers reach",
        ),
    ],
)
def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch, wanted: str | None, found: Any) -> None:
    monkeypatch.setattr(agent, "network_addresses", lambda: INTERFACES)
    monkeypatch.setattr(agent, "default_route_address", lambda: "198.18.0.7")
    if isinstance(found, tuple):
        assert agent.locate_address(wanted) == found
    else:
        with pytest.raises(agent.Refusal) as caught:
            agent.locate_address(wanted)
        assert str(caught.value) == found


def test_a_node_without_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "default_route_address", lambda: None)
    with pytest.raises(agent.Refusal) as caught:
        agent.locate_address(None)
    assert str(caught.value) == "has no network address besides loopback; set cluster_address for it in the inventory"


def test_addresses_are_those_of_this_machine() -> None:
    found = agent.network_addresses()
    assert ("lo", "127.0.0.1", True) in found
    assert all(interface in os.listdir("/sys/class/net") for interface, _address, _loopback in found)
    route = agent.default_route_address()
    assert route is None or route in [address for _interface, address, _loopback in found]


# ---------------------------------------------------------------------------------------------------------- MASTER_PORT


@pytest.mark.parametrize("where", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_port_that_is_taken_names_the_process(node: LocalNode, tmp_path: Path, where: str) -> None:
    port, family = free_port(), socket.AF_INET6 if ":" in where else socket.AF_INET
    try:
        listener = socket.create_server((where, port), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        name = Path("/proc/self/comm").read_text().strip()
        message = refused(node, "prepare", code(tmp_path / "code", ""), master_port=port)
    assert message == (
        f"node0 cannot be the head: MASTER_PORT {port} is taken by {name} (process {os.getpid()}); end that process, "
        "or set cluster_master_port in the inventory to a free port"
    )
    assert node.jobs == []


def test_a_port_that_is_bound_but_not_listened_on(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", port))
        message = refused(node, "prepare", code(tmp_path / "code", ""), master_port=port)
    assert message == (
        f"node0 cannot be the head: MASTER_PORT {port} is taken by a socket that does not listen; end that process, or "
        "set cluster_master_port in the inventory to a free port"
    )


def test_a_port_just_left_by_the_last_job_is_free(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _address = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.recv(1)
    node.ask("prepare", code(tmp_path / "code", ""), master_port=port)


def test_only_the_head_needs_the_port(node: LocalNode, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        node.ask("prepare", code(tmp_path / "code", ""), master_port=None)


@pytest.mark.parametrize("op", ["prepare", "inspect"])
def test_a_port_of_outgoing_connections(node: LocalNode, tmp_path: Path, op: str) -> None:
    first, last = agent.ephemeral_ports()
    port = next(port for port in range(last, first, -1) if port not in agent.reserved_ports())
    assert refused(node, op, code(tmp_path / "code", ""), master_port=port) == (
        f"node0 hands out port {port} to outgoing connections (net.ipv4.ip_local_port_range is {first} to {last}), so "
        "it would be taken one day; set cluster_master_port in the inventory to a port "
        f"below {first}"
    )


@pytest.mark.parametrize(
    ("port", "allowed"), [(32767, True), (32768, False), (60999, False), (61000, True), (40000, True)]
)
def test_the_bounds_of_that_range(monkeypatch: pytest.MonkeyPatch, port: int, allowed: bool) -> None:
    monkeypatch.setattr(agent, "ephemeral_ports", lambda: (32768, 60999))
    monkeypatch.setattr(agent, "reserved_ports", lambda: {40000})
    with contextlib.nullcontext() if allowed else pytest.raises(agent.Refusal):
        agent.check_port_range(port)


@pytest.mark.parametrize(
    ("text", "ports"),
    [("\n", set()), ("8080\n", {8080}), ("8080,40000-40003\n", {8080, 40000, 40001, 40002, 40003})],
)
def test_reserved_ports(monkeypatch: pytest.MonkeyPatch, text: str, ports: set[int]) -> None:
    monkeypatch.setattr(agent, "open", lambda _path: io.StringIO(text), raising=False)
    assert agent.reserved_ports() == ports


def test_a_privileged_port() -> None:
    with pytest.raises(agent.Refusal) as caught:
        agent.check_port_free(1, uid=1000)
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    assert str(caught.value) == (
        "cannot be the head: an unprivileged job may not listen on port 1; set cluster_master_port in the "
        f"inventory to a port of {first} or more"
    )


# ------------------------------------------------------------------------------------------------------------- the disk


def full(path: Path | str, free: int, needed: int) -> str:
    return (
        f"has too little disk space in {path} ({free} MB free, and this job needs {needed} MB); free some there, or "
        "move cluster_dir to a larger disk"
    )


@pytest.mark.parametrize(
    ("free_mb", "inodes", "allowed"),
    [(17, (100, 10), True), (16, (100, 10), True), (15, (100, 10), False), (17, (100, 0), False), (17, (0, 0), True)],
)
def test_space(monkeypatch: pytest.MonkeyPatch, free_mb: int, inodes: tuple[int, int], allowed: bool) -> None:
    room = SimpleNamespace(f_bavail=free_mb * 256, f_frsize=4096, f_files=inodes[0], f_favail=inodes[1])
    monkeypatch.setattr(agent.os, "statvfs", lambda _path: room)
    if allowed:
        agent.check_space("/opt", 2**24)
    else:
        with pytest.raises(agent.Refusal) as caught:
            agent.check_space("/opt", 2**24)
        assert str(caught.value) == full("/opt", free_mb, 16)


def test_a_job_larger_than_the_disk(node: LocalNode) -> None:
    message = refused(node, "prepare", size=2**60)
    assert re.fullmatch(re.escape("node0 " + full(node.directory, 0, 2**41 + 16)).replace("\\(0", r"\(\d+"), message)
    assert node.jobs == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "thunderhead-test", str(place)]
    if not IS_ROOT or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_while_the_code_arrives(tiny_disk: Path) -> None:
    node = LocalNode(tiny_disk / "node").set_up()
    data = os.urandom(25 * 2**20)
    node.ask("prepare")
    with pytest.raises(NodeError) as caught:
        node.ask(
            "deliver",
            payload=zlib.compress(data, 0),
            bundle=Bundle(hashlib.sha256(data).hexdigest(), b"", 0, None, None),
        )
    assert str(caught.value) == (
        f"node0 has too little disk space in {node.directory} (No space left on device); free some there, or move "
        "cluster_dir to a larger disk"
    )
    assert node.jobs == list((node.directory / "bundles").iterdir()) == []


def test_a_disk_that_is_full_before(tiny_disk: Path, tmp_path: Path) -> None:
    node = LocalNode(tiny_disk / "node").set_up()
    (tiny_disk / "data").write_bytes(bytes(10 * 2**20))
    message = refused(node, "prepare", code(tmp_path / "code", ""))
    assert re.fullmatch(re.escape("node0 " + full(node.directory, 0, 16)).replace("\\(0", r"\((9|10)"), message)


# ------------------------------------------------------------------------------------------------------------- the user


def test_a_user_that_does_not_exist(node: LocalNode) -> None:
    node.user = "no-such-user"
    assert refused(node, "prepare") == "node0 has no user no-such-user; run: ansible-playbook setup.yml"


def test_a_user_that_one_may_not_become(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(agent.os, "geteuid", lambda: nobody.pw_uid)
    with pytest.raises(agent.Refusal) as caught:
        agent.User("root")
    assert str(caught.value) == (
        "cannot run jobs as root: the connection's user is nobody and may not become another; allow sudo "
        "(ansible_become), or set job_user to that name"
    )


def test_root_runs_no_jobs_as_root_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.os, "geteuid", lambda: 0)
    monkeypatch.setattr(agent, "has_systemd", lambda: True)
    with pytest.raises(agent.Refusal) as caught:
        agent.User("")
    assert str(caught.value) == (
        "would run jobs as root, but they run unprivileged; set job_user in the inventory to another account, or "
        "ansible_become to false to run them as the account Ansible connects as"
    )


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every account can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def within_reach_of_nobody(python: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-I", "-S", "-c", ""], user="nobody").returncode == 0
    return False


@pytest.mark.skipif(not IS_ROOT, reason="only root starts jobs as somebody else")
def test_a_job_of_an_unprivileged_account(open_place: Path, tmp_path: Path) -> None:
    pythons = [python for python in (PYTHON, "/usr/bin/python3") if within_reach_of_nobody(python)]
    if not pythons:
        pytest.skip("no Python is within the reach of other accounts")
    node = LocalNode(open_place / "node", user="nobody", python=pythons[0]).set_up()
    os.chmod(node.directory / "bundles", 0o700)
    script = (
        "import os\n"
        "print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.environ['USER'], oct(os.umask(0)))\n"
        "open('result', 'w').write('x')\n"
        "os.symlink('/etc/shadow', 'shadow')\n"
        "try:\n"
        "    os.setuid(0)\n"
        "except PermissionError:\n"
        "    print('stays')\n"
    )
    try:
        state, log = node.run(script, tmp_path / "code", variables={"TOKEN": "x"})
    finally:
        node.end_all()
    account = pwd.getpwnam("nobody")
    assert state["state"] == "succeeded", log
    groups = os.getgrouplist("nobody", account.pw_gid)
    assert log == f"{account.pw_uid} {account.pw_uid} {account.pw_gid} {groups} nobody 0o22\nstays\n"
    owners = {path.lstat().st_uid for path in [node.job_dir(), *node.job_dir().rglob("*")]}
    assert owners == {account.pw_uid}
    assert node.ask("artifacts")["files"] == [("result", 1)]
    reply, data = node.channel().call(
        node.request("read", parts=[["shadow", 0, 99], ["../../../../etc/shadow", 0, 99]])
    )
    assert (reply["lengths"], data) == ([0, 0], b"")


# ------------------------------------------------------------------------------------------------------ following a job


def test_the_log_from_any_offset_in_any_pieces(node: LocalNode, tmp_path: Path) -> None:
    node.run("print('0123456789' * 10, end='')", tmp_path / "code")
    whole, offset, polls = b"", 0, 0
    more = True
    while more:
        reply, data = node.follow(offset, max_bytes=33)
        assert reply["offset"] == offset + len(data)
        whole, offset, more, polls = whole + data, reply["offset"], reply["more"], polls + 1
    assert (whole, polls) == (b"0123456789" * 10, 4)
    assert node.follow(95)[1] == b"56789"
    assert node.follow(100)[1] == b""


def test_a_poll_waits_for_news(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('news')\ntime.sleep(600)"
    )
    node.start(code(tmp_path / "code", script))
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=0.5)
    assert (reply["state"], reply["offset"], reply["more"], data) == ("running", 0, False, b"")
    assert time.monotonic() - began >= 0.5
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=30)
    assert (reply["state"], data) == ("running", b"news\n")
    assert time.monotonic() - began < 10


def test_a_poll_gathers_what_comes_in_quick_succession(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import time\nfor n in range(100):\n  print(n)\n  time.sleep(0.02)"))
    _reply, data = node.follow(wait_seconds=30, linger_seconds=0.5)
    assert 10 < data.count(b"\n") < 60


def test_a_quiet_poll_waits_for_much_or_for_the_end(node: LocalNode, tmp_path: Path) -> None:
    script = "import pathlib, time\nprint('x' * 99)\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    node.start(code(tmp_path / "code", script))
    until(lambda: node.follow(wait_seconds=0)[1])
    began = time.monotonic()
    assert node.follow(wait_seconds=30, quiet=True, max_bytes=50)[1] == b"x" * 50, "enough has gathered"
    assert time.monotonic() - began < 10
    assert len(node.follow(wait_seconds=0.5, quiet=True, max_bytes=1000)[1]) == 100
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    assert node.follow(100, wait_seconds=30, quiet=True)[0]["state"] == "succeeded"
    assert time.monotonic() - began < 10


# ----------------------------------------------------------------------------------------------- nothing is left behind

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
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n"


def daemon_of(node: LocalNode) -> int:
    return int((node.job_dir() / "work" / "daemon.pid").read_text())


def test_a_daemon_ends_with_its_script(node: LocalNode, tmp_path: Path) -> None:
    state, _log = node.run(DAEMON, tmp_path / "code")
    assert (state["state"], state["exit_code"]) == ("succeeded", 0)
    assert not alive(daemon_of(node))


def test_a_daemon_that_is_deaf_ends_with_its_script(node: LocalNode, tmp_path: Path) -> None:
    deaf = DAEMON.replace("os.setsid()", "os.setsid(); import signal; signal.signal(15, signal.SIG_IGN)")
    began = time.monotonic()
    node.run(deaf, tmp_path / "code")
    assert not alive(daemon_of(node))
    assert time.monotonic() - began < 5


def test_stop_ends_everything_at_once(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DAEMON + SLEEP))
    until(lambda: node.follow(wait_seconds=1)[1])
    daemon, supervisor = daemon_of(node), node.follow(wait_seconds=0)[0]["pid"]
    assert alive(daemon) and alive(supervisor)
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=20)
    assert time.monotonic() - began < 5
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 143, 15)
    assert not alive(daemon) and not alive(supervisor)


def test_what_ignores_sigterm_is_killed_after_the_grace(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DEAF), grace_seconds=0.5)
    until(lambda: node.follow(wait_seconds=1)[1])
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 137, 9)


def test_what_was_stopped_has_not_succeeded(node: LocalNode, tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('ready')\ntime.sleep(600)\n"
    node.start(code(tmp_path / "code", polite))
    until(lambda: node.follow(wait_seconds=1)[1])
    state = node.ask("stop", grace_seconds=5)
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 0, None)


def test_stop_after_the_end_changes_nothing(node: LocalNode, tmp_path: Path) -> None:
    before, _log = node.run("raise SystemExit(4)", tmp_path / "code")
    state = node.ask("stop", grace_seconds=5)
    assert state == {key: value for key, value in before.items() if key not in ("offset", "more")}
    assert state["state"] == "failed"


def test_a_supervisor_that_vanished_is_a_lost_job(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP))
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    reply, data = node.follow(wait_seconds=0)
    os.kill(reply["pid"], signal.SIGKILL)
    os.kill(int(data.split()[0]), signal.SIGKILL)
    state, log = node.wait()
    assert state["state"] == "lost"
    assert log.endswith("ready\n")


def test_discard_undoes_prepare(node: LocalNode, tmp_path: Path) -> None:
    node.prepare(code(tmp_path / "code", ""))
    assert node.ask("discard") == {}
    assert node.jobs == []
    assert node.ask("discard") == {}, "again, or of a job that never was"


def test_discard_leaves_a_job_alone_that_has_started(node: LocalNode, tmp_path: Path) -> None:
    node.run("print(1)", tmp_path / "code")
    node.ask("discard")
    assert node.wait()[1] == "1\n"


def test_discard_leaves_the_hold_of_another_job_alone(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    node.prepare(bundle)
    node.ask("discard", job="job-2")
    assert without_pid(refused(node, "prepare", bundle, job="job-3")) == BUSY


# ----------------------------------------------------------------------------------------------------------- collecting


def test_artifacts_are_what_the_job_wrote(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import os, helper\n"
        "os.makedirs('out/deep'); os.mkdir('empty'); os.mkfifo('pipe')\n"
        "for name in ('out/deep/b', 'a', 'unchanged'): open(name, 'a').write(name)\n"
        "os.symlink('/etc/passwd', 'link'); os.symlink('/etc', 'out/folder')\n"
        "open(b'latin-\\xe9', 'w').close()\n"
    )
    project = tmp_path / "code"
    code(project, script)
    for name in ("helper.py", "data.csv", "unchanged"):
        (project / name).write_text("")
    node.start(make_bundle(project, "train.py", 1))
    assert node.wait()[0]["exit_code"] == 0
    files = [
        (os.fsdecode(name), size)
        for name, size in [(b"a", 1), (b"latin-\xe9", 0), (b"out/deep/b", 10), (b"unchanged", 9)]
    ]
    assert node.ask("artifacts")["files"] == files


def test_links_are_not_read(node: LocalNode, tmp_path: Path) -> None:
    node.run("import os; os.symlink('/etc/passwd', 'link')", tmp_path / "code")
    reply, data = node.channel().call(node.request("read", parts=[["link", 0, 99], ["train.py", 0, 6]]))
    assert (reply["lengths"], data) == ([0, 6], b"import")


# --------------------------------------------------------------------------------------------------------------- pieces


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    agent.write_file(str(path), b"new", 0o600, durable=True)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)

    def fail(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        agent.write_file(str(path), b"newer", 0o600)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("victim")
    (tmp_path / "victim").write_text("precious")
    agent.write_file(str(tmp_path / "file"), b"new", 0o600)
    assert (tmp_path / "victim").read_text() == "precious"
    (tmp_path / f"other.{os.getpid()}").symlink_to("victim")
    with pytest.raises(FileExistsError):
        agent.write_file(str(tmp_path / "other"), b"new", 0o600)


@pytest.mark.parametrize(
    ("content", "expected"), [(None, None), ("", None), ("[1]", None), ("{", None), ('{"a": 1}', {"a": 1})]
)
def test_read_json(tmp_path: Path, content: str | None, expected: Any) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    assert agent.read_json(str(path)) == expected


def test_an_error_of_the_system_is_a_sentence(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    shutil.rmtree(node.directory / "bundles")
    message = refused(node, "deliver", bundle, bundle.content)
    assert re.fullmatch(rf"node0 failed at deliver: No such file or directory: {node.directory}/bundles/\S+", message)


def test_the_agent_needs_nothing_but_the_standard_library_of_python_3_9() -> None:
    import ast

    tree = ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 9))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names
