# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent sends of a node where all is as large, as long and as odd as can be: the controller takes it."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent import contract
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import valid_fields
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import SPEC, STATE
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.take_stacks import (
    read_process,
    take_snapshot,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import listing, status_report
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import (
    REPLIES,
    find_flaw,
    parse,
)
from left_jobs import gang_on, leave
from local_nodes import SLEEP, LocalNode, code, gang_of, opener, until
from lying_nodes import honest
from test_hostile_node import REQUESTS

EXTREMES = [
    *(0, -1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**17, 10**400, 1e17, 1e300, math.inf, -math.inf, math.nan, 5e-324),
    *("", " ", "\0", "\ud800", "a\udcffb", "x" * 5000, "\ud800" * 5000, "\U0010ffff" * 2**20, "a\nb\x1b[2J", "'\"\\"),
]


@pytest.fixture
def wide_node() -> Iterator[LocalNode]:
    """A node on a file system that has files of almost 8 EiB, as long as nothing is in them."""
    with tempfile.TemporaryDirectory(prefix="thunderhead-test-", dir="/dev/shm") as name:
        node = LocalNode(Path(name) / "node").set_up()
        yield node
        node.end_all()


def listed(node: LocalNode, **more: Any) -> list[dict[str, Any]]:
    request = {"op": "list_jobs", "directory": str(node.directory), "user": "", "newest": 10, "only": None, **more}
    jobs: list[dict[str, Any]] = node.channel().call(request)[0]["jobs"]
    return jobs


# ------------------------------------------------------------------------------------------------------ every reply


def extreme(value: Any, chance: random.Random) -> Any:
    """Return a reply of the same form whose values are extreme, each of a kind that the operation could give."""
    if isinstance(value, dict):
        return {name: extreme(one, chance) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(extreme(one, chance) for one in value)
    same = [one for one in EXTREMES if isinstance(one, str if isinstance(value, str) else (int, float))]
    return value if value is None or isinstance(value, (bool, bytes)) else chance.choice(same)


@pytest.mark.parametrize("op", sorted(REPLIES))
def test_whatever_is_in_a_reply_it_can_be_read(op: str) -> None:
    """Its text and its numbers are then within the bounds that are the same on both sides."""
    chance = random.Random(op)
    for _round in range(20):
        reply = extreme({"ok": True, **honest(REQUESTS[op])[0]}, chance)
        fitted = contract.fit_to_limits(reply)
        assert fitted.keys() == reply.keys()
        assert parse(json.dumps(fitted).encode()) == fitted
        assert str(fitted).encode()
        assert contract.fit_to_limits(fitted) == fitted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**64, 2**63 - 1),
        (-(2**64), -(2**63) + 1),
        (math.inf, 2**63 - 1),
        (math.nan, 2**63 - 1),
        (1.5, 1.5),
        (True, True),
        ("a\ud800", "a\\ud800"),
        ("x" * 5000, "x" * 4095 + "…"),
        (contract.Document("x" * 5000), "x" * 5000),
        ([1] * 100_001, [1] * 100_000),
        ({"\ud800": [(None, "x")]}, {"\\ud800": [[None, "x"]]}),
    ],
)
def test_bounds(value: Any, expected: Any) -> None:
    assert contract.fit_to_limits(value) == expected


def test_what_lies_too_deep_is_left_out() -> None:
    deep: Any = []
    for _level in range(100):
        deep = [deep]
    assert parse(json.dumps(contract.fit_to_limits(deep)).encode()) == contract.fit_to_limits(deep)


# -------------------------------------------------------------------------------------------------- what jobs can write


def test_a_log_of_8_pebibytes(wide_node: LocalNode, tmp_path: Path) -> None:
    script = "import os, time\nos.truncate(os.environ['JOB_DIR'] + '/log', 2**63 - 2**21)\n" + SLEEP
    wide_node.start(code(tmp_path / "code", script), JOBS[0])
    until(lambda: listed(wide_node)[0]["size"] > 2**53)
    reply, data = wide_node.follow(job=JOBS[0], max_bytes=100)
    assert (reply["state"], reply["more"], data) == ("running", True, bytes(100))


def test_files_of_8_pebibytes(wide_node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import os\nfor name in ('file', 'last.ckpt'):\n  open(name, 'w').close()\n  os.truncate(name, 2**63 - 2**21)\n"
    )
    assert wide_node.run(script, tmp_path / "code")[0]["state"] == "succeeded"
    for name in ("file", "last.ckpt"):
        os.utime(wide_node.job_dir() / "work" / name, ns=(2**63 - 1, 2**63 - 1))
    _reply, listing = wide_node.channel().call(wide_node.request("list_artifacts", after="", most=10))
    assert listing.startswith(b"file\0%d\0" % (2**63 - 2**21))
    reply, data = wide_node.channel().call(wide_node.request("read_files", parts=[("file", 2**62, 5)]))
    assert (reply["parts"][0][:2], data) == ([5, 2**63 - 2**21], bytes(5))
    assert wide_node.ask("list_checkpoints")["refused"] == [["last.ckpt", "is not in torch's zip format"]]


def test_paths_that_are_long_and_odd(wide_node: LocalNode) -> None:
    work = leave(wide_node)
    folder = os.open(work, os.O_RDONLY)
    for level in range(25):  # 5,000 bytes and more
        name = f"{level:0200}"
        os.mkdir(name, dir_fd=folder)
        descriptor = os.open("a.ckpt", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
        os.close(descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    for odd in (b"\xff.ckpt", b"a\nb.ckpt", "\u202e.ckpt".encode(), b"'\"\\.ckpt", b"\xff.ckpt.d", b"\xfe.txt"):
        (work / os.fsdecode(odd)).write_bytes(b"")
    refused = dict(wide_node.ask("list_checkpoints")["refused"])
    assert refused["\\udcff.ckpt"] == "has a name that is not UTF-8; rename it"
    assert refused["a\nb.ckpt"] == "is empty"
    assert max(map(len, refused)) > 3000
    _reply, listing = wide_node.channel().call(wide_node.request("list_artifacts", after="", most=100))
    assert b"\xfe.txt\0" in listing
    shutil.rmtree(work)


def test_more_checkpoints_than_a_reply_names(wide_node: LocalNode) -> None:
    work = leave(wide_node)
    for number in range(3000):
        folder = work / ("\U0001f600" * 60 + f"{number}") / ("\U0001f600" * 60) / "x.ckpt"
        folder.mkdir(parents=True)
        (folder / "part").touch()
    refused = wide_node.ask("list_checkpoints")["refused"]
    assert 500 < len(refused) < 3000


def test_a_path_of_5000_bytes_that_is_asked_for(wide_node: LocalNode) -> None:
    leave(wide_node, state="")
    with pytest.raises(NodeError, match=r"^node0 failed at verify_checkpoint: File name too long: x{1000}"):
        wide_node.ask("verify_checkpoint", path="x" * 5000)


@pytest.mark.parametrize("rank", ["1e17", "1" + "0" * 17, "1" + "0" * 5000, "-1", "", "\udcff", "0x1", " 1"])
def test_a_local_rank_that_is_none(rank: str) -> None:
    command = [sys.executable, "-u", "-c", SLEEP]
    with subprocess.Popen(command, env={"LOCAL_RANK": rank}, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        found = read_process(process.pid)
        process.kill()
    assert found and found["local_rank"] is None


def test_stacks_of_a_job_whose_processes_are_odd(wide_node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "odd = [b'\\xff' * 3000, b'\\xf0\\x9f\\x98\\x80' * 900]\n"
        "for name in odd:\n"
        "  subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', name],\n"
        "    env={'LOCAL_RANK': '1' + '0' * 17})\n"
    )
    wide_node.start(code(tmp_path / "code", script + SLEEP))
    until(lambda: b"ready" in wide_node.follow()[1])
    found = take_snapshot(wide_node.supervisor(), str(wide_node.directory), None, 0)
    assert len(found.processes) == 3
    assert {one.local_rank for one in found.processes} == {None}
    assert all(len(one.text.partition("\n")[0]) < 4096 for one in found.processes)


# --------------------------------------------------------------------------------------- what a job can say of itself


def jsons(value: Any) -> str:
    """Return JSON as a job can write it: with NaN, halves of characters, and numbers without bounds."""
    return json.dumps(value) if value != 10**400 else "1" + "0" * 400


@pytest.mark.parametrize("kinds", [SPEC, STATE], ids=["spec.json", "state.json"])
def test_what_is_believed_is_taken_by_the_controller(kinds: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for name in kinds:
        for one in (*EXTREMES, None, True, [], {}, ["\ud800"], {"\ud800": "\ud800"}):
            for value in (one, [one], [{"rank": 1, "host": one, "address": one}]):
                with open(path, "w") as file:
                    file.write(f'{{"{name}": {jsons(value) if value is one else json.dumps(value)}}}')
                known = valid_fields(read_json(str(path)), kinds)
                if known:
                    sent = parse(json.dumps(contract.fit_to_limits(known)).encode())
                    assert all(kinds[field](found) for field, found in sent.items()), (name, value)


JOBS = [f"20260101-0000{number:02}-job-0000" for number in range(11)]
DEEP = "[" * 900 + "]" * 900
VAST = json.dumps({"args": ["\U0001f600" * 1000] * 300, "rank": 0, "script": "x.py", "id": "job-1"})


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\0" * 4001, "{", "null", "[]", '{"state"', f'{{"because": {DEEP}}}', f'{{"ranks": {DEEP}}}', VAST),
        *('{"state": "running", "because": "\\ud800"}', '{"state": "failed", "started": 1e400}', "9" * 10**5),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_files_that_a_job_or_a_power_cut_has_spoilt(node: LocalNode, text: str) -> None:
    leave(node, JOBS[0], spec={"rank": 0})
    for name in ("state.json", "spec.json"):
        (node.job_dir(JOBS[0]) / name).write_text(text)
    for only in (None, JOBS[0]):
        (job,) = listed(node, only=only)
        assert job["state"]["state"] in ("lost", "failed")
    reply, _data = node.follow(job=JOBS[0], wait_seconds=0)
    assert reply["state"] in ("lost", "failed")


def test_arguments_that_are_longer_than_a_reply(node: LocalNode) -> None:
    for job in JOBS[:10]:
        leave(node, job)
        (node.job_dir(job) / "spec.json").write_text(VAST)
    assert [job["spec"].keys() for job in listed(node)] == [{"rank", "script", "id"}] * 10
    long = ["x" * 100_000]
    leave(node, JOBS[10], spec={"rank": 0, "args": long})
    assert listed(node, only=JOBS[10])[0]["spec"]["args"] == long, "as long as an argument can be"


def test_a_half_of_a_character_does_not_keep_a_stop_from_the_others(nodes: list[LocalNode], tmp_path: Path) -> None:
    """Its node says that it failed, and why in a word that UTF-8 cannot hold; others are then told so."""
    launch = gang_of(nodes, code(tmp_path / "code", SLEEP))
    launch.prepare()
    launch.start()
    until(lambda: all(node.state() for node in nodes))
    words = "rank \ud800 \udcff"
    for field in ("because", "error"):
        (nodes[0].job_dir() / "state.json").write_text(json.dumps({"state": "failed", field: words}))
        reply, _data = nodes[0].follow(wait_seconds=0)
        assert reply[field] == "rank \\ud800 \\udcff"
    replies, errors = gang_on(nodes).stop(1, words)
    assert not errors
    assert [reply["left"] for reply, _payload in replies.values()] == [[], []]
    assert nodes[1].state()["because"] == "rank ? ?"


def test_halves_of_characters_in_every_field_of_a_job(nodes: list[LocalNode]) -> None:
    text = "20260101-120000-\ud800-abcd"
    ranks = [{"rank": 0, "host": "\ud800", "address": "\ud800"}]
    spec = {name: text for name in ("id", "user", "start", "script", "launcher", "bundle", "python", "master_addr")}
    job = "20260101-120000-train-abcd"
    leave(nodes[0], job, spec={**spec, "args": [text], "ranks": ranks, "rank": 0, "world_size": 1})
    (nodes[0].job_dir(job) / "state.json").write_text(json.dumps({"state": "failed", "because": text, "error": text}))
    views, errors = listing.list_jobs(NodeGroup([node.settings() for node in nodes], opener(nodes)))
    assert not errors
    json.dumps(status_report.as_data(views, errors), ensure_ascii=False).encode()
    assert status_report.as_table(views, errors, 200).encode()


def test_a_node_that_sends_one_is_not_believed() -> None:
    reply, payload = honest(REQUESTS["follow"])
    assert find_flaw(REQUESTS["follow"], {"ok": True, **reply, "because": "\ud800"}, payload) == "field because"
