# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import getpass
import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands import run as runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands import stop as stopping
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.logs import follow_earlier_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.stop import stop
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupted
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following import (
    follow_job,
    follow_ranks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import RunOptions
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import still_running_message
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import utc_time
from left_jobs import checkpoint
from local_nodes import SLEEP, Altered, Connection, LocalNode, by_rank, code, opener, until
from user_options import Undisturbed, run_options


@pytest.fixture(autouse=True)
def _quiet_ranks_are_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_ranks, "QUIET_SECONDS", 0.05)


# ---------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"script": ""}, "no script was given; name one in the project, as in: -e script=train.py"),
        (
            {"script_args": "'"},
            "script_args has unbalanced quotes (No closing quotation): '; close them, or give a list",
        ),
        ({"env": {"RANK": "0"}}, "env sets RANK, which makes Lightning start no ranks and hang; remove it"),
        (
            {"script": "/etc/passwd"},
            "script /etc/passwd is an absolute path; name it relative to project_dir PROJECT",
        ),
        (
            {"bundle_max_mb": 0},
            "project_dir PROJECT has 0.0 MB of files, but a job's code may have 0 MB (job_bundle_max_mb); the largest "
            "are train.py (0.0 MB); add data and results to .gitignore, or raise the limit",
        ),
    ],
)
def test_bad_input_reaches_no_node(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    def open_channel(host: str) -> Any:
        raise AssertionError("no node is to be reached")

    settings = [NodeSettings("node0", "127.0.0.1", "/nowhere", 29500, "", {})]
    with pytest.raises(JobError) as caught:
        runner.plan(
            run_options(tmp_path, "pass", **changes),
            CommandContext(print, Undisturbed(), NodeGroup(settings, open_channel), ["node0"]),
        )
    assert str(caught.value) == message.replace("PROJECT", str(tmp_path / "project"))
    assert not (tmp_path / "runs").exists()


def test_two_nodes_at_least_train_beside_spares(tmp_path: Path) -> None:
    settings = [NodeSettings(host, f"127.0.0.{n}", "/nowhere", 29500, "", {}) for n, host in enumerate("abc", 1)]
    options = run_options(tmp_path, "import pytorch_lightning as pl\npl.Trainer().fit(0)\n", gang=True, spares=2)

    def open_channel(host: str) -> Any:
        raise AssertionError("no node is to be reached")

    with pytest.raises(JobError) as caught:
        runner.plan(options, CommandContext(print, Undisturbed(), NodeGroup(settings, open_channel), list("abc")))
    assert str(caught.value) == (
        "spares is 2 of 3 nodes, but at least 2 have to train, because a spare cannot replace the first; set a lower "
        "-e spares, or add machines to the inventory"
    )


# ----------------------------------------------------------------------------------------------------------- whole jobs


class Session:
    """One run on two nodes, and what the user saw of it."""

    def __init__(self, nodes: list[LocalNode], given: RunOptions) -> None:
        self.nodes = nodes
        self.options = given
        self.said: list[tuple[float, str]] = []
        self.interrupts = Undisturbed()
        self.result: dict[str, Any] = {}
        self.error = ""
        self.interrupted = False

    def context(self, meanwhile: Callable[[str], None] = lambda line: None) -> CommandContext:
        def say(text: str) -> None:
            for line in text.split("\n"):
                self.said.append((time.monotonic(), line))
                meanwhile(line)

        for node in self.nodes:
            node.variables = {"INVENTORY": "from the inventory"}
        hosts = [node.host for node in self.nodes]
        settings = [node.settings() for node in self.nodes]
        return CommandContext(say, self.interrupts, NodeGroup(settings, opener(self.nodes)), hosts)

    def attempt(self, command: Callable[[], dict[str, Any]]) -> "Session":
        try:
            self.result = command()
        except JobError as error:
            self.error = str(error)
        except Interrupted:
            self.interrupted = True
        return self

    def run(self, meanwhile: Callable[[str], None] = lambda line: None) -> "Session":
        return self.attempt(lambda: runner.run(self.options, self.context(meanwhile)))

    def follow(
        self, job: str = "", offset: int | None = None, meanwhile: Callable[[str], None] = lambda line: None
    ) -> "Session":
        return self.attempt(lambda: follow_earlier_job(self.options.follow, self.context(meanwhile), job, offset))

    def stop(self, job: str = "") -> "Session":
        return self.attempt(lambda: self._stop(self.context(), job))

    def _stop(self, context: CommandContext, job: str) -> dict[str, Any]:
        return stop(context.say, context.cluster, job, self.options.follow.runs_dir, 2)

    @property
    def id(self) -> str:
        (one,) = [path.name for path in self.options.follow.runs_dir.iterdir() if not path.name.startswith(".")]
        return one

    @property
    def lines(self) -> list[str]:
        return [line for _time, line in self.said]

    @property
    def path(self) -> Path:
        return self.options.follow.runs_dir / self.id

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.path / "job.json").read_text())

    def files(self, folder: str) -> dict[str, bytes]:
        root = self.path / folder
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_success(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["ansible-playbook", "run.yml", "-e", "script=train.py", "-e", "script_args='a b'"]
    )
    script = (
        "import os, pathlib, sys\nrank = os.environ['NODE_RANK']\n"
        "print(f'rank {rank}', sys.argv[1:], os.environ['INVENTORY'])\n"
        "pathlib.Path('checkpoints').mkdir()\npathlib.Path('checkpoints/last.ckpt').write_bytes(bytes([int(rank)]) * 9)"
    )
    session = Session(nodes, run_options(tmp_path, script, script_args="a 'b c'")).run()
    assert session.error == ""
    assert session.result == {
        **{"job": session.id, "path": str(session.path), "nodes": 2, "world_size": 1, "state": "succeeded"},
        "warning": "",
    }
    assert session.lines == [
        f"{session.id}: train.py on 2 nodes, MASTER_ADDR 127.0.0.1, MASTER_PORT {nodes[0].master_port}, once per node, "
        "because the script uses no Trainer, no Fabric and no torch.distributed, each for itself",
        "[0 node0] rank 0 ['a', 'b c'] from the inventory",
        f"logs: {session.path}/logs",
        f"artifacts: {session.path}/artifacts",
    ]
    assert session.files("logs") == {
        f"rank{rank}-node{rank}.log": b"rank %d ['a', 'b c'] from the inventory\n" % rank for rank in (0, 1)
    }
    assert session.files("artifacts") == {"checkpoints/last.ckpt": bytes(9)}, "of rank 0"
    record = session.record
    assert re.fullmatch(r"[0-9a-f]{64}", record["bundle"].pop("sha256"))
    started, ended = record.pop("started"), record.pop("ended")
    assert started <= ended and started.endswith("+00:00") and ended.endswith("+00:00")
    assert all(0 <= rank.pop("seconds") < 30 for rank in record["ranks"])
    assert record == {
        "id": session.id,
        "state": "succeeded",
        "cause": None,
        "notes": [],
        "notices": [],
        "attempts": 1,
        "versions": {"ansible": ansible_version, "python": platform.python_version()},
        "script": "train.py",
        "args": ["a", "b c"],
        "launcher": "python",
        "devices": None,
        "gang": False,
        "uses": "plain",
        "warning": "",
        "met": None,
        "checkpoint_read": None,
        "checkpoint": None,
        "fit_goes_on": None,
        "retries": 0,
        "retry_on": "fault",
        "spares": 0,
        "ended_attempts": [],
        "hosts": ["node0", "node1"],
        "resumed": None,
        "rerun": None,
        "node_timeout_seconds": 5,
        "grace_seconds": 2,
        "project_dir": str(tmp_path / "project"),
        "env_names": [],
        "user": f"{getpass.getuser()}@{platform.node()}",
        "commit": None,
        "dirty": None,
        "module": None,
        "include": [],
        "project_files": "git",
        "bundle": {"bytes": len(script)},
        "nodes": 2,
        "world_size": 1,
        "master_addr": "127.0.0.1",
        "master_port": nodes[0].master_port,
        "ranks": [
            {
                "rank": rank,
                "host": f"node{rank}",
                "address": f"127.0.0.{rank + 1}",
                "state": "succeeded",
                "exit_code": 0,
                "signal": None,
                "note": "",
                "because": "",
                "met": None,
                "checkpoint_read": None,
                "log": str(session.path / "logs" / f"rank{rank}-node{rank}.log"),
            }
            for rank in (0, 1)
        ],
    }


def test_a_job_whose_ranks_never_met_is_no_plain_success(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Nothing claims that two nodes worked together where each was alone."""
    session = Session(nodes, run_options(tmp_path, "print('trained')", gang=True)).run()
    assert (session.error, session.result["state"]) == ("", "succeeded")
    (line,) = (line for line in session.lines if line.startswith("warning: "))
    assert line.startswith(
        f"warning: the ranks never met: no process of the job listened at MASTER_PORT {nodes[0].master_port} on "
        "node0, and none on node1 connected to it; "
    )
    record = session.record
    assert (record["nodes"], record["world_size"], record["met"]) == (2, 1, False)
    assert record["warning"] == session.result["warning"] == line.removeprefix("warning: ")


def test_a_job_whose_ranks_met(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = by_rank(
        "import socket\n"
        "with socket.create_server((os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))) as one:\n"
        "    one.accept()[0].recv(1)\n",
        "import socket\nto = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])\n"
        "while True:\n    try:\n        with socket.create_connection(to): time.sleep(0.5)\n        break\n"
        "    except OSError:\n        time.sleep(0.02)\n",
    )
    session = Session(nodes, run_options(tmp_path, script, gang=True)).run()
    record = session.record
    assert (record["nodes"], record["world_size"], record["met"], record["warning"]) == (2, 2, True, "")
    assert not any(line.startswith(("warning: ", "the ranks ")) for line in session.lines)


def test_what_was_not_seen_in_a_minute_is_said_while_the_job_runs(nodes: list[LocalNode], tmp_path: Path) -> None:
    for node in nodes:
        node.connection = Altered(("NOTICE_SECONDS = 45", "NOTICE_SECONDS = 0.3"))
    session = Session(
        nodes, run_options(tmp_path, "import time\ntime.sleep(3)\nprint('end', flush=True)", gang=True)
    ).run()
    (yet,) = (number for number, line in enumerate(session.lines) if line.startswith("the ranks have not met yet: "))
    assert yet < session.lines.index("[0 node0] end")


@pytest.mark.parametrize(
    ("logs", "expected"), [("head", ["[0 node0] 0"]), ("all", ["[0 node0] 0", "[1 node1] 1"]), ("none", [])]
)
def test_whose_output_is_shown(nodes: list[LocalNode], tmp_path: Path, logs: str, expected: list[str]) -> None:
    session = Session(nodes, run_options(tmp_path, "import os\nprint(os.environ['NODE_RANK'])", logs=logs)).run()
    assert sorted(line for line in session.lines if line.startswith("[")) == expected
    assert list(session.files("logs").values()) == [b"0\n", b"1\n"]


def test_output_is_shown_while_the_job_runs_and_to_the_last_piece(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "if os.environ['NODE_RANK'] == '0':\n"
        "    print('first')\n"
        "    while not os.path.exists('seen'): time.sleep(0.01)\n"
        "    print('\\x1b[31mthen\\x1b[0m 1%\\rthen 100%\\nno newline', end='')\n"
    )

    def meanwhile(line: str) -> None:
        if line == "[0 node0] first":
            (nodes[0].job_dir(session.id) / "work" / "seen").touch()

    session = Session(nodes, run_options(tmp_path, script))
    session.run(meanwhile)
    assert session.lines[1:4] == ["[0 node0] first", "[0 node0] then 100%", "[0 node0] no newline"]
    assert session.files("logs")["rank0-node0.log"].startswith(b"first\n\x1b[31mthen"), "the file has every byte"


def test_failure_names_the_cause_and_stops_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = (
        "import os, pathlib, time\npathlib.Path('partial').write_text('x')\n"
        "if os.environ['NODE_RANK'] == '1':\n    time.sleep(0.3)\n    raise ValueError('bad batch 17')\n"
        "print('waiting')\ntime.sleep(600)\n"
    )
    session = Session(nodes, run_options(tmp_path, script)).run()
    record = session.record
    cause = (
        f"rank 1 (node1) exited with code 1 after {record['ranks'][1]['seconds']:.0f} s: ValueError: bad batch 17; see "
        f"{session.path}/logs/rank1-node1.log"
    )
    said, *tail = session.error.split("\n")
    assert said == cause
    assert (tail[0], tail[-1]) == ("  | Traceback (most recent call last):", "  | ValueError: bad batch 17")
    assert session.said[-1][0] - session.said[0][0] < 6
    assert "[0 node0] waiting" in session.lines
    assert (record["state"], record["cause"]) == ("failed", cause)
    assert [(rank["state"], rank["exit_code"], rank["signal"]) for rank in record["ranks"]] == [
        ("stopped", 143, 15),
        ("failed", 1, None),
    ]
    assert all(node.follow(wait_seconds=0, job=session.id)[0]["state"] in ("stopped", "failed") for node in nodes)
    assert session.files("artifacts") == {"partial": b"x"}
    assert session.lines[-2:] == [f"logs: {session.path}/logs", f"artifacts: {session.path}/artifacts"]
    assert session.files("logs")["rank1-node1.log"].endswith(b"ValueError: bad batch 17\n")


def test_what_happens_to_this_machine_is_no_failure_of_the_job(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no file descriptors left, for ever: the command ends, the job does not, and the record says so."""
    monkeypatch.setattr(follow_ranks, "NO_REPLY_SECONDS", 1)
    monkeypatch.setattr(follow_ranks, "NO_REPLY_TIMES", 1)

    class Exhausted(Connection):
        def exec_command(self, command: str, in_data: bytes) -> Any:
            if b'"op": "follow"' in in_data:
                raise OSError(24, "Too many open files")
            return super().exec_command(command, in_data)

    for node in nodes:
        node.connection = Exhausted()
    asked = run_options(tmp_path, "import time; time.sleep(600)", node_timeout_seconds=1)
    session = Session(nodes, asked).run()
    assert session.error == (
        "this machine got no reply from rank 0 (node0), rank 1 (node1) for 1 s: node0 was not asked: this "
        "machine cannot start what connects to a node: Too many open files; raise the number of files a program may "
        f"have open: ulimit -n 4096. The job still runs, as far as is known; to follow it again: ansible-playbook "
        f"logs.yml -e job={session.id}"
    )
    assert session.record["state"] == "running" and "ended" not in session.record
    for node in nodes:
        assert node.state(session.id)["state"] == "running"
        node.connection = Connection()
    session.stop()
    assert [node.state(session.id)["state"] for node in nodes] == ["stopped", "stopped"]


def test_a_screen_without_a_thread(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(follow_job, "Screen", none)
    session = Session(nodes, run_options(tmp_path, SLEEP)).run()
    assert (
        session.error
        == f"this machine cannot follow the job: can't start new thread. {still_running_message(session.id)}"
    )
    assert session.record["state"] == "running"


# Rank 0 works for a while; the other waits for it, in a function that has the name of torch's.
LOOKS_ON = ["attached", "logs.yml", "nobody"]
"""Who follows a job while its nodes decide on it; logs.yml comes later in any case but the first."""
MEETS = """\
import os, sys, time
sys.path.append({packages!r})
from torch.distributed import distributed_c10d

def prepare():
    {prepares}
    open({met!r}, 'w').close()

prepare() if os.environ['NODE_RANK'] == '0' else distributed_c10d.init_process_group({met!r})
print('trained')
"""


def meeting(nodes: list[LocalNode], folder: Path, prepares: str) -> str:
    """Return a script whose rank 0 prepares something while rank 1 is in a function of the name of torch's."""
    library = folder / "lib" / "site-packages" / "torch" / "distributed"
    library.mkdir(parents=True)
    (library / "distributed_c10d.py").write_text(
        "import os, time\n\ndef init_process_group(met):\n    while not os.path.exists(met): time.sleep(0.02)\n"
    )
    for node in nodes:
        (node.directory / "tools" / "env" / "bin" / "py-spy").symlink_to(Path(sys.executable).parent / "py-spy")
    return MEETS.format(packages=str(library.parents[1]), met=str(folder / "met"), prepares=prepares)


def ended(nodes: list[LocalNode], asked: RunOptions, looks_on: str) -> Session:
    """Return a job's end as it is known in the end, whoever looks on meanwhile."""
    session = Session(nodes, asked).run()
    if looks_on == "nobody":
        until(lambda: all(node.state(session.id).get("ended") for node in nodes), 60)
    if looks_on != "attached":
        session.follow(session.id)
    return session


NOTICE = re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d nothing was printed for ")


@pytest.mark.parametrize("looks_on", LOOKS_ON)
def test_a_rank_that_prepares_is_waited_for_whoever_looks_on(
    looks_on: str, nodes: list[LocalNode], tmp_path: Path
) -> None:
    """It is said that it works, and ends nothing."""
    script = meeting(nodes, tmp_path, "ends = time.monotonic() + 8\n    while time.monotonic() < ends: pass")
    asked = run_options(tmp_path, script, gang=True, rendezvous_timeout_seconds=2, detach=looks_on != "attached")
    session = ended(nodes, asked, looks_on)
    assert (session.error, session.result["state"]) == ("", "succeeded")
    if looks_on == "nobody":
        until(lambda: any(NOTICE.match(line) for line in session.lines))
    said, *_later = (line for line in session.lines if NOTICE.match(line))
    assert "rank 0 (node0) is in prepare at train.py:" in said and ", and works (" in said
    assert "for it; the job goes on; what every rank was doing: " in said


def test_a_job_runs_where_no_inspector_could_be_forked(nodes: list[LocalNode], tmp_path: Path) -> None:
    for node in nodes:
        node.connection = Altered(("pids.append(fork_daemon(log, be_inspector))", "raise OSError"))
    asked = run_options(tmp_path, "import time; time.sleep(4)", gang=True, rendezvous_timeout_seconds=2)
    session = ended(nodes, asked, "attached")
    assert (session.error, session.result["state"]) == ("", "succeeded")
    said, *_later = (line for line in session.lines if NOTICE.match(line))
    assert ", and the search for the cause failed: cannot look: its inspector has ended" in said
    assert session.record["notices"][0] == said.partition("; what every rank was doing")[0]


@pytest.mark.parametrize("looks_on", LOOKS_ON)
def test_a_rendezvous_that_cannot_complete_ends_the_job_whoever_looks_on(
    looks_on: str, nodes: list[LocalNode], tmp_path: Path
) -> None:
    script = meeting(nodes, tmp_path, "time.sleep(600)")
    asked = run_options(tmp_path, script, gang=True, rendezvous_timeout_seconds=2, detach=looks_on != "attached")
    session = ended(nodes, asked, looks_on)
    cause, _phrase, folder = session.record["cause"].partition("; what every rank was doing: ")
    assert re.sub(r"for \d+ s", "for N s", cause) == (
        "nothing was printed for N s: the rendezvous does not complete: rank 0 (node0) never came to it, but is in "
        "prepare at train.py:6; rank 1 (node1) waits in init_process_group; if more time is all that is needed, raise "
        "job_rendezvous_timeout_seconds"
    )
    assert (session.record["state"], session.error) == ("failed", session.record["cause"])
    assert {node.state(session.id)["because"] for node in nodes} == {cause}
    assert session.record["met"] is False
    assert session.record["ended"] == utc_time(max(node.state(session.id)["ended"] for node in nodes))
    files = {path.name: path.read_text() for path in Path(folder).iterdir()}
    assert "init_process_group" in files["rank1-node1.txt"] and "prepare" in files["rank0-node0.txt"]


def test_a_file_that_did_not_travel_is_named_in_the_cause(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Python found no such file on the node, but it lies here."""
    given = run_options(tmp_path, "open('wandb/train.bin')")
    (tmp_path / "project" / "wandb").mkdir()
    (tmp_path / "project" / "wandb" / "train.bin").write_text("")
    session = Session(nodes, given).run()
    expected = (
        "FileNotFoundError: [Errno 2] No such file or directory: 'wandb/train.bin' (wandb/train.bin lies in the "
        "project, but it was no part of the job's code; bring it with -e include='wandb/train.bin'); see "
    )
    assert expected in session.record["cause"] and expected in session.error
    assert "not part of the job's code: 1 file in wandb" in session.lines[0]
    brought = run_options(
        tmp_path, script="train.py", project_dir=tmp_path / "project", include="wandb/", runs_dir=tmp_path / "runs2"
    )
    assert Session(nodes, brought).run().error == ""


def test_failure_of_all_ranks_counts_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, time\ntime.sleep(0.5 * int(os.environ['NODE_RANK']))\nraise SystemExit('gave up')\n"
    session = Session(nodes, run_options(tmp_path, script)).run()
    seconds = session.record["ranks"][0]["seconds"]
    log = f"{session.path}/logs/rank0-node0.log"
    cause = f"rank 0 (node0) exited with code 1 after {seconds:.0f} s: gave up; see {log}"
    assert session.error in (f"{cause}\n  | gave up", f"{cause}. Failed after it: rank 1 (node1)\n  | gave up")


def test_a_rank_that_is_not_shown_can_be_the_cause(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = (
        "import os, time\nrank = int(os.environ['NODE_RANK'])\ntime.sleep(0.6 - 0.5 * rank)\n"
        "raise SystemExit('connection closed by peer' if rank == 0 else 'the cause')\n"
    )
    session = Session(nodes, run_options(tmp_path, script)).run()
    assert session.error.startswith("rank 1 (node1) exited with code 1 after ")
    assert session.error.split("\n")[0].partition(" s: ")[2] in (
        f"the cause; see {session.path}/logs/rank1-node1.log",  # the other was stopped before it could fail
        f"the cause; see {session.path}/logs/rank1-node1.log. Failed after it: rank 0 (node0)",
    )


def test_a_node_that_cannot_prepare_leaves_no_record(nodes: list[LocalNode], tmp_path: Path) -> None:
    shutil.rmtree(nodes[1].directory)
    session = Session(nodes, run_options(tmp_path, "pass")).run()
    assert session.error == (
        f"node1 is not set up: there is no {nodes[1].directory}; run: ansible-playbook setup.yml. Nothing was "
        "started on any node."
    )
    assert (session.lines, session.options.follow.runs_dir.exists()) == ([], False)
    assert nodes[0].jobs == []


def test_a_node_that_cannot_start_is_recorded(nodes: list[LocalNode], tmp_path: Path) -> None:
    class NoStart(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if ".start" in command:
                raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    nodes[0].connection = NoStart()
    session = Session(nodes, run_options(tmp_path, "import time; time.sleep(600)")).run()
    assert session.error == "node0 is unreachable: Connection refused. The job was stopped on every other node."
    assert (session.record["state"], session.record["cause"]) == ("failed", session.error)
    assert [node.supervisor() for node in nodes] == [None, None]


def test_artifacts_that_cannot_be_fetched_do_not_change_how_the_job_ended(
    nodes: list[LocalNode], tmp_path: Path
) -> None:
    class NoArtifacts(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "list_artifacts"' in in_data:
                raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    nodes[0].connection = NoArtifacts()
    session = Session(nodes, run_options(tmp_path, "print(1)")).run()
    note = (
        "what rank 0 (node0) wrote is not complete here: node0 is unreachable: Connection refused; it is in the job's "
        f"work directory there; run: ansible-playbook logs.yml -e job={session.id}"
    )
    assert session.error == ""
    assert session.record["notes"] == [note]
    assert note in session.lines


def test_values_of_the_environment_are_recorded_nowhere(nodes: list[LocalNode], tmp_path: Path) -> None:
    text = '{"TOKEN": "hush", "OTHER": 1}'
    session = Session(nodes, run_options(tmp_path, "print(1)", env=text)).run()
    assert session.record["env_names"] == ["OTHER", "TOKEN"]
    assert [path for path in session.path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()] == []


# -------------------------------------------------------------------------------------------- detached, and found again


def states(session: Session) -> list[str]:
    return [node.state(session.id)["state"] for node in session.nodes]


def test_what_follows_a_job_fails_and_says_that_the_job_goes_on(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a pull has changed the files of this project between the start and this import."""
    monkeypatch.setitem(sys.modules, follow_job.__name__, None)
    session = Session(nodes, run_options(tmp_path, SLEEP))
    with pytest.raises(ImportError):
        session.run()
    assert session.lines[-1] == (
        f"{session.id} was started, and goes on by itself if it has not ended; follow it: "
        f"ansible-playbook logs.yml -e job={session.id}"
    )
    assert [node.state(job=session.id)["state"] for node in nodes] == ["running"] * 2


def test_detach_and_come_back(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('then')\n"
    detached = Session(nodes, run_options(tmp_path, script, detach=True)).run()
    assert (detached.error, detached.result["state"]) == ("", "running")
    assert detached.lines[-1] == (
        f"{detached.id} still runs. Its output again: ansible-playbook logs.yml -e job={detached.id} - all jobs: "
        f"ansible-playbook status.yml - to stop it: ansible-playbook stop.yml -e job={detached.id}"
    )
    assert detached.record["state"] == "running" and "ended" not in detached.record
    again = Session(nodes, run_options(tmp_path))

    def meanwhile(line: str) -> None:
        if line == "[0 node0] first":
            for node in nodes:
                (node.job_dir(detached.id) / "work" / "go").touch()

    again.follow(meanwhile=meanwhile)
    assert again.error == ""
    assert [line for line in again.lines if line.startswith("[")] == ["[0 node0] first", "[0 node0] then"]
    assert again.result == {
        **{"job": again.id, "path": str(again.path), "nodes": 2, "world_size": 1, "state": "succeeded"},
        "warning": "",
    }
    assert list(again.files("logs").values()) == [b"first\nthen\n"] * 2
    assert again.record["state"] == "succeeded"


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (None, ["[0 node0] one", "[0 node0] two"]),
        (0, ["[0 node0] one", "[0 node0] two"]),
        (4, ["[0 node0] two"]),
        (8, []),
        (99, []),
    ],
)
def test_logs_of_a_job_that_has_ended(
    nodes: list[LocalNode], tmp_path: Path, offset: int | None, expected: list[str]
) -> None:
    session = Session(nodes, run_options(tmp_path, "print('one')\nprint('two')")).run()
    again = Session(nodes, run_options(tmp_path)).follow(session.id, offset)
    assert again.error == ""
    assert [line for line in again.lines if line.startswith("[")] == expected
    assert list(again.files("logs").values()) == [b"one\ntwo\n"] * 2


@pytest.mark.parametrize(("offset", "expected"), [(None, ["one", "two"]), (0, ["one", "two"]), (4, ["two"])])
def test_logs_of_a_job_that_another_controller_started(
    nodes: list[LocalNode], tmp_path: Path, offset: int | None, expected: list[str]
) -> None:
    Session(nodes, run_options(tmp_path, "print('one')\nprint('two')")).run()
    there = Session(nodes, run_options(tmp_path, runs_dir=tmp_path / "there")).follow(offset=offset)
    assert there.error == ""
    assert [line for line in there.lines if line.startswith("[")] == [f"[0 node0] {line}" for line in expected]
    assert (there.record["state"], there.record["script"], there.record["nodes"]) == ("succeeded", "train.py", 2)
    assert list(there.files("logs").values()) == [b"one\ntwo\n"] * 2


def test_a_job_that_failed_meanwhile(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = by_rank("time.sleep(600)", "raise ValueError('bad batch 17')")
    detached = Session(nodes, run_options(tmp_path, script, detach=True)).run()
    until(lambda: all("ended" in node.state(detached.id) for node in nodes))
    again = Session(nodes, run_options(tmp_path)).follow()
    assert again.error.startswith("rank 1 (node1) exited with code 1 after ")
    assert "ValueError: bad batch 17" in again.error
    assert again.record["state"] == "failed"


def test_no_job_to_follow(nodes: list[LocalNode], tmp_path: Path) -> None:
    assert Session(nodes, run_options(tmp_path)).follow().error == (
        "no job is on these nodes; start one: ansible-playbook run.yml -e script=…"
    )
    assert Session(nodes, run_options(tmp_path)).follow("20260101-000000-train-0007").error == (
        "no node has a job 20260101-000000-train-0007; ansible-playbook status.yml lists them"
    )


# -------------------------------------------------------------------------------------------------------------- stopped


def test_stop_a_detached_job(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = Session(nodes, run_options(tmp_path, SLEEP, detach=True)).run()
    until(lambda: all(node.state(session.id) for node in nodes))
    stopped = Session(nodes, run_options(tmp_path)).stop()
    assert stopped.result == {
        "job": session.id,
        "states": {"node0": "stopped", "node1": "stopped"},
        "was_running": True,
    }
    assert session.record["state"] == "stopped"
    assert [node.supervisor() for node in nodes] == [None, None]
    # Half of the job lies on a host of another inventory: nobody knows of it, and nothing that ran was stopped here.
    assert Session(nodes[:1], run_options(tmp_path)).stop().result == {
        "job": session.id,
        "states": {"node0": "stopped"},
        "was_running": False,
    }
    assert Session(nodes, run_options(tmp_path)).stop().error == (
        "no job runs on these nodes; ansible-playbook status.yml lists those that have ended"
    )
    assert Session(nodes, run_options(tmp_path)).stop(session.id).result["was_running"] is False
    again = Session(nodes, run_options(tmp_path)).follow()
    assert re.fullmatch(rf"job {session.id} was stopped: on request.*", again.error)
    assert again.record["state"] == "stopped"


@pytest.mark.parametrize("text", ["", '{"id": "'])
def test_a_job_whose_record_was_torn_is_followed_again(nodes: list[LocalNode], tmp_path: Path, text: str) -> None:
    session = Session(nodes, run_options(tmp_path, "print('all of it')", detach=True)).run()
    (session.path / "job.json").write_text(text)
    again = Session(nodes, run_options(tmp_path)).follow()
    assert again.error == ""
    assert again.result == {
        **{"job": session.id, "path": str(session.path), "nodes": 2, "world_size": 1, "state": "succeeded"},
        "warning": "",
    }
    assert "[0 node0] all of it" in again.lines
    assert (session.record["state"], states(session)) == ("succeeded", ["succeeded", "succeeded"])


def test_a_colleagues_job_is_left_alone_unless_it_is_named(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as colleague:
        colleague.setenv("LOGNAME", "bob")
        theirs = Session(nodes, run_options(tmp_path, SLEEP, detach=True)).run()
    until(lambda: all(node.state(theirs.id) for node in nodes))
    me = f"{getpass.getuser()}@{platform.node()}"
    for command in ("stop", "follow"):
        error = getattr(Session(nodes, run_options(tmp_path)), command)().error
        assert error == (
            f"no job that {'runs' if command == 'stop' else 'is'} on these nodes was started by {me}; the latest is "
            f"{theirs.id}, which bob@{platform.node()} started; if you mean that one, give -e job={theirs.id}"
        )
    assert {node.state(theirs.id)["state"] for node in nodes} == {"running"}
    assert Session(nodes, run_options(tmp_path)).stop(theirs.id).result["was_running"] is True


@pytest.mark.parametrize("named", [True, False])
def test_a_prepared_job_that_nobody_starts_is_stopped(
    named: bool, nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "who", lambda: "trainer")
    job = "20260101-000000-train-0000"
    for node in nodes:
        node.prepare(code(tmp_path / "code", ""), job)
    stopped = Session(nodes, run_options(tmp_path)).stop(job if named else "")
    assert stopped.result == {
        "job": job,
        "states": {"node0": "prepared", "node1": "prepared"},
        "was_running": True,
    }
    assert [(node.supervisor(), node.jobs) for node in nodes] == [(None, [])] * 2


def test_a_node_that_may_hold_a_prepared_job_too_is_named(nodes: list[LocalNode], tmp_path: Path) -> None:
    job = "20260101-000000-train-0000"
    for node in nodes:
        node.prepare(code(tmp_path / "code", ""), job)

    class Away(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            raise AnsibleConnectionFailure("Connection refused")

    nodes[1].connection = Away()
    assert Session(nodes, run_options(tmp_path)).stop(job).error == (
        f"node1 is unreachable: Connection refused. Job {job} is stopped on node0; run this again for the others."
    )


def test_a_stop_of_a_job_that_has_ended_changes_nothing_in_its_record(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = Session(nodes, run_options(tmp_path, "print('done')", detach=True)).run()
    until(lambda: all(node.state(session.id).get("state") == "succeeded" for node in nodes))
    assert Session(nodes, run_options(tmp_path)).stop(session.id).result["was_running"] is False
    assert session.record["state"] == "running"  # as far as this machine has heard
    assert Session(nodes, run_options(tmp_path)).follow(session.id).record["state"] == "succeeded"


def test_a_stop_while_it_is_followed(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = Session(nodes, run_options(tmp_path, SLEEP))

    def meanwhile(line: str) -> None:
        if line == "[0 node0] ready":
            Session(nodes, run_options(tmp_path)).stop()

    session.run(meanwhile)
    assert session.error.startswith(f"job {session.id} was stopped: on request")
    assert session.record["state"] == "stopped"
    assert states(session) == ["stopped", "stopped"]


def test_a_node_that_cannot_be_stopped_is_named(nodes: list[LocalNode], tmp_path: Path) -> None:
    class NoStop(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b'"op": "stop"' in in_data:
                raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    session = Session(nodes, run_options(tmp_path, SLEEP, detach=True)).run()
    until(lambda: all(node.state(session.id) for node in nodes))
    nodes[1].connection = NoStop()
    stopped = Session(nodes, run_options(tmp_path)).stop()
    assert stopped.error == (
        f"node1 is unreachable: Connection refused. Job {session.id} is stopped on node0; run this again for the "
        "others."
    )


# ---------------------------------------------------------------------------------------------------------- interrupted


def interrupted(nodes: list[LocalNode], tmp_path: Path, what: Any, **more: Any) -> Session:
    twice = more.pop("twice", False)
    session = Session(nodes, run_options(tmp_path, SLEEP, **more))

    def meanwhile(line: str) -> None:
        if line == "[0 node0] ready":
            session.interrupts.twice = twice
            session.interrupts.what = what

    return session.run(meanwhile)


def test_ctrl_c_leaves_the_job_running(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = interrupted(nodes, tmp_path, "signal")
    assert (session.interrupted, session.error) == (True, "")
    assert session.interrupts.said == [
        f"\n{session.id} still runs; press Ctrl-C once more within 3 s to stop it",
        still_running_message(session.id),
    ]
    assert states(session) == ["running", "running"]
    assert session.record["state"] == "running"


@pytest.mark.parametrize("more", [{"twice": True}, {"on_interrupt": "stop"}])
def test_a_second_ctrl_c_or_the_option_stops_it(nodes: list[LocalNode], tmp_path: Path, more: dict[str, Any]) -> None:
    session = interrupted(nodes, tmp_path, "signal", **more)
    assert session.error.startswith(f"job {session.id} was stopped: on request")
    assert f"stopping {session.id}" in session.interrupts.said
    assert session.interrupts.said[-1] == session.error
    assert states(session) == ["stopped", "stopped"]
    assert session.record["state"] == "stopped"


def test_a_playbook_that_is_gone_leaves_the_job_running(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = interrupted(nodes, tmp_path, "gone")
    assert session.interrupted
    assert session.interrupts.said == [still_running_message(session.id)]
    assert states(session) == ["running", "running"]


def test_a_playbook_that_is_gone_and_was_to_take_the_job_with_it(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = interrupted(nodes, tmp_path, "gone", on_interrupt="stop")
    assert session.error.startswith(f"job {session.id} was stopped: on request")
    assert states(session) == ["stopped", "stopped"]
    assert session.record["state"] == "stopped"


@pytest.mark.parametrize("on_interrupt", ["detach", "stop"])
def test_a_playbook_that_is_gone_before_the_start_starts_nothing(
    nodes: list[LocalNode], tmp_path: Path, on_interrupt: str
) -> None:
    session = Session(nodes, run_options(tmp_path, SLEEP, on_interrupt=on_interrupt))

    class Killing(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            session.interrupts.what = "gone"
            return super().exec_command(command, in_data)

    nodes[1].connection = Killing()
    session.run()
    assert session.interrupted
    assert [node.jobs for node in nodes] == [[], []]
    assert not session.options.follow.runs_dir.exists()


def test_a_playbook_that_is_gone_waits_for_no_node(nodes: list[LocalNode], tmp_path: Path) -> None:
    nodes[1].start(code(tmp_path / "code", SLEEP), job="other-job")
    session = Session(nodes, run_options(tmp_path, SLEEP, wait=600))
    began = time.monotonic()
    session.run(lambda line: setattr(session.interrupts, "what", "gone"))
    assert session.interrupted and session.lines[0].startswith("waiting for up to 600 s: node1 runs job other-job")
    assert time.monotonic() - began < 20
    assert [node.jobs for node in nodes] == [[], ["other-job"]]


def test_who_gives_up_before_the_start_leaves_nothing(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = Session(nodes, run_options(tmp_path, SLEEP))
    session.interrupts.what = "signal"
    session.run()
    assert session.interrupted
    assert [node.jobs for node in nodes] == [[], []]


def test_after_an_interrupt_the_rest_is_shown_once(nodes: list[LocalNode], tmp_path: Path) -> None:
    session = interrupted(nodes, tmp_path, "signal")
    again = Session(nodes, run_options(tmp_path))
    stops = iter([True])

    def meanwhile(line: str) -> None:
        if line.startswith(again.id) and next(stops, False):
            nodes[0].ask("stop", job=session.id, grace_seconds=2)

    again.follow(meanwhile=meanwhile)
    assert [line for line in again.lines if line.startswith("[")] == []
    assert again.files("logs")["rank0-node0.log"] == b"ready\n"


# ----------------------------------------------------------------------------------------------------------- once again


def test_rerun(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, sys\nprint('v1', sys.argv[1:], os.environ['A'])"
    first = Session(nodes, run_options(tmp_path, script, script_args="--lr 1", env={"A": "x"})).run()
    (tmp_path / "project" / "train.py").write_text("print('v2')")
    earlier = first.id
    again = Session(nodes, run_options(tmp_path, rerun=earlier, env={"A": "y"}))
    assert runner.check(again.options, again.context()) == "would start train.py on 2 nodes"
    again.run()
    assert again.error == ""
    assert "[0 node0] v1 ['--lr', '1'] y" in again.lines
    assert json.loads((Path(again.result["path"]) / "job.json").read_text())["rerun"] == earlier


@pytest.mark.parametrize(
    ("reads", "words"),
    [
        ("open(os.environ['CKPT_PATH'], 'rb').read()", "goes on from JOB, step 7"),
        ("open(sys.argv[1], 'rb').read()", "goes on from JOB, step 7"),
        (
            "print(os.environ['CKPT_PATH'])",
            "warning: the script has not read CKPT_PATH, so it started from the beginning; load what ",
        ),
    ],
)
def test_a_job_goes_on_only_where_it_read_the_checkpoint(
    reads: str, words: str, nodes: list[LocalNode], tmp_path: Path
) -> None:
    first = Session(nodes, run_options(tmp_path, "print('1')")).run().id
    for node in nodes:
        checkpoint(node.job_dir(first) / "work" / "last.ckpt", step=7)
    (tmp_path / "project" / "train.py").write_text(f"import os, sys\n{reads}")  # and ends before anybody checks
    again = Session(nodes, run_options(tmp_path, resume=first, script_args="$CKPT_PATH")).run()
    assert again.error == ""
    (told,) = (line for line in again.lines if line.startswith(("goes on from ", "warning: ")))
    assert told.startswith(words.replace("JOB", first))
    record = json.loads((Path(again.result["path"]) / "job.json").read_text())
    assert record["checkpoint_read"] is words.startswith("goes")


LIGHTNING = """\
import importlib.metadata
import types

class Trainer:
    fast_dev_run, callbacks, is_global_zero = False, (), True
    strategy, _checkpoint_connector = types.SimpleNamespace(), types.SimpleNamespace()

    def __init__(self):
        for point in importlib.metadata.entry_points(group="pytorch_lightning.callbacks_factory"):
            point.load()()

    def fit(self, model, ckpt_path=None):
        print("from", ckpt_path and open(ckpt_path, "rb").read(2))

    def save_checkpoint(self, path):
        pass
"""
"""What a job sees of Lightning, without a minute of imports; tests/unit/companion has the real one."""


@pytest.mark.parametrize("companion", [True, False])
def test_a_script_of_lightnings_goes_on_without_a_change(
    companion: bool, nodes: list[LocalNode], tmp_path: Path
) -> None:
    options = run_options(tmp_path, "import pytorch_lightning as pl\npl.Trainer().fit(None)")
    (tmp_path / "project" / "pytorch_lightning.py").write_text(LIGHTNING)
    session = Session(nodes, options).run()
    assert "[0 node0] from None" in session.lines
    first = session.id
    for node in nodes:
        checkpoint(node.job_dir(first) / "work" / "last.ckpt", step=7)
    again = Session(nodes, run_options(tmp_path, resume=first, companion=companion)).run()
    assert again.error == ""
    assert ("[0 node0] from b'PK'" in again.lines) is companion
    assert any("thunderhead: fit goes on from" in line for line in again.lines) is companion
    (told,) = (line for line in again.lines if line.startswith(("goes on from ", "warning: ")))
    assert told.startswith(f"goes on from {first}, step 7" if companion else "warning: the script has not read CKPT")


def test_a_job_goes_on_from_what_is_named(nodes: list[LocalNode], tmp_path: Path) -> None:
    """A folder of another library."""
    writes = (
        "import os\nos.makedirs('out/checkpoint-10')\nopen('out/checkpoint-10/trainer_state.json', 'w').write('{}')"
    )
    first = Session(nodes, run_options(tmp_path, writes)).run().id
    words = Session(nodes, run_options(tmp_path, resume=first)).run().error
    assert "; there is out/checkpoint-10 on node0, node1 (a checkpoint of Transformers' Trainer); name the one" in words
    reads = "import os, time\nprint(os.listdir(os.environ['CKPT_PATH']))\ntime.sleep(2)"
    (tmp_path / "project" / "train.py").write_text(reads)
    again = Session(nodes, run_options(tmp_path, resume=first, checkpoint="out/checkpoint-10")).run()
    assert again.error == ""
    assert "CKPT_PATH is out/checkpoint-10 (1 file, 2 B, from node0)" in again.lines
    assert "goes on from out/checkpoint-10" in again.lines and "[0 node0] ['trainer_state.json']" in again.lines
    record = json.loads((Path(again.result["path"]) / "job.json").read_text())
    assert (record["checkpoint"], record["checkpoint_step"], record["checkpoint_read"]) == (
        *("out/checkpoint-10", None),
        True,
    )
    assert record["project_dir"] == str(tmp_path / "project"), "for one more to go on from it"


def test_a_job_that_still_runs_cannot_be_gone_on_from(nodes: list[LocalNode], tmp_path: Path) -> None:
    first = Session(nodes, run_options(tmp_path, SLEEP, detach=True)).run()
    until(lambda: all(node.state(first.id) for node in nodes))
    again = Session(nodes, run_options(tmp_path, resume=first.id)).run()
    assert again.error == (
        f"job {first.id} still runs (2 running), so it cannot be gone on from; stop it first: ansible-playbook "
        f"stop.yml -e job={first.id}"
    )
