# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""All nodes of a job as one: prepared together, started together, followed, and ended together."""

from __future__ import annotations

import functools
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import Bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import Channel, NodeError, Unreachable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import in_one
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.fan_out import fan_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import (
    Node,
    Topology,
    rank_nodes,
    require_distinct,
)

CHUNK_BYTES = 2**20
"""The most of a log that one reply carries: with the queue's bound, what the controller holds per node."""
POLL_SECONDS = 10
"""How long a node without news may hold a poll: its heartbeat."""
LINGER_SECONDS = 0.2
"""How long a node gathers output before it answers a poll."""
QUIET_SECONDS = 1
"""A rank whose output is not shown live is first looked at after this long: right after the start, nodes are busy."""
STOP_SECONDS = 10
"""What a stop may take besides the grace."""
PREPARE_SECONDS = 120
"""After this long without an answer a node counts as unreachable before the start."""


@dataclass(frozen=True)
class Job:
    """What is to run.

    Attributes:
        id: YYYYmmdd-HHMMSS-<script>-<4 hex>.
        user: who started it, on the controller.
        start: when, ISO 8601 with seconds.
        bundle: the code.
        script: relative path in the bundle.
        args: the script's arguments.
        env: environment variables besides those of the inventory; they win over these.
        node_timeout_seconds: a node silent for this long is lost.
        grace_seconds: between TERM and KILL when the job is stopped.
    """

    id: str
    user: str
    start: str
    bundle: Bundle
    script: str
    args: Sequence[str]
    env: Mapping[str, str]
    node_timeout_seconds: int
    grace_seconds: int


@dataclass
class Ending:
    """How one rank's part of the job ended.

    Attributes:
        state: succeeded, failed, stopped, or lost (its node, or the supervisor there, vanished).
        exit_code: the script's; 128 + signal if it was killed; None if not known.
        signal: number of the signal that ended it, or None.
        seconds: how long it ran, or None.
        note: what is known besides, a verb phrase, or "".
        arrived: when it ended, on the controller's monotonic clock, or when that was heard of: the order of causes and
            victims. All ranks started at the same moment, so how long one ran says it best.
    """

    state: str
    exit_code: int | None = None
    signal: int | None = None
    seconds: float | None = None
    note: str = ""
    arrived: float = field(default_factory=time.monotonic)


OpenChannel = Callable[[str], Channel]
Output = Callable[[Node, bytes], None]


class Gang:
    """The job's nodes. Methods are called from one thread, in the order prepare, start, follow."""

    def __init__(self, job: Job, settings: Sequence[NodeSettings], open_channel: OpenChannel) -> None:
        """Reach nobody yet.

        Args:
            job: what is to run.
            settings: of the hosts that take part, in inventory order: the first is the head.
            open_channel: gives a channel to a host; called once per thread that talks to it.
        """
        require_distinct({one.host: one.address for one in settings})
        self.job = job
        self._settings = {one.host: one for one in settings}
        self._head = settings[0].host
        self._open = functools.cache(open_channel)
        self._open_another = open_channel
        self._prepared: dict[str, dict[str, Any]] = {}
        self._started = 0.0
        self.topology: Topology | None = None

    # ------------------------------------------------------------------------------------------------------- starting

    def prepare(self, dry: bool = False) -> Topology:
        """Make every node ready, or none: checks, the hold on it, the code.

        Args:
            dry: only check; hold and copy nothing.

        Raises:
            JobError: names every node that could not, with its reason; the others are as they were before.
        """

        def ask(one: NodeSettings) -> dict[str, Any]:
            channel = self._open(one.host)
            request = self.request("prepare", one.host, dry=dry)
            reply, _payload = channel.call(request)
            if not dry and not reply["has_bundle"]:
                # The same for all nodes with the same settings, so that they share one copy of it.
                fields = ("directory", "user", "job", "bundle")
                channel.call({"op": "deliver", **{name: request[name] for name in fields}}, self.job.bundle.content)
            return reply

        try:
            self._prepared, errors = fan_out(self._settings, ask, PREPARE_SECONDS)
            if errors:
                raise in_one(errors.values(), "Nothing was started on any node.")
            self.topology = rank_nodes(list(self._settings.values()), self._prepared)
        except BaseException:
            if not dry:
                self.discard()
            raise
        return self.topology

    def start(self) -> None:
        """Start the prepared job on all nodes at the same time.

        Raises:
            JobError: a node could not start it; those that had are stopped again.
        """
        self._started = time.monotonic()
        _replies, errors = fan_out(
            self._settings,
            lambda one: self._open(one.host).put(self._prepared[one.host]["gate"], self._order(one.host)),
            PREPARE_SECONDS,
        )
        if errors:
            self.stop()
            self.discard()
            raise in_one(errors.values(), "The job was stopped on every other node.")

    def request(self, op: str, host: str, **more: Any) -> dict[str, Any]:
        """Return a request to ``host``'s agent with the fields that all of this job's requests have."""
        one = self._settings[host]
        return {
            "op": op,
            "directory": one.directory,
            "user": one.user,
            "job": {"id": self.job.id, "user": self.job.user, "start": self.job.start},
            "address": one.address,
            "master_port": one.master_port if host == self._head else None,
            "bundle": self.job.bundle.sha256,
            "size": self.job.bundle.size,
            **more,
        }

    def _order(self, host: str) -> bytes:
        """What the supervisor on a node needs to know besides what prepare told it; see ``supervise`` in the agent."""
        assert self.topology is not None, "prepare comes before start"
        head = self.topology.head
        node = next(node for node in self.topology.nodes if node.host == host)
        prepared = self._prepared[host]
        text = environment.render(
            {
                "rank": node.rank,
                "world_size": self.topology.world_size,
                "master_addr": head.address,
                "master_port": head.settings.master_port,
                "interface": node.interface,
            },
            {**node.settings.env, **self.job.env},
            {"id": self.job.id, "dir": prepared["job_dir"]},
        )
        script = self.job.script if not self.job.script.startswith("-") else f"./{self.job.script}"
        argv = [prepared["python"], script, *self.job.args]
        variables = [f"{name}={value}" for name, value in environment.parse(text).items()]
        fields = [str(self.job.grace_seconds), text, str(len(argv)), *argv, *variables]
        return b"".join(os.fsencode(field) + b"\0" for field in fields)

    def discard(self) -> None:
        """Undo ``prepare`` on every node where the job has not started; where nothing was prepared, nothing happens."""
        fan_out(self._settings, lambda one: self._open_another(one.host).call(self.request("discard", one.host)), 10)

    # ---------------------------------------------------------------------------------------------- following, stopping

    def follow(self, logs: Mapping[str, RankLog], shown: Callable[[Node], bool], output: Output) -> dict[str, Ending]:
        """Follow every rank to its end; the first that ends badly ends the others.

        Args:
            logs: where each host's output goes, whole.
            shown: whether a node's output is wanted live.
            output: called here, in the caller's thread, with each piece of a shown node's output. While it blocks (a
                slow terminal), the nodes' logs wait in their files; nothing piles up here.

        Returns:
            Every host's ending, in rank order.
        """
        assert self.topology is not None, "prepare comes before follow"
        news: queue.Queue[tuple[Node, bytes | Ending]] = queue.Queue(maxsize=16)
        heard = {node.host: time.monotonic() for node in self.topology.nodes}
        for node in self.topology.nodes:
            arguments = (node, logs[node.host], shown(node), heard, news)
            threading.Thread(target=self._follow_one, args=arguments, name=node.host, daemon=True).start()
        endings: dict[str, Ending] = {}
        stopped_at: float | None = None
        while len(endings) < self.topology.world_size:
            try:
                node, item = news.get(timeout=1)
            except queue.Empty:
                pass
            else:
                if isinstance(item, bytes):
                    output(node, item)
                else:
                    endings.setdefault(node.host, item)
            now = time.monotonic()
            overdue = stopped_at is not None and now > stopped_at + self.job.grace_seconds + STOP_SECONDS
            for host in heard.keys() - endings.keys():
                silent = now - heard[host]
                if silent > self.job.node_timeout_seconds:
                    endings[host] = Ending("lost", note=f"gave no sign of life for {silent:.0f} s")
                elif overdue:
                    endings[host] = Ending("lost", note="was told to stop, and may be running there still")
            if stopped_at is None and any(ending.state != "succeeded" for ending in endings.values()):
                stopped_at = now
                threading.Thread(target=self.stop, daemon=True).start()
        return {node.host: endings[node.host] for node in self.topology.nodes}

    def _follow_one(
        self,
        node: Node,
        log: RankLog,
        live: bool,
        heard: dict[str, float],
        news: queue.Queue[tuple[Node, bytes | Ending]],
    ) -> None:
        def tell(item: bytes | Ending) -> None:
            heard[node.host] = math.inf  # while this waits for a slow terminal, the node is not silent
            news.put((node, item))
            heard[node.host] = time.monotonic() if isinstance(item, bytes) else math.inf

        try:
            tell(self._follow_to_end(node, log, heard, tell if live else None))
        except NodeError as error:
            tell(Ending("lost", note=str(error).removeprefix(f"{node.host} ")))
        except (OSError, ValueError) as error:  # a full disk here; or the log is closed, for all is over
            tell(Ending("lost", note=f"could not be followed any more: {error}"))

    def _follow_to_end(
        self, node: Node, log: RankLog, heard: dict[str, float], show: Callable[[bytes], None] | None
    ) -> Ending:
        channel = self._open(node.host)
        offset = 0
        if show is None:
            time.sleep(QUIET_SECONDS)
        while True:
            request = self.request(
                "follow",
                node.host,
                offset=offset,
                wait_seconds=min(POLL_SECONDS, self.job.node_timeout_seconds / 3),
                linger_seconds=LINGER_SECONDS,
                max_bytes=CHUNK_BYTES,
                quiet=show is None,
            )
            try:
                reply, data = channel.call(request)
            except Unreachable:
                if time.monotonic() - heard[node.host] > self.job.node_timeout_seconds:
                    raise
                time.sleep(1)
                continue
            heard[node.host] = time.monotonic()
            offset = reply["offset"]
            if data:
                log.write(data)
                if show is not None:
                    show(data)
            if reply["state"] not in GOING_ON and not reply["more"]:
                return _ending(reply, self._started)

    def stop(self) -> None:
        """TERM on all nodes at the same moment, a grace, KILL; a rank that has ended already stays as it is."""
        grace = self.job.grace_seconds
        fan_out(
            self._settings,
            lambda one: self._open_another(one.host).call(self.request("stop", one.host, grace_seconds=grace)),
            grace + STOP_SECONDS,
        )


def _ending(reply: Mapping[str, Any], job_started: float) -> Ending:
    started, ended = reply.get("started"), reply.get("ended")
    seconds = ended - started if started and ended else None
    return Ending(
        state=reply["state"],
        exit_code=reply.get("exit_code"),
        signal=reply.get("signal"),
        seconds=seconds,
        note=reply.get("error") or ("lost the process that looked after it" if reply["state"] == "lost" else ""),
        arrived=time.monotonic() if seconds is None else job_started + seconds,
    )
