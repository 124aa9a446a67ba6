# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reads bytes that a node, a job or a stranger wrote: each target takes any bytes, and fails if it should not."""

import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import lightning_checkpoint
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_gang_state import valid_gang_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import valid_fields
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import SPEC, STATE, fit_to_limits
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis import parse_stacks
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
    describe_ranks,
    read_activity,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    Reachability,
    read_connections,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.explain_stall import (
    LONGEST_SENTENCE,
    Findings,
    explain,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import (
    AuthenticatedStream,
    ForgedMessage,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.gang_member import GangMember
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_reader import LineReader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import (
    REPLIES,
    find_flaw,
    parse,
)

OPERATIONS = sorted(REPLIES)
REQUEST: Mapping[str, Any] = {
    **{"imports": {}, "address": None, "after": "", "most": 100, "offset": 0, "max_bytes": 100},
    "parts": [("result", 0, 8)],
}
MEMBERS = [Member(f"node{rank}", f"198.18.0.{rank + 1}", 40000) for rank in range(3)]
HOSTS = [member.host for member in MEMBERS]
KEY = bytes(32)


def from_json(data: bytes) -> Any:
    """Return a JSON value, or None if the bytes are none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def reply(data: bytes) -> None:
    """A node's reply: the first byte chooses the operation."""
    if not data:
        return
    try:
        value = parse(data[1:])
    except ValueError:
        return
    flaw = find_flaw({**REQUEST, "op": OPERATIONS[data[0] % len(OPERATIONS)]}, value, b"")
    assert flaw is None or isinstance(flaw, str)


def stream(data: bytes) -> None:
    """What comes over a supervisor's connection, from a stranger or cut into pieces."""
    one = AuthenticatedStream(KEY, False, bytes(range(16)))
    size = 1 + data[0] if data else 1
    try:
        for at in range(1, len(data), size):
            assert one.receive(data[at : at + size]) == [], "nobody else has the key"
    except ForgedMessage:
        return


def messages(data: bytes) -> None:
    """Messages, a line each, of a member that somebody has broken into, to a head and to a member."""
    for rank in (0, 1):
        one = GangMember(rank, 3, 6.0, 0.0, 20, 20)
        one.start(MEMBERS, 0.0)
        for other in {0, 1, 2} - {rank}:
            one.connected(other, 0.0)
        for number, line in enumerate(data.split(b"\n")[:20]):
            message = from_json(line)
            if isinstance(message, dict):
                one.received(2, message, float(number))
                one.tick(float(number))
        one.tick(100.0)
        json.dumps([one.outbox, one.tasks, one.summary()])
        assert one.verdict is None or len(json.dumps(one.verdict)) <= 3000


def findings(data: bytes) -> None:
    """What the inspectors of two nodes have found, and what it comes to."""
    value = from_json(data)
    if not isinstance(value, list) or len(value) != 4:
        return
    activities = {host: one for host, part in zip(HOSTS, value, strict=False) if (one := read_activity(part))}
    tried = {host: one for host, part in zip(HOSTS, value[2:], strict=False) if (one := read_connections(part, HOSTS))}
    failed = {host: one for host, (one, _master) in tried.items()}
    masters = {host: why for host, (_failed, why) in tried.items() if why}
    ports = {host: one.port for host, one in activities.items()}
    errors = {host: "did not answer the head" for host in HOSTS if host not in activities}
    reach = Reachability(HOSTS, 29500, dict.fromkeys(HOSTS, 40000), failed, masters, {})
    verdict = explain(Findings(HOSTS, activities, errors, ports=ports, master_port=29500), lambda _master: reach)
    assert verdict.sentence.isprintable() and len(verdict.sentence) <= LONGEST_SENTENCE + 1


def stacks(data: bytes) -> None:
    """py-spy's text of two processes, apart by a line that begins with ====."""
    texts = ["\n".join(map(printable, text.split(b"\n"))) for text in data.split(b"\n====")[:3]]
    processes = [
        parse_stacks.Process(7 + number, 7 if number else 1, number or None, "S", True, text)
        for number, text in enumerate(texts)
    ]
    activity = describe_ranks(processes, data, 10.0)
    sent = read_activity(json.loads(json.dumps(activity)))
    assert sent is not None and len(sent.ranks) == len(activity.ranks)


def job_files(data: bytes) -> None:
    """state.json, spec.json and gang.json of a job: what the agent believes, the controller takes."""
    value = from_json(data)
    if not isinstance(value, dict):
        return
    for kinds in (STATE, SPEC):
        known = valid_fields(value, kinds)
        if known is not None:
            json.dumps(fit_to_limits(known)).encode()
            assert all(kinds[name](known[name]) for name in known)
    gang = valid_gang_state(value)
    if gang is not None:
        sent = {"ok": True, "state": "running", "more": False, "offset": 0, "gang": fit_to_limits(gang)}
        assert find_flaw({**REQUEST, "op": "follow"}, json.loads(json.dumps(sent)), b"") is None, gang


def checkpoint(data: bytes) -> None:
    """A file that claims to be a checkpoint; its pickle is read, never run."""
    lightning_checkpoint.step_in(data)
    descriptor = os.memfd_create("checkpoint")
    with open(descriptor, "w+b") as file:
        file.write(data)
        file.flush()
        file.seek(0)
        try:
            step = lightning_checkpoint.find_step(lightning_checkpoint.open_archive(file))
        except lightning_checkpoint.Unfit:
            return
    assert step >= 0


def log(data: bytes) -> None:
    """A job's output, in pieces: no control character but the tab gets to a terminal."""
    reader, size = LineReader(lambda: 0.0), 1 + (data[0] if data else 0)
    source = io.BytesIO(data[1:])
    while piece := source.read(size):
        for line in reader.feed(piece):
            assert all(one == "\t" or ord(one) >= 32 for one in line) and len(line) < 10_000


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (reply, stream, messages, findings, stacks, job_files, checkpoint, log)
}
