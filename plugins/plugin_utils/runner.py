# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""One job from the command line to its record: snapshot, gang, logs, artifacts, and what the user is told."""

from __future__ import annotations

import datetime
import getpass
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import artifacts, diagnosis
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import check_script, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.environment import as_environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Ending, Gang, Job, OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import LineReader, RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record, new_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node, Topology


@dataclass(frozen=True)
class Order:
    """What the user asked for, as it stands on the command line.

    Attributes:
        script: path of the script in ``project``.
        args: a string, split as a shell would, or a list; never given to a shell.
        project: folder on the controller.
        env: mapping of environment variables, or its text.
        runs: folder of the controller's records.
        logs: whose output is shown live: ``head``, ``all`` or ``none``.
        bundle_max_mb: the most the code may have, MiB.
        node_timeout_seconds: a node silent for this long is lost.
        grace_seconds: between TERM and KILL.
    """

    script: str
    args: Any
    project: Path
    env: Any
    runs: Path
    logs: str
    bundle_max_mb: int
    node_timeout_seconds: int
    grace_seconds: int


def split_args(args: Any) -> list[str]:
    """Return the script's arguments.

    Raises:
        JobError: unbalanced quotes, a null byte, or neither a string nor a list of scalars.
    """
    if isinstance(args, str):
        try:
            words = shlex.split(args)
        except ValueError as error:
            raise JobError(f"args has unbalanced quotes ({error}): {args}; close them, or give a list") from None
    elif isinstance(args, Sequence) and all(isinstance(word, (str, int, float)) for word in args):
        words = [str(word) for word in args]
    else:
        raise JobError(f"args is {args!r}; give a string such as '--max-epochs 3', or a list of words")
    if any("\0" in word for word in words):
        raise JobError("args has a word with a null byte, which no command line can hold; remove it")
    return words


def plan(order: Order, settings: Sequence[NodeSettings], open_channel: OpenChannel) -> Gang:
    """Check everything that can be checked without the nodes, snapshot the code, and return the gang.

    Raises:
        JobError: bad input.
    """
    for name, seconds, least in (
        ("job_node_timeout_seconds", order.node_timeout_seconds, 1),
        ("job_stop_grace_seconds", order.grace_seconds, 0),
    ):
        if seconds < least:
            raise JobError(f"{name} is {seconds}; set it to {least} or more")
    args = split_args(order.args)
    env = as_environment(order.env, "env")
    script = check_script(order.project, order.script)
    now = datetime.datetime.now().astimezone()
    job = Job(
        id=new_job_id(script, now),
        user=getpass.getuser(),
        start=now.isoformat(timespec="seconds"),
        bundle=make_bundle(order.project, script, order.bundle_max_mb),
        script=script,
        args=args,
        env=env,
        node_timeout_seconds=order.node_timeout_seconds,
        grace_seconds=order.grace_seconds,
    )
    return Gang(job, settings, open_channel)


def run(order: Order, gang: Gang, say: Callable[[str], None], open_channel: OpenChannel) -> dict[str, Any]:
    """Start the planned job everywhere, follow it to its end, and bring home what it left.

    Args:
        order: the user's.
        gang: from ``plan``.
        say: shows one line at once.
        open_channel: gives a channel to a host.

    Returns:
        The job's id, folder, world size and each rank's ending; the same as in job.json.

    Raises:
        JobError: the job did not start, or did not end well on every rank. Its record is complete all the same.
    """
    topology = gang.prepare()
    record = Record(order.runs, gang.job.id)
    try:
        record.create(**_described(order, gang, topology))
        logs = {node.host: RankLog(record.log_path(node.rank, node.host)) for node in topology.nodes}
    except OSError as error:
        gang.discard()
        raise JobError(f"the job's record cannot be written: {error}; free some space, or set job_runs_dir") from None
    head = topology.head
    say(
        f"{gang.job.id}: {gang.job.script} on {topology.world_size} node{'s' if topology.world_size > 1 else ''}, "
        f"MASTER_ADDR {head.address}, MASTER_PORT {head.settings.master_port}"
    )
    try:
        gang.start()
    except JobError as error:
        record.update(state="failed", cause=str(error))
        raise
    readers = {node.host: LineReader() for node in topology.nodes}

    def show(node: Node, lines: Any) -> None:
        for line in lines:
            say(f"[{node.rank} {node.host}] {line}")

    shown = {"all": lambda node: True, "head": lambda node: node.rank == 0, "none": lambda node: False}[order.logs]
    endings = gang.follow(logs, shown, lambda node, data: show(node, readers[node.host].feed(data)))
    for node in topology.nodes:
        show(node, readers[node.host].finish())
        logs[node.host].close()
    record.update(
        ended=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        ranks=[_rank(node, endings[node.host], logs[node.host]) for node in topology.nodes],
    )
    failure = explain(topology, endings, logs)
    record.update(state="failed" if failure else "succeeded", cause=failure)
    if endings[head.host].state == "lost":
        notes = [f"artifacts were not collected, for {head.host} was lost; they are in the job's work directory there"]
    else:
        notes = _collect(gang, topology, record, open_channel)
    record.update(notes=notes)
    for note in notes:
        say(note)
    if failure:
        raise JobError(failure)
    say(f"logs: {record.path / 'logs'}")
    say(f"artifacts: {record.path / 'artifacts'}")
    return {"job": gang.job.id, "path": str(record.path), "world_size": topology.world_size}


def explain(topology: Topology, endings: Mapping[str, Ending], logs: Mapping[str, RankLog]) -> str | None:
    """Return why the job failed, the first cause first, or None if every rank ended with 0.

    Ranks that were stopped because of it are not mentioned; ranks that failed by themselves afterwards are counted.
    """
    bad = [(node, endings[node.host]) for node in topology.nodes if endings[node.host].state != "succeeded"]
    if not bad:
        return None
    own = [pair for pair in bad if pair[1].state != "stopped"] or bad[:1]
    (node, first), *others = sorted(own, key=lambda pair: pair[1].arrived)
    stopped = "was stopped" if first.state == "stopped" else ""
    ending = first.note or stopped or diagnosis.how_it_ended(first.exit_code, first.signal)
    log = logs[node.host]
    text = diagnosis.sentence(node.rank, node.host, ending, first.seconds, log.tail(), str(log.path))
    if others:
        names = ", ".join(f"rank {node.rank} ({node.host})" for node, _ending in others)
        text += f". After it failed too: {names}"
    return text


def _described(order: Order, gang: Gang, topology: Topology) -> dict[str, Any]:
    job = gang.job
    return {
        "state": "running",
        "command": _without_values(sys.argv),
        "versions": {"ansible": ansible_version, "python": platform.python_version()},
        "script": job.script,
        "args": list(job.args),
        "project_dir": str(order.project),
        "env_names": sorted(job.env),  # names only: values may be secrets
        "user": job.user,
        "started": job.start,
        "bundle": {
            "sha256": job.bundle.sha256,
            "bytes": job.bundle.size,
            "git_commit": job.bundle.commit,
            "git_dirty": job.bundle.dirty,
        },
        "world_size": topology.world_size,
        "master_addr": topology.head.address,
        "master_port": topology.head.settings.master_port,
        "ranks": [{"rank": node.rank, "host": node.host, "address": node.address} for node in topology.nodes],
    }


def _without_values(words: Sequence[str]) -> list[str]:
    """Return a command line with no value of a variable that might be a secret."""
    shown = re.compile(r"(script|project_dir|logs|job_\w+_(mb|seconds|dir))=\S*")
    kept: list[str] = []
    for word in words:
        after_option = bool(kept) and kept[-1] in ("-e", "--extra-vars")
        value = word.removeprefix("--extra-vars=") if word.startswith("--extra-vars=") else word
        is_variable = after_option or value != word or (word.startswith("-e") and len(word) > 2)
        kept.append(word if not is_variable or shown.fullmatch(value.removeprefix("-e").strip()) else "…")
    return kept


def _rank(node: Node, ending: Ending, log: RankLog) -> dict[str, Any]:
    return {
        "rank": node.rank,
        "host": node.host,
        "address": node.address,
        "state": ending.state,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "seconds": ending.seconds,
        "note": ending.note,
        "log": str(log.path),
    }


def _collect(gang: Gang, topology: Topology, record: Record, open_channel: OpenChannel) -> list[str]:
    """Fetch rank 0's artifacts; return what the user should know about it. The job's own ending matters more."""
    head = topology.head
    try:
        refused = artifacts.collect(open_channel(head.host), lambda op: gang.request(op, head.host), record)
    except (NodeError, OSError) as error:
        return [f"artifacts were not collected: {error}; they are in the job's work directory on {head.host}"]
    return [f"artifact {name!r} was not collected: its name would leave the folder" for name in refused]
