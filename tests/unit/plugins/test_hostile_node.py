# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that lies: nothing outside the job's record is written, nothing reaches the terminal, and the user is told."""

import json
import os
import random
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils import _agent as agent
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import ask_setup_facts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands import run as runner
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.logs import follow_earlier_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.commands.stop import stop
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupted
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following import follow_ranks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.fetch_stacks import fetch_stacks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import (
    artifacts,
    checkpoints,
    cleanup,
    listing,
    status_report,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import report, run_checks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import (
    REPLIES,
    find_flaw,
)
from lying_nodes import JOB, TRIED, Answer, LyingNode, honest, written
from user_options import Undisturbed, run_options

WORDS = [
    *("", "\x1b]0;owned\x07\x1b[2J", "fine\nnode0: all is well", "\u202egnihton", "\udc80", "\0", "x" * 100_000),
    *("../../../../victim", "/tmp/victim", "..", "{{ lookup('pipe', 'touch victim') }}", "{0.__class__} %s %n"),
    *("127.0.0.1\ngang_key=00", "0.0.0.0/0", "10.0.0.1, 0.0.0.0/0", "a/../../b", "~/.ssh/authorized_keys"),
]
VALUES = [*WORDS, None, True, -1, 0, 2**40, 2**70, 1.5, 1e300, [], {}, ["\x1b[2J"], {"\x1b[2J": 1}]
REQUESTS: dict[str, dict[str, Any]] = {
    **{op: {"op": op} for op in REPLIES},
    "preflight_facts": {"op": "preflight_facts", "imports": {}},
    "list_artifacts": {"op": "list_artifacts", "after": "", "most": 2000},
    "follow": {"op": "follow", "offset": 0, "max_bytes": 100},
    "read_stacks": {"op": "read_stacks", "max_bytes": 1000},
    "read_files": {"op": "read_files", "parts": [("result", 0, 8)]},
}


def altered(value: Any) -> Iterator[Any]:
    """Yield the value with one part of it, at whatever depth, replaced, missing, or one too many."""
    yield from VALUES
    if isinstance(value, dict):
        for key in value:
            yield {name: one for name, one in value.items() if name != key}
            for other in altered(value[key]):
                yield {**value, key: other}
        yield {**value, "host": "gpu-1", "state": "\x1b[2J"}
    elif isinstance(value, (list, tuple)) and value:
        yield [*value, value[0]]
        for other in altered(value[0]):
            yield [other, *value[1:]]


def altered_payloads(payload: bytes) -> Iterator[bytes]:
    chance = random.Random(1)
    yield from (b"", b"\0", b"\0\0\0", b"\x1b[2J\n" * 9, payload[:-1], payload + b"x", payload * 2)
    yield from (chance.randbytes(length) for length in (1, 10, 1000))


def refusals() -> Iterator[Any]:
    """Yield refusals, with what may come with one and what may not."""
    holder = {"id": JOB, "user": "u", "start": "now", "pid": "1", "process_start": "2", "prepared": True}
    for fact in ({}, {"busy": holder}, {"taken": 40001}, {"running": True}, {"host": "gpu-1"}, {"state": "x"}, {1: 2}):
        yield from altered({"ok": False, "refusal": "is tired", **fact})


def test_every_operation_of_the_agent_has_a_form_for_its_reply() -> None:
    folder = Path(agent.__path__[0]) / "operations"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == REPLIES.keys()


# ---------------------------------------------------------------------------------------------------- a reply by itself


def replied(op: str, reply: Any, payload: bytes = b"") -> tuple[dict[str, Any], bytes] | str:
    """Return what comes of a reply to a request: itself, or the sentence that refuses it."""
    node = LyingNode(lie=lambda *_true: (reply, payload))
    try:
        return node.channel().call(REQUESTS[op])
    except NodeError as error:
        return str(error)


def assert_a_sentence(text: str) -> None:
    assert text.startswith("node0 ") and text.isprintable() and 6 < len(text) < 2500, text


@pytest.mark.parametrize("op", sorted(REPLIES))
def test_a_reply_is_believed_or_refused_in_a_sentence(op: str) -> None:
    true, payload = honest(REQUESTS[op])
    assert replied(op, {"ok": True, **true}, payload) == (true, payload)
    answers = [(reply, payload) for reply in altered({"ok": True, **true})]
    answers += [({"ok": True, **true}, other) for other in altered_payloads(payload)]
    answers += [(reply, b"") for reply in refusals()]
    for reply, data in answers:
        outcome = replied(op, reply, data)
        if isinstance(outcome, str):
            assert_a_sentence(outcome)
        else:
            assert outcome[0].keys() <= REPLIES[op][0].keys() | REPLIES[op][1].keys()


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"\xff\xfe", b"{", b"__import__('os').system('touch victim')", b'{"ok": true', b"{1: 2}", b'{"a"}'),
        *(b"[" * 100_000, b"-" * 100_000, b"1+" * 100_000 + b"1", b'{"ok":' * 100_000, b'"' + b"\\" * 99_999),
        *(b"9" * 100_000, b"1e999999999", b'"\\x41"', b"{'ok': True}", b'"a" "b"', b"1_0", b"[" * 900 + b"]" * 900),
        *(b"[" + b"1," * 2**22 + b"1]", b"NaN", b"...", b'{"ok": true} {"ok": true}', b"[1 2]", b"[,]"),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_reply_at_all(text: bytes) -> None:
    began = time.monotonic()
    outcome = replied("setup_facts", text)
    assert isinstance(outcome, str)
    assert_a_sentence(outcome)
    assert "sent an invalid reply to setup_facts (form" in outcome
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "output",
    [
        *(b"thunderhead-reply", b"thunderhead-reply 1\n", b"thunderhead-reply -5 0\n[]", b"thunderhead-reply a b\n"),
        *(b"thunderhead-reply 1 1 1\n", b"thunderhead-reply %d 0\n" % 10**11, b"thunderhead-reply 2 9999999\n{}"),
        *(b"\x1b[2J" * 1000, b"\0" * 1000),
    ],
)
def test_what_does_not_even_look_like_one(output: bytes) -> None:
    class Other(LyingNode):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            return 1, output, b"\x1b]0;owned\x07 \xff\n{{ 7 * 7 }}\x1b[2J"

    with pytest.raises(NodeError) as caught:
        Other().channel().call(REQUESTS["setup_facts"])
    assert_a_sentence(str(caught.value))


def test_what_is_wrong_is_named() -> None:
    true, _payload = honest(REQUESTS["setup_facts"])
    assert replied("setup_facts", {"ok": True, **true, "address": "0.0.0.0/0"}) == (
        "node0 sent an invalid reply to setup_facts (field address); another program than Thunderhead's agent may have "
        "answered: find out which before you use that machine again"
    )


@pytest.mark.parametrize("op", ["preflight_facts", "setup_facts", "prepare"])
def test_a_node_has_the_address_that_the_inventory_gives_it(op: str) -> None:
    true, _payload = honest({"op": op, "address": "198.18.0.66"})
    node = LyingNode(lie=lambda *_true: ({"ok": True, **true}, b""))
    request = {"op": op, "imports": None}
    assert "198.18.0.66" in str(node.channel().call({**request, "address": None})[0]["address"])
    with pytest.raises(NodeError) as caught:
        node.channel().call({**request, "address": "198.18.0.5"})
    assert f"invalid reply to {op} (field address)" in str(caught.value)


def test_a_node_may_lack_the_address_that_the_inventory_gives_it() -> None:
    true, _payload = honest(REQUESTS["preflight_facts"])
    lacking = {"ok": True, **true, "address": {"problem": "does not hold it"}}
    assert find_flaw({**REQUESTS["preflight_facts"], "address": "198.18.0.5"}, lacking, b"") is None


UNTRIED = {"failed": {}}


@pytest.mark.parametrize(
    ("imports", "environment", "wrong"),
    [
        ({}, UNTRIED, True),
        (None, UNTRIED, False),
        ({}, TRIED, False),
        (None, TRIED, True),
        ({}, {"problem": "has none"}, False),
        (None, {"problem": "has none"}, True),
        (None, {"failed": {"torch": "x"}}, True),
    ],
)
def test_an_environment_is_tried_if_that_was_asked_for(
    imports: dict[str, Any] | None, environment: dict[str, Any], wrong: bool
) -> None:
    true, _payload = honest(REQUESTS["preflight_facts"])
    found = find_flaw(
        {"op": "preflight_facts", "imports": imports}, {"ok": True, **true, "environment": environment}, b""
    )
    assert found == ("field environment" if wrong else None)


def test_a_preflight_of_nodes_that_leave_out_what_was_asked(tmp_path: Path) -> None:
    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        return ({**reply, "environment": UNTRIED} if request["op"] == "preflight_facts" else reply), payload

    scene = Scene(tmp_path, tell)
    scene.play("preflight")
    assert "node1 sent an invalid reply to preflight_facts (field environment)" in str(scene.said)


# ------------------------------------------------------------------------------------------------------- whole commands


class Scene:
    """Two nodes, of which the second does what `lie` says, and a user with a home that is none of their business."""

    def __init__(self, folder: Path, lie: Callable[[Mapping[str, Any], Any, bytes], Answer]) -> None:
        self.folder = folder
        self.nodes = [LyingNode(), LyingNode("node1", "127.0.0.2", lie)]
        self.said: list[str] = []
        (folder / "victim").write_text("precious")
        (folder / "victim.part").write_text("precious")
        self.options = run_options(
            *(folder, "pass"), collect="all", logs="all", runs_dir=folder / "runs", node_timeout_seconds=2, keep=5
        )

    def open(self, host: str) -> Any:
        return next(node for node in self.nodes if node.host == host).channel()

    @property
    def settings(self) -> list[Any]:
        return [node.settings() for node in self.nodes]

    @property
    def nodes_there(self) -> NodeGroup:
        return NodeGroup(self.settings, self.open)

    def context(self) -> CommandContext:
        return CommandContext(self.said.append, Undisturbed(), self.nodes_there, ["node0", "node1"])

    def gang(self) -> Gang:
        located = {n.host: {"address": n.address, "interface": "lo"} for n in self.nodes}
        identity = Identity("2026-11-22T17:30:05+01:00", JOB, "trainer")
        return Gang(identity, self.nodes_there, rank_nodes(self.settings, located))

    def run(self) -> None:
        runner.run(self.options, self.context())

    def resume(self) -> None:
        runner.run(run_options(self.folder, "pass", runs_dir=self.folder / "runs", resume=JOB), self.context())

    def logs(self) -> None:
        follow_earlier_job(self.options.follow, self.context(), JOB, None)

    def stop(self) -> None:
        context = self.context()
        stop(context.say, self.nodes_there, JOB, self.folder / "runs", 1)

    def status(self) -> None:
        views, errors = listing.list_jobs(self.nodes_there)
        context = self.context()
        context.say(status_report.as_table(views, errors, 160))
        context.say(str(status_report.as_data(views, errors)))

    def clean(self) -> None:
        cleaned, errors = cleanup.remove_old_jobs(self.nodes_there, 5, None)
        context = self.context()
        for line in (cleanup.summarize(cleaned), *cleanup.describe_leftovers(cleaned), *map(str, errors.values())):
            context.say(line)

    def setup(self) -> None:
        found = ask_setup_facts.inspect_cluster(self.nodes_there, ["node0", "node1"])
        assert [*found["nodes"]] == ["node0", "node1"]

    def stacks(self) -> None:
        gang, runs = self.gang(), self.folder / "runs"
        runs.mkdir()
        self.context().say(str(fetch_stacks(gang, runs / "stacks")))

    def preflight(self, *skip: str) -> None:
        options = {name: about.get("default") for name, about in run_checks.OPTIONS.items()}
        verdicts = run_checks.run_checks(lambda: self.nodes_there, ["node0", "node1"], {**options, "skip": list(skip)})
        context = self.context()
        context.say(report.as_table(verdicts, 1.0, None))
        context.say(json.dumps(report.as_data(verdicts, 1.0)))

    def collective(self) -> None:
        self.preflight("reach")  # where that fails nobody is asked to try more

    def play(self, command: str) -> None:
        """Run a command, and see that it did no harm."""
        before = self.outside()
        try:
            getattr(self, command)()
        except (JobError, NodeError) as error:  # in the action this goes to Ansible as it is here
            self.said.append(escape_lines(str(error)))
        except Interrupted:
            raise AssertionError("nobody pressed anything") from None
        assert self.outside() == before
        for folder, folders, files in os.walk(self.folder / "runs"):
            modes = [os.lstat(os.path.join(folder, name)).st_mode for name in (*folders, *files)]
            assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes)
        for text in self.said:
            foreign = text.replace("\n", "").replace("\x1b[0;36m", "").replace("\x1b[0;32m", "").replace("\x1b[0m", "")
            assert foreign.isprintable(), repr(text)

    def outside(self) -> dict[str, str]:
        own = [path for path in self.folder.iterdir() if path.name != "runs"]
        files = [path for one in own for path in (one, *one.rglob("*")) if path.is_file() or path.is_symlink()]
        return {str(path): path.read_text() for path in files}


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_ranks, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(follow_ranks, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints, "RETRY_SECONDS", 0.01)


MOST_LIES = 60
"""Of those about one operation, for each command that asks for it."""
COMMANDS = {
    "run": ["prepare", "follow", "list_artifacts", "read_files", "clean"],
    "resume": ["list_jobs", "list_checkpoints", "verify_checkpoint", "read_files", "place_file"],
    "logs": ["list_jobs", "follow", "list_artifacts", "read_files"],
    "stop": ["list_jobs", "stop"],
    "status": ["list_jobs"],
    "clean": ["clean"],
    "setup": ["setup_facts"],
    "stacks": ["read_stacks"],
    "preflight": ["preflight_facts", "try_connections"],
    "collective": ["try_program"],
}


def believable(op: str) -> list[Any]:
    """Return lies in the form of a true reply, and one that is not: those all come to the same."""
    true, payload = honest(REQUESTS[op])
    found = [reply for reply in altered({"ok": True, **true}) if find_flaw(REQUESTS[op], reply, payload) is None]
    words = [{"ok": False, "refusal": word} for word in WORDS[1:5]]
    few = random.Random(1).sample(found, min(len(found), MOST_LIES))
    return [*few, *words, {"ok": True, "\x1b[2J": "\x1b[2J"}]


@pytest.mark.parametrize(("command", "op"), [(command, op) for command, ops in COMMANDS.items() for op in ops])
def test_a_command_comes_to_no_harm(command: str, op: str, tmp_path: Path) -> None:
    lies = believable(op)
    for number, lie in enumerate(lies):
        folder = tmp_path / str(number)
        folder.mkdir()

        def tell(request: Mapping[str, Any], reply: Any, payload: bytes, lie: Any = lie) -> Answer:
            if request["op"] != op:
                return reply, payload
            if op == "follow" and lie.get("ok") and "offset" in lie:  # else it would only be refused
                return {**lie, "offset": reply["offset"]}, payload
            return lie, payload if lie.get("ok") else b""

        scene = Scene(folder, tell)
        scene.play(command)
        assert op in scene.nodes[1].asked or command == "resume"


NAMES = [
    *(
        "../victim",
        "../../victim",
        "/tmp/victim",
        "..",
        ".",
        "a/../../../victim",
        "a//b",
        "./x",
        "x/",
        "\x1b[2J",
        "a\nb",
    ),
    *("{{ 7 * 7 }}", "n" * 255, "n" * 256, "d/" * 300 + "f", "\udcff\udcfe", "result/below", "-rf", "~", "job.json"),
]


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [NAMES], ids=lambda names: repr(names[0][:12]))
def test_files_with_names_that_lead_elsewhere(names: list[str], tmp_path: Path) -> None:
    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        if request["op"] == "list_artifacts":
            files = sorted({"result", *names}, key=lambda name: name.split("/"))
            lines = b"".join(b"%b\0%d\0%d\0" % (name.encode(errors="surrogateescape"), 8, 10**18) for name in files)
            return reply, lines
        return reply, payload

    scene = Scene(tmp_path, tell)
    scene.play("run")
    (record,) = (tmp_path / "runs").glob("2*")
    assert (record / "artifacts" / "rank0-node0" / "result").read_text() == "a result"
    if names == ["../victim"]:
        assert "not collected from node1, because their names would leave the folder: ../victim" in "\n".join(
            scene.said
        )


@pytest.mark.parametrize(("size", "mtime_ns"), [(2**62, 1), (0, 2**63 - 1), (8, -(2**63) + 1), (2**64, 1), (8, 2**64)])
def test_files_that_cannot_be(size: int, mtime_ns: int, tmp_path: Path) -> None:
    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        return reply, b"result\0%d\0%d\0" % (size, mtime_ns) if request["op"] == "list_artifacts" else payload

    Scene(tmp_path, tell).play("run")


def test_a_checkpoint_whose_checksum_is_a_path(tmp_path: Path) -> None:
    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        if request["op"] == "list_checkpoints":
            return {**reply, "found": [("last.ckpt", 10**6, 8, 2.0)]}, b""
        return (
            ({**reply, "sha256": str(tmp_path / "victim")}, b"")
            if request["op"] == "verify_checkpoint"
            else (reply, payload)
        )

    scene = Scene(tmp_path, tell)
    scene.play("resume")
    assert "verify_checkpoint" in scene.nodes[1].asked, "it has the newest"


def test_a_node_that_never_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MOST_FILES", 5000)
    monkeypatch.setattr(cleanup, "MOST_ROUNDS", 20)

    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        if request["op"] == "list_artifacts":
            first = int(request["after"] or 10**9) + 1
            payload = b"".join(b"%d\x000\x001\0" % number for number in range(first, first + request["most"]))
        return {**reply, **({"more": True} if "more" in reply else {})}, payload

    scene = Scene(tmp_path, tell)
    scene.play("run")
    assert "lists more than 5000 files" in "\n".join(scene.said)


def test_a_log_that_acts_upon_a_terminal(tmp_path: Path) -> None:
    log = b"\x1b]0;owned\x07\x1b[2J\x9b2J {{ 7 * 7 }} \xe2\x80\xae\xc2\x9b\n"
    log += b"Traceback (most recent call last):\nE: \x1b[2J\x07\n"

    def tell(request: Mapping[str, Any], reply: Any, payload: bytes) -> Answer:
        if request["op"] == "follow":
            data = log[request["offset"] :]
            return {**reply, "because": "", "stopping": 1e9, "offset": request["offset"] + len(data)}, data
        return reply, payload

    scene = Scene(tmp_path, tell)
    scene.play("run")
    (record,) = (tmp_path / "runs").glob("2*")
    assert (record / "logs" / "rank1-node1.log").read_bytes() == log, "the file has every byte"
    assert "{{ 7 * 7 }}" in "\n".join(scene.said)


def test_what_is_written_is_what_is_sent() -> None:
    assert written({"ok": True}, b"x") == b'thunderhead-reply 12 1\n{"ok": true}x'
