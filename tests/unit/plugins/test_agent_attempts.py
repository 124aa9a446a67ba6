# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that go on by themselves: real supervisors of several nodes, whose job nobody follows."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.stop import stop
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following import follow_ranks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_ranks import JobFollower
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from local_nodes import Altered, Connection, LocalNode, Unobserving, code, gang_of, opener, until

SAVE = """
import os, pickle, zipfile
def save(name, step):
    os.makedirs("../companion", exist_ok=True)
    with open("../companion/checkpoints", "a") as file:
        file.write(os.path.abspath(name) + "\\n")
    about = {"pytorch-lightning_version": "2.6.6", "global_step": step, "state_dict": {}, "optimizer_states": []}
    with zipfile.ZipFile(name, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(about))
"""
"""What a script writes a checkpoint with, as Lightning and the companion do."""
TELL = """
import os, socket, sys, time
rank, attempt = int(os.environ["NODE_RANK"]), int(os.environ["JOB_ATTEMPT"])
print("attempt", attempt, os.environ.get("CKPT_PATH", "from the beginning").rpartition("/")[2], flush=True)
"""
MEET = """
port = int(os.environ["MASTER_PORT"])
if rank:
    deadline = time.monotonic() + 20
    while True:
        try:
            held = socket.create_connection((os.environ["MASTER_ADDR"], port))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
else:
    server = socket.create_server(("", port))
time.sleep(1)  # torch's connections stay, too
"""
KILL = "os.kill(os.getpid(), {signal})\n"


def launched(nodes: list[LocalNode], folder: Path, script: str, pause: float = 0.1, **changes: Any) -> Launch:
    """Start a script that says which attempt it is."""
    for node in nodes:
        node.connection = Altered(
            ("RECONNECT_SECONDS = 5.0", "RECONNECT_SECONDS = 1.0"),
            ("FIRST_PAUSE_SECONDS = 1.0", f"FIRST_PAUSE_SECONDS = {pause}"),
            ("LONGEST_PAUSE_SECONDS = 60.0", "LONGEST_PAUSE_SECONDS = 600.0"),
        )
    launch = gang_of(nodes, code(folder / "code", SAVE + TELL + script), **{"retries": 3, **changes})
    launch.prepare()
    launch.start()
    return launch


def ended(*nodes: LocalNode) -> list[str]:
    """Wait until the job has ended on these nodes; return the state of each."""
    until(lambda: all((node.job_dir() / "state.json").exists() for node in nodes))
    until(lambda: all("ended" in node.state() for node in nodes), 30)
    until(lambda: not any(node.supervisor() for node in nodes))
    return [node.state()["state"] for node in nodes]


def told(head: LocalNode) -> list[str]:
    """Return what the head has written down for whoever follows the job."""
    gang = json.loads((head.job_dir() / "gang.json").read_text())
    return [sentence for _at, sentence in gang["notices"]]


def printed(node: LocalNode) -> list[str]:
    """Return what a rank has printed, without the supervisor's own lines."""
    lines = (node.job_dir() / "log").read_text().splitlines()
    return [line for line in lines if not line.startswith("thunderhead:")]


KILLED_ONCE = """
if rank == 0:
    save("last.ckpt", 7 * attempt)
if attempt == 1:
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""


def test_a_rank_that_is_killed_is_started_again_with_all_others(three: list[LocalNode], tmp_path: Path) -> None:
    launched(three, tmp_path, KILLED_ONCE)
    assert ended(*three) == ["succeeded"] * 3
    assert [printed(node) for node in three] == [["attempt 1 from the beginning", "attempt 2 last.ckpt"]] * 3
    assert told(three[0]) == [
        "attempt 1 ended: rank 1 (node1) was killed by SIGKILL; attempt 2 goes on from last.ckpt, step 7, in 0 s"
    ]
    for node in three:
        state, log = node.state(), (node.job_dir() / "log").read_text()
        assert "thunderhead: attempt 2 goes on from last.ckpt, 20" in log
        assert (state["exit_code"], state["signal"], "because" in state, "stopping" in state) == (0, None, False, False)
    gang = json.loads((three[0].job_dir() / "gang.json").read_text())
    assert (gang["attempt"], gang["ending"]) == (2, False)
    (ended_attempt,) = gang["ended_attempts"]
    trained, repeated, down = (ended_attempt.pop(f"{name}seconds") for name in ("", "repeated_", "down_"))
    assert ended_attempt == {
        **{"attempt": 1, "roster": [0, 1, 2], "checkpoint": "last.ckpt"},
        "cause": "rank 1 (node1) was killed by SIGKILL",
    }
    assert trained > repeated > 0.4 and down > 0, "it was killed half a second after it had saved"
    assert "\nJOB_ATTEMPT=2\n" in (three[1].job_dir() / "node.env").read_text()


def test_the_head_s_rank_and_an_only_one(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "if rank == 0 and attempt < 3:\n    save('a.ckpt', attempt)\n    time.sleep(0.3)\n"
    script += f"    {KILL.format(signal=15)}elif attempt < 3:\n    time.sleep(600)\n"
    launched(nodes, tmp_path, script)
    assert ended(*nodes) == ["succeeded"] * 2
    expected = ["attempt 1 from the beginning", "attempt 2 a.ckpt", "attempt 3 a.ckpt"]
    assert [printed(node) for node in nodes] == [expected] * 2
    launched(nodes[:1], tmp_path / "alone", script, id="job-2")
    state, log = nodes[0].wait("job-2")
    assert (state["state"], log.count("attempt 3 a.ckpt\n")) == ("succeeded", 1)


@pytest.mark.parametrize("end", ["os._exit(1)", "time.sleep(600)"])
def test_a_process_of_a_rank_that_is_killed(nodes: list[LocalNode], tmp_path: Path, end: str) -> None:
    """As one of several local ranks; the script's own process fails because of that, or is still about to."""
    script = f"""
import subprocess
if rank == 0:
    save("a.ckpt", 5)
    if attempt == 1:
        time.sleep(0.8)
        raise SystemExit(1)
elif attempt == 1:
    local = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(0.3)
    local.kill()
    time.sleep(0.2)
    {end}
"""
    launched(nodes, tmp_path, script)
    assert ended(*nodes) == ["succeeded"] * 2
    assert [printed(node)[1:] for node in nodes] == [["attempt 2 a.ckpt"]] * 2


@pytest.mark.parametrize(
    ("script", "changes", "why"),
    [
        (KILL.format(signal=9), {"retries": 0}, None),
        ("save('a.ckpt', 1)\nraise SystemExit(3)\n", {}, None),  # its own doing
        ("save('a.ckpt', 1)\nos.abort()\n", {}, None),
        ("save('a.ckpt', 1)\nraise SystemExit(2)\n", {"retry_on": "any"}, None),  # bad arguments
        ("save('a.ckpt', 1)\nimport no_such_module\n", {"retry_on": "any"}, None),
        (f"{MEET}if rank:\n    {KILL.format(signal=9)}time.sleep(600)\n", {}, "the head has no whole checkpoint"),
        (
            "save('a.ckpt', 1)\nopen('../companion/no_retry', 'w').write('it says so\\x1b[2J\\n')\n"
            f"time.sleep(0.2)\n{KILL.format(signal=9)}",
            {},
            "it says so",
        ),
    ],
)
def test_what_is_not_tried_again(
    nodes: list[LocalNode], tmp_path: Path, script: str, changes: dict[str, Any], why: str | None
) -> None:
    launched(nodes, tmp_path, f"time.sleep(0.3)\n{script}", **changes)
    assert "failed" in ended(*nodes)
    assert all(lines[0] == "attempt 1 from the beginning" for lines in map(printed, nodes))
    assert not any("attempt 2" in (node.job_dir() / "log").read_text() for node in nodes)
    if why is None:
        assert told(nodes[0]) == []
    else:
        (sentence,) = told(nodes[0])
        assert f"was killed by SIGKILL; the job is not tried again: {why}" in sentence


def test_ranks_that_had_not_met_start_from_the_beginning_and_not_for_ever(
    nodes: list[LocalNode], tmp_path: Path
) -> None:
    launched(nodes, tmp_path, "time.sleep(0.2)\n" + KILL.format(signal=9), retries=9)
    ended(*nodes)
    assert printed(nodes[0]) == [f"attempt {number} from the beginning" for number in (1, 2, 3)]
    *before, last = told(nodes[0])
    assert ["attempt 2 starts as the first did in 0 s" in one for one in before] == [True, False]
    assert last.endswith("the job is not tried again: 3 attempts in a row have left no newer checkpoint")


def test_there_are_no_more_attempts_than_retries_allows(nodes: list[LocalNode], tmp_path: Path) -> None:
    script = "save('a.ckpt', attempt)\ntime.sleep(0.2)\nraise SystemExit(3)\n"
    launched(nodes, tmp_path, script, retries=1, retry_on="any")
    assert "failed" in ended(*nodes)
    assert len(printed(nodes[0])) == 2
    assert told(nodes[0])[-1].endswith("the job is not tried again: retries allows 2 attempts; for more: -e retries=2")


def test_a_script_that_always_fails_at_the_same_step_is_given_up(nodes: list[LocalNode], tmp_path: Path) -> None:
    launched(nodes, tmp_path, "save('a.ckpt', 50)\ntime.sleep(0.2)\nraise SystemExit(3)\n", retries=9, retry_on="any")
    assert "failed" in ended(*nodes)
    assert len(printed(nodes[0])) == 4, "one that left it, and three that left nothing newer"
    assert "3 attempts in a row have left no newer checkpoint" in told(nodes[0])[-1]


def test_a_damaged_checkpoint_is_passed_over_and_one_that_the_trainer_has_not_saved(
    nodes: list[LocalNode], tmp_path: Path
) -> None:
    script = """
if attempt == 1:
    save("old.ckpt", 1)
    save("new.ckpt", 2)
    data = bytearray(open("new.ckpt", "rb").read())
    data[60] ^= 255
    open("new.ckpt", "wb").write(data)
    save("newer.ckpt", 3)
    open("newer.ckpt", "wb").write(b"PK\\3\\4 cut short")
    save("pretrained.ckpt", 10**6)
    open("../companion/checkpoints", "r+").truncate(os.stat("../companion/checkpoints").st_size - 5)
    time.sleep(0.2)
    os.kill(os.getpid(), 9)
"""
    launched(nodes, tmp_path, script)
    assert ended(*nodes) == ["succeeded"] * 2
    assert printed(nodes[1])[1:] == ["attempt 2 old.ckpt"]


REPLACED = """
if rank == 0:
    save("a.ckpt", 5 * attempt)
print(os.environ["NODE_RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
while attempt == 1 or not os.path.exists("go"):
    time.sleep(0.05)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_takes_the_place_of_a_lost_node(three: list[LocalNode], tmp_path: Path, how: signal.Signals) -> None:
    launch = launched(three, tmp_path, REPLACED, spares=1, node_timeout_seconds=2, return_seconds=60)
    until(lambda: all("of 2" in (node.job_dir() / "log").read_text() for node in three[:2]))
    assert [node.state()["state"] for node in three] == ["running", "running", "spare"]
    assert launch.gang.topology.world_size == 2
    lost = int(three[1].supervisor() or 0)
    os.kill(lost, how)
    path = three[0].job_dir() / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text())["attempt"] == 2, 40)
    if how == signal.SIGSTOP:  # one that is back is a spare itself
        os.kill(lost, signal.SIGCONT)
        until(lambda: three[1].state()["state"] == "spare")
    for node in three:
        (node.job_dir() / "work" / "go").touch()
    assert ended(three[0], three[2]) == ["succeeded"] * 2
    assert printed(three[0]) == ["attempt 1 from the beginning", "0 of 2", "attempt 2 a.ckpt", "0 of 2"]
    assert printed(three[1]) == ["attempt 1 from the beginning", "1 of 2"]
    assert printed(three[2]) == ["attempt 2 a.ckpt", "1 of 2"]
    assert "attempt 2 goes on from a.ckpt, with rank 1 (node2), 20" in (three[2].job_dir() / "log").read_text()
    gang = json.loads(path.read_text())
    left_out = "unknown" if how == signal.SIGKILL else "spare"
    assert (gang["roster"], [one["state"] for one in gang["ranks"]]) == ([0, 2], ["succeeded", left_out, "succeeded"])
    assert told(three[0])[-1] == "attempt 2 begins with spare node2 in the place of rank 1 (node1)"
    if how == signal.SIGSTOP:
        assert ended(three[1]) == ["unused"]
        assert ", or with a spare as soon as no rank can be running there" in told(three[0])[0]


def test_a_spare_takes_the_place_of_a_node_that_shuts_down(three: list[LocalNode], tmp_path: Path) -> None:
    launched(three, tmp_path, REPLACED, spares=1, node_timeout_seconds=2)
    until(lambda: all("of 2" in (node.job_dir() / "log").read_text() for node in three[:2]))
    os.kill(int(three[1].supervisor() or 0), signal.SIGTERM)
    assert ended(three[1]) == ["stopped"]
    path = three[0].job_dir() / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text())["attempt"] == 2, 40)
    (three[0].job_dir() / "work" / "go").touch()
    (three[2].job_dir() / "work" / "go").touch()
    assert ended(three[0], three[2]) == ["succeeded"] * 2
    assert "attempt 1 ended: rank 1 (node1) was stopped by its own node, as at a shutdown" in told(three[0])[0]


def test_a_spare_that_shuts_down_changes_nothing(three: list[LocalNode], tmp_path: Path) -> None:
    launched(three, tmp_path, REPLACED.replace("attempt == 1 or ", ""), spares=1, node_timeout_seconds=2)
    until(lambda: all("of 2" in (node.job_dir() / "log").read_text() for node in three[:2]))
    os.kill(int(three[2].supervisor() or 0), signal.SIGTERM)
    assert ended(three[2]) == ["unused"]
    for node in three[:2]:
        (node.job_dir() / "work" / "go").touch()
    assert ended(*three[:2]) == ["succeeded"] * 2
    assert told(three[0]) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_who_follows_a_job_leaves_a_loss_to_the_gang(
    three: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    """And does not wait for what hangs where it has no part any more."""
    monkeypatch.setattr(follow_ranks, "GANG_SECONDS", 0.5)
    monkeypatch.setattr(follow_ranks, "QUIET_SECONDS", 0.05)
    launch = launched(three, tmp_path, REPLACED, spares=1, node_timeout_seconds=2, pause=2.0)
    logs = {node.host: RankLog(tmp_path / f"{node.host}.log") for node in three}
    follower = JobFollower(launch.gang, logs, lambda node: True, Unobserving(), 2, 2)
    until(lambda: all("of 2" in (node.job_dir() / "log").read_text() for node in three[:2]))
    lost = int(three[1].supervisor() or 0)
    os.kill(lost, how)
    for node in (three[0], three[2]):
        (node.job_dir() / "work" / "go").touch()
    try:
        endings = follower.run(lambda: False)
    finally:
        if how == signal.SIGSTOP:
            os.kill(lost, signal.SIGCONT)
    assert endings
    states = [ending.state for ending in endings.values()]
    assert states == ["succeeded", "lost" if how == signal.SIGKILL else "unused", "succeeded"]
    assert logs["node2"].path.read_bytes().endswith(b"attempt 2 a.ckpt\n1 of 2\n")


class Dead(Connection):
    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        raise AnsibleConnectionFailure("Connection timed out")


def test_a_stop_does_without_a_node_that_has_been_replaced(three: list[LocalNode], tmp_path: Path) -> None:
    job = "20260101-000000-train-0001"
    launched(three, tmp_path, REPLACED, spares=1, node_timeout_seconds=2, id=job)
    logs = [node.job_dir(job) / "log" for node in three[:2]]
    until(lambda: all(log.exists() and "of 2" in log.read_text() for log in logs))
    os.kill(int(three[1].supervisor() or 0), signal.SIGKILL)
    path = three[0].job_dir(job) / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text())["attempt"] == 2, 40)
    three[1].connection = Dead()
    said: list[str] = []
    cluster = NodeGroup([node.settings() for node in three], opener(three))
    states = stop(said.append, cluster, job, tmp_path / "runs", 2)["states"]
    assert states == {"node0": "stopped", "node2": "stopped"}
    assert said == ["node1 is unreachable: Connection timed out; it had no part in the job's last attempt"]


def in_the_pause(nodes: list[LocalNode], folder: Path) -> Launch:
    launch = launched(nodes, folder, KILLED_ONCE, pause=600.0)
    path = nodes[0].job_dir() / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text())["notices"], 20)
    assert [node.state()["state"] for node in nodes] == ["running"] * len(nodes)
    return launch


def test_a_node_that_was_frozen_is_waited_for(three: list[LocalNode], tmp_path: Path) -> None:
    script = "if rank == 0:\n    save('a.ckpt', 5)\nif attempt == 1:\n    time.sleep(600)\n"
    launched(three, tmp_path, script, node_timeout_seconds=2, return_seconds=60)
    until(lambda: all((node.job_dir() / "log").read_text().count("attempt 1") for node in three))
    frozen = int(three[2].supervisor() or 0)
    os.kill(frozen, signal.SIGSTOP)
    path = three[0].job_dir() / "gang.json"
    until(lambda: path.exists() and json.loads(path.read_text())["notices"], 20)
    os.kill(frozen, signal.SIGCONT)
    assert ended(*three) == ["succeeded"] * 3
    assert [printed(node)[-1] for node in three] == ["attempt 2 a.ckpt"] * 3
    (sentence,) = told(three[0])
    assert "the node of rank 2 (node2) sent no heartbeat for" in sentence
    assert sentence.endswith("attempt 2 goes on from a.ckpt, step 5, once rank 2 (node2) can be reached again")


def test_a_node_that_does_not_come_back_is_given_up(three: list[LocalNode], tmp_path: Path) -> None:
    launched(three, tmp_path, "save('a.ckpt', 5)\ntime.sleep(600)\n", node_timeout_seconds=2, return_seconds=1)
    until(lambda: all((node.job_dir() / "log").read_text().count("attempt 1") for node in three))
    frozen = int(three[2].supervisor() or 0)
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert ended(*three[:2]) == ["stopped"] * 2
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert "the job is not tried again: the node of rank 2 (node2) sent no heartbeat for" in told(three[0])[-1]
    assert ended(three[2]) == ["stopped"]


def test_a_stop_ends_a_job_that_waits_for_its_next_attempt(three: list[LocalNode], tmp_path: Path) -> None:
    in_the_pause(three, tmp_path)
    os.kill(int(three[2].supervisor() or 0), signal.SIGTERM)
    assert ended(*three) == ["stopped", "failed", "stopped"]
    assert told(three[0])[-1].endswith(
        "the job is not tried again: rank 2 (node2) was stopped by its own node, as at a shutdown"
    )
    assert "attempt 2" not in (three[0].job_dir() / "log").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_supervisor_that_is_killed_while_the_job_waits(three: list[LocalNode], tmp_path: Path, rank: int) -> None:
    in_the_pause(three, tmp_path)
    os.kill(int(three[rank].supervisor() or 0), signal.SIGKILL)
    left = [node for node in three if node is not three[rank]]
    states = ended(*left)
    assert states == (["failed", "stopped"] if rank == 0 else ["stopped", "stopped"])
    if rank:
        assert told(three[0])[-1].endswith("the job is not tried again: rank 1 (node1) lost its supervisor process")
