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
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Ending
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import rank_nodes
from local_nodes import Connection, LocalNode, opener

# ---------------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", []),
        ("--max-epochs 3", ["--max-epochs", "3"]),
        ("--name 'two words' \"it's\" a\\ b", ["--name", "two words", "it's", "a b"]),
        ("$HOME `id` ; rm *", ["$HOME", "`id`", ";", "rm", "*"]),
        ("''", [""]),
        ([], []),
        (["--lr", 0.1, 3, "two words", ""], ["--lr", "0.1", "3", "two words", ""]),
        (("a",), ["a"]),
    ],
)
def test_args(args: Any, expected: list[str]) -> None:
    assert runner.split_args(args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "--name 'oops",
            "args has unbalanced quotes (No closing quotation): --name 'oops; close them, or give a list",
        ),
        ("oops\\", "args has unbalanced quotes (No escaped character): oops\\; close them, or give a list"),
        (["a\0b"], "args has a word with a null byte, which no command line can hold; remove it"),
        (None, "args is None; give a string such as '--max-epochs 3', or a list of words"),
        (3, "args is 3; give a string such as '--max-epochs 3', or a list of words"),
        ([["a"]], "args is [['a']]; give a string such as '--max-epochs 3', or a list of words"),
        ({"a": 1}, "args is {'a': 1}; give a string such as '--max-epochs 3', or a list of words"),
    ],
)
def test_args_that_are_none(args: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        runner.split_args(args)
    assert str(caught.value) == message


def order(tmp_path: Path, text: str, **changes: Any) -> runner.Order:
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    (project / "train.py").write_text(text)
    return runner.Order(
        **{
            "script": "train.py",
            "args": "",
            "project": project,
            "env": {},
            "runs": tmp_path / "runs",
            "logs": "head",
            "bundle_max_mb": 10,
            "node_timeout_seconds": 5,
            "grace_seconds": 2,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"script": ""}, "no script was given; name one in the project, as in: -e script=train.py"),
        ({"args": "'"}, "args has unbalanced quotes (No closing quotation): '; close them, or give a list"),
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
        runner.plan(order(tmp_path, "pass", **changes), settings, open_channel)
    assert str(caught.value) == message.replace("PROJECT", str(tmp_path / "project"))
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------------------- whole jobs


class Session:
    """One run on two nodes, and what the user saw of it."""

    def __init__(self, nodes: list[LocalNode], given: runner.Order) -> None:
        self.nodes = nodes
        self.order = given
        self.open_channel = opener(nodes)
        self.said: list[tuple[float, str]] = []
        self.result: dict[str, Any] = {}
        self.error = ""

    def run(self, meanwhile: Callable[[str], None] = lambda line: None) -> "Session":
        def say(line: str) -> None:
            self.said.append((time.monotonic(), line))
            meanwhile(line)

        for node in self.nodes:
            node.variables = {"INVENTORY": "from the inventory"}
        gang = runner.plan(self.order, [node.settings() for node in self.nodes], self.open_channel)
        self.id = gang.job.id
        try:
            self.result = runner.run(self.order, gang, say, self.open_channel)
        except JobError as error:
            self.error = str(error)
        return self

    @property
    def lines(self) -> list[str]:
        return [line for _time, line in self.said]

    @property
    def path(self) -> Path:
        return self.order.runs / self.id

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.path / "job.json").read_text())

    def files(self, folder: str) -> dict[str, bytes]:
        root = self.path / folder
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_success(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ansible-playbook", "run.yml", "-e", "script=train.py", "-e", "args='a b'"])
    script = (
        "import os, pathlib, sys\nrank = os.environ['NODE_RANK']\n"
        "print(f'rank {rank}', sys.argv[1:], os.environ['INVENTORY'])\n"
        "pathlib.Path('checkpoints').mkdir()\npathlib.Path('checkpoints/last.ckpt').write_bytes(bytes([int(rank)]) * 9)"
    )
    session = Session(nodes, order(tmp_path, script, args="a 'b c'")).run()
    assert session.error == ""
    assert session.result == {"job": session.id, "path": str(session.path), "world_size": 2}
    assert session.lines == [
        f"{session.id}: train.py on 2 nodes, MASTER_ADDR 127.0.0.1, MASTER_PORT {nodes[0].master_port}",
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
    assert record.pop("started") <= record.pop("ended")
    assert all(0 <= rank.pop("seconds") < 30 for rank in record["ranks"])
    assert record == {
        "id": session.id,
        "state": "succeeded",
        "cause": None,
        "notes": [],
        "command": ["ansible-playbook", "run.yml", "-e", "script=train.py", "-e", "…"],
        "versions": {"ansible": ansible_version, "python": platform.python_version()},
        "script": "train.py",
        "args": ["a", "b c"],
        "project_dir": str(tmp_path / "project"),
        "env_names": [],
        "user": getpass.getuser(),
        "bundle": {"bytes": len(script), "git_commit": None, "git_dirty": None},
        "world_size": 2,
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
                "log": str(session.path / "logs" / f"rank{rank}-node{rank}.log"),
            }
            for rank in (0, 1)
        ],
    }


@pytest.mark.parametrize(
    ("logs", "expected"), [("head", ["[0 node0] 0"]), ("all", ["[0 node0] 0", "[1 node1] 1"]), ("none", [])]
)
def test_whose_output_is_shown(nodes: list[LocalNode], tmp_path: Path, logs: str, expected: list[str]) -> None:
    session = Session(nodes, order(tmp_path, "import os\nprint(os.environ['NODE_RANK'])", logs=logs)).run()
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

    session = Session(nodes, order(tmp_path, script))
    session.run(meanwhile)
    assert session.lines[1:4] == ["[0 node0] first", "[0 node0] then 100%", "[0 node0] no newline"]
    assert session.files("logs")["rank0-node0.log"].startswith(b"first\n\x1b[31mthen"), "the file has every byte"


def test_failure_names_the_cause_and_stops_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = (
        "import os, pathlib, time\npathlib.Path('partial').write_text('x')\n"
        "if os.environ['NODE_RANK'] == '1':\n    time.sleep(0.3)\n    raise ValueError('bad batch 17')\n"
        "print('waiting')\ntime.sleep(600)\n"
    )
    session = Session(nodes, order(tmp_path, script)).run()
    record = session.record
    assert session.error == (
        f"rank 1 (node1) exited with code 1 after {record['ranks'][1]['seconds']:.0f} s: ValueError: bad batch 17; see "
        f"{session.path}/logs/rank1-node1.log"
    )
    assert session.said[-1][0] - session.said[0][0] < 6
    assert "[0 node0] waiting" in session.lines
    assert (record["state"], record["cause"]) == ("failed", session.error)
    assert [(rank["state"], rank["exit_code"], rank["signal"]) for rank in record["ranks"]] == [
        ("stopped", 143, 15),
        ("failed", 1, None),
    ]
    assert all(node.follow(wait_seconds=0, job=session.id)[0]["state"] in ("stopped", "failed") for node in nodes)
    assert session.files("artifacts") == {"partial": b"x"}
    assert session.files("logs")["rank1-node1.log"].endswith(b"ValueError: bad batch 17\n")


def test_failure_of_all_ranks_counts_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "import os, time\ntime.sleep(0.5 * int(os.environ['NODE_RANK']))\nraise SystemExit('gave up')\n"
    session = Session(nodes, order(tmp_path, script)).run()
    seconds = session.record["ranks"][0]["seconds"]
    log = f"{session.path}/logs/rank0-node0.log"
    cause = f"rank 0 (node0) exited with code 1 after {seconds:.0f} s: gave up; see {log}"
    assert session.error in (cause, f"{cause}. After it failed too: rank 1 (node1)")


def test_a_rank_that_is_not_shown_can_be_the_cause(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = (
        "import os, time\nrank = int(os.environ['NODE_RANK'])\ntime.sleep(0.6 - 0.5 * rank)\n"
        "raise SystemExit('connection closed by peer' if rank == 0 else 'the cause')\n"
    )
    session = Session(nodes, order(tmp_path, script)).run()
    assert session.error.startswith("rank 1 (node1) exited with code 1 after ")
    assert session.error.endswith(
        f" s: the cause; see {session.path}/logs/rank1-node1.log. After it failed too: rank 0 (node0)"
    )


def test_a_node_that_cannot_prepare_leaves_no_record(nodes: list[LocalNode], tmp_path: Path) -> None:
    shutil.rmtree(nodes[1].directory)
    session = Session(nodes, order(tmp_path, "pass")).run()
    assert session.error == (
        f"node1 was never set up: there is no {nodes[1].directory}; run: ansible-playbook setup.yml. Nothing was "
        "started on any node."
    )
    assert (session.lines, session.order.runs.exists()) == ([], False)
    assert nodes[0].jobs == []


def test_a_node_that_cannot_start_is_recorded(nodes: list[LocalNode], tmp_path: Path) -> None:
    class NoStart(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if ".start" in command:
                raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    nodes[1].connection = NoStart()
    session = Session(nodes, order(tmp_path, "import time; time.sleep(600)")).run()
    assert session.error == ("node1 is unreachable: Connection refused. The job was stopped on every other node.")
    assert (session.record["state"], session.record["cause"]) == ("failed", session.error)
    assert [node.supervisor() for node in nodes] == [None, None]


def test_artifacts_that_cannot_be_fetched_do_not_change_how_the_job_ended(
    nodes: list[LocalNode], tmp_path: Path
) -> None:
    class NoArtifacts(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            if b"'op': 'artifacts'" in in_data:
                raise AnsibleConnectionFailure("Connection refused")
            return super().exec_command(command, in_data)

    nodes[0].connection = NoArtifacts()
    session = Session(nodes, order(tmp_path, "print(1)")).run()
    note = (
        "artifacts were not collected: node0 is unreachable: Connection refused; they are in the job's work directory "
        "on node0"
    )
    assert session.error == ""
    assert session.record["notes"] == [note]
    assert note in session.lines


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("run.yml -i inventory -v --limit a,b", "run.yml -i inventory -v --limit a,b"),
        ("run.yml -e script=train.py", "run.yml -e script=train.py"),
        ("run.yml -escript=train.py", "run.yml -escript=train.py"),
        ("run.yml --extra-vars=logs=all", "run.yml --extra-vars=logs=all"),
        ("run.yml -e job_bundle_max_mb=5", "run.yml -e job_bundle_max_mb=5"),
        ("run.yml -e job_env={A:hush}", "run.yml -e …"),
        ("run.yml --extra-vars env={A:hush} -v", "run.yml --extra-vars … -v"),
        ("run.yml --extra-vars=env={A:hush}", "run.yml …"),
        ("run.yml -e ansible_become_password=hush", "run.yml -e …"),
        ("run.yml -eenv={A:hush}", "run.yml …"),
    ],
)
def test_the_recorded_command_has_no_secrets(given: str, recorded: str) -> None:
    assert runner._without_values(given.split()) == recorded.split()


def test_a_secret_beside_a_harmless_variable_is_not_recorded() -> None:
    assert runner._without_values(["-e", "script=train.py env={A: hush}"]) == ["-e", "…"]


def test_values_of_the_environment_are_recorded_nowhere(
    nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '{"TOKEN": "hush", "OTHER": 1}'
    monkeypatch.setattr(sys, "argv", ["ansible-playbook", "run.yml", "-e", f'{{"env": {text}}}'])
    session = Session(nodes, order(tmp_path, "print(1)", env=text)).run()
    assert session.record["command"] == ["ansible-playbook", "run.yml", "-e", "…"]
    assert session.record["env_names"] == ["OTHER", "TOKEN"]
    assert [path for path in session.path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()] == []


# ------------------------------------------------------------------------------------------------------------ the cause


def explained(tmp_path: Path, *endings: Ending) -> str | None:
    settings = [NodeSettings(f"node{rank}", None, "/", 29500, "", {}) for rank in range(len(endings))]
    located = {one.host: {"address": f"198.18.0.{rank}", "interface": "eth0"} for rank, one in enumerate(settings)}
    logs = {one.host: RankLog(tmp_path / one.host) for one in settings}
    for rank, log in enumerate(logs.values()):
        log.write(b"ValueError: of rank %d\n" % rank)
    return runner.explain(
        rank_nodes(settings, located), {f"node{rank}": ending for rank, ending in enumerate(endings)}, logs
    )


def ended(state: str, arrived: float, **more: Any) -> Ending:
    return Ending(state, arrived=arrived, **more)


@pytest.mark.parametrize(
    ("endings", "expected"),
    [
        ([ended("succeeded", 1), ended("succeeded", 2)], None),
        (
            [ended("failed", 2, exit_code=1, seconds=3.0), ended("failed", 1, exit_code=5, seconds=2.2)],
            "rank 1 (node1) exited with code 5 after 2 s: ValueError: of rank 1; see LOGS/node1. After it failed too: "
            "rank 0 (node0)",
        ),
        (
            [ended("stopped", 3, signal=15), ended("failed", 2, exit_code=139, signal=11), ended("succeeded", 1)],
            "rank 1 (node1) was killed by SIGSEGV: ValueError: of rank 1; see LOGS/node1",
        ),
        (
            [ended("stopped", 3, signal=15), ended("lost", 9, note="gave no sign of life for 40 s")],
            "rank 1 (node1) gave no sign of life for 40 s: ValueError: of rank 1; see LOGS/node1",
        ),
        (
            [ended("stopped", 2, exit_code=143, signal=15), ended("stopped", 1, exit_code=0)],
            "rank 0 (node0) was stopped: ValueError: of rank 0; see LOGS/node0",
        ),
    ],
)
def test_explain(tmp_path: Path, endings: list[Ending], expected: str | None) -> None:
    text = explained(tmp_path, *endings)
    assert text == (expected.replace("LOGS", str(tmp_path)) if expected else None)
