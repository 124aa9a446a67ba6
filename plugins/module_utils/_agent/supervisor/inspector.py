# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look into the job's processes, in a process beside the supervisor.

The supervisor must not wait for that; and where it has become the job's user, it may see less than the account that
the agent has: by default, Linux lets only root look into a process that is no child of one's own.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_end, write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    checkpoints_path,
    no_retry_path,
    stacks_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import (
    CONNECT,
    EXPLAIN,
    FIND,
    LOOK,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import (
    Member,
    NodeFacts,
    Plan,
)

LOG_BYTES = 2**16
"""How much of the end of the log is read."""
LONGEST_STACKS = 2**22
"""Bytes of the file with the stacks."""
LONGEST_ERROR = 300
LONGEST_LIST = 2**18
"""Bytes of the end of the list of checkpoints that are read."""


class Subject(NamedTuple):
    """The job that is inspected, as this node knows it.

    Attributes:
        id: the job's.
        directory: the cluster directory.
        user: whom the job runs as.
        supervisor: id of the process below which it runs.
        plan: what is started.
        facts: what this node puts into it.
    """

    id: str
    directory: str
    user: User
    supervisor: int
    plan: Plan
    facts: NodeFacts


def serve(connection: socket.socket, subject: Subject) -> None:
    """Do the tasks that come over a connection, one after the other, until it is closed.

    A task is a line of JSON: ``task`` (its name), ``number``, ``members`` (of the start message), ``roster`` (the place
    of each that takes part now, in the order of NODE_RANK), and what it takes; the answer is one with ``task``,
    ``number`` and ``result``.
    """
    tasks: dict[str, Callable[[Subject, dict[str, Any]], dict[str, Any]]] = {
        LOOK: functools.partial(look, functools.partial(wait_or_end, connection)),
        CONNECT: connect,
        EXPLAIN: explain,
        FIND: find,
    }
    with suppress(BrokenPipeError, ConnectionResetError), connection.makefile("rb") as lines:
        for line in lines:
            task = json.loads(line)
            try:
                result = tasks[task["task"]](subject, task)
            except Exception as error:  # a defect, or a disk that is full: told, and no reason to end
                result = {"error": f"{type(error).__name__}: {error_text(error)}"[:LONGEST_ERROR]}
            answer = {"task": task["task"], "number": task["number"], "result": result}
            connection.sendall(json.dumps(answer).encode() + b"\n")


def wait_or_end(connection: socket.socket, seconds: float) -> None:
    """Wait, but end this process at once when the supervisor has ended: the job may be over."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if poll.poll(seconds * 1000) and not connection.recv(1, socket.MSG_PEEK):
        os._exit(0)


def look(wait: Callable[[float], None], subject: Subject, task: dict[str, Any]) -> dict[str, Any]:
    """Take the stacks of this node's ranks, write them into the job's folder, and say in short what they do."""
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import free_port
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
        describe_ranks,
    )
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.take_stacks import take_snapshot

    job_dir, user = subject.facts.job_dir, subject.user
    owner = user if os.geteuid() != user.uid else None
    found = take_snapshot(subject.supervisor, subject.directory, owner, task["seconds"], wait)
    log = b""
    with user.acting():
        with suppress(OSError):
            log = read_end(os.path.join(job_dir, "log"), LOG_BYTES)
        text = found.text or "no process of the job runs here\n"
        with suppress(OSError):
            write_file(stacks_path(job_dir), text.encode()[:LONGEST_STACKS], 0o600)
    seconds = found.seconds if task["seconds"] else 0.0
    return {"found": describe_ranks(found.processes, log, seconds, found.missing, free_port())}


def connect(subject: Subject, task: dict[str, Any]) -> dict[str, Any]:
    """Try to connect to all other nodes, and to MASTER_PORT on the head, while they do the same."""
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.connection_test import (
        ConnectionTest,
    )

    members = [Member(*one) for one in task["members"]]
    own, head = members[subject.plan.rank], members[0]
    ports = {members[int(rank)].host: port for rank, port in task["ports"].items()}
    addresses = {member.host: member.address for member in members}
    tries_master = task["master"] and subject.plan.rank
    with subject.user.acting():
        test = ConnectionTest(
            job=subject.id,
            name=own.host,
            address=own.address,
            port=ports[own.host],
            interface=subject.facts.interface,
            peers={host: (addresses[host], port) for host, port in ports.items()},
            seconds=task["seconds"],
            master=(head.address, subject.plan.master_port) if tries_master else None,
            head=None,
        )
        reply = test.run()
    return {"found": {"failed": reply["failed"], "master": reply["master"]}}


def find(subject: Subject, _task: dict[str, Any]) -> dict[str, Any]:
    """Find what another attempt may go on from: a checkpoint that its Trainer has saved, or the job's own.

    Returns:
        found: path, relative to the working directory or absolute, and step of the newest that is whole, and how many
            seconds ago it was written; None without.
        refusal: why the job must not be tried again, as its own Python says; "" if it does not.
    """
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_checkpoints import (
        find_newest_whole,
    )
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import printable

    job_dir, saved = subject.facts.job_dir, b""
    work = os.path.join(job_dir, "work", "")
    with subject.user.acting():
        with suppress(FileNotFoundError):
            why = printable(read_end(no_retry_path(job_dir), LONGEST_ERROR))
            return {"found": None, "refusal": why or "its own Python forbids it"}
        with suppress(OSError):
            saved = read_end(checkpoints_path(job_dir), LONGEST_LIST)
        paths = {
            os.path.join(work, os.fsdecode(path))
            for path in [*saved.splitlines(), os.fsencode(subject.plan.checkpoint)]
            if path
        }
        try:
            found = find_newest_whole(paths)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # reading has set it: this process would end when it is idle
    if not found:
        return {"found": None, "refusal": ""}
    path, step, mtime = found
    return {"found": [path.removeprefix(work), step, time.time() - mtime], "refusal": ""}


class _ConnectFirst(Exception):
    """The explanation depends on which nodes can connect to which."""


def explain(subject: Subject, task: dict[str, Any]) -> dict[str, Any]:
    """Explain why no rank prints anything.

    Returns:
        found: ``(rendezvous, passed, sentence, open)`` of a ``Verdict``; or ports and master, with which all nodes are
        to connect to each other first.
    """
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import ONLY_SMALL
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
        read_activity,
    )
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
        Reachability,
        read_connections,
    )
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.explain_stall import Findings
    from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.explain_stall import (
        explain as explain_findings,
    )

    members = [Member(*one) for one in task["members"]]
    names = [member.host for member in members]
    hosts = [names[rank] for rank in task["roster"]]
    activities = {names[int(rank)]: read_activity(one) for rank, one in task["activities"].items()}
    known = {host: one for host, one in activities.items() if one is not None}
    errors = {names[int(rank)]: escape(str(why)) for rank, why in task["errors"].items()}
    errors.update({host: "sent something that is no activity" for host, one in activities.items() if one is None})
    unreached = {names[int(rank)]: why for rank, why in task["unreached"].items()}
    master_port = subject.plan.master_port

    def try_connections(master: bool) -> Reachability | None:
        if task["reached"] is None:
            raise _ConnectFirst(master)
        ports = {names[int(rank)]: port for rank, port in task["ports"].items()}
        replies = {names[int(rank)]: read_connections(one, hosts) for rank, one in task["reached"].items()}
        found = {host: one for host, one in replies.items() if one is not None}
        unknown: dict[str, object] = {host: "did not try" for host in hosts if host not in found}
        failed = {host: one for host, (one, _master) in found.items()}
        masters = {host: why for host, (_failed, why) in found.items() if why not in ("", ONLY_SMALL)}
        return Reachability(hosts, master_port, ports, failed, masters, unknown)

    gang_ports = {members[rank].host: members[rank].gang_port for rank in task["roster"]}
    findings = Findings(hosts, known, errors, unreached, gang_ports, master_port)
    try:
        verdict = explain_findings(findings, try_connections)
    except _ConnectFirst as needed:
        ports = {rank: one.port for rank, host in enumerate(names) if (one := known.get(host)) and one.port}
        return {"ports": {str(rank): port for rank, port in ports.items()}, "master": needed.args[0]}
    return {"found": [verdict.rendezvous, verdict.passed, verdict.sentence, verdict.open]}
