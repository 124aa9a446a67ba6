# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A running job followed to its end: every rank's log and state, signs of life, and a stop when one rank ends badly."""

from __future__ import annotations

import datetime
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import GOING_ON
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import how_it_ended
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError, Unreachable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.diagnosis import TOLD_TO_STOP
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import STOP_SECONDS, Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown

CHUNK_BYTES = 2**22
"""The most of a log that one reply carries: what the controller holds per node."""
ALL_CHUNKS_BYTES = 2**24
"""The most that the replies of all nodes carry together, if a megabyte for each is not more."""
POLL_SECONDS = 10
"""How long a node without news may hold a poll: its heartbeat."""
LINGER_SECONDS = 0.2
"""How long a node gathers output before it answers a poll."""
PACE_SECONDS = 4
"""How far apart the answers are of a node that prints all the time: each costs it some 40 ms of a core."""
POLL_SLACK_SECONDS = 2
"""How much later than it should a healthy node may be heard of."""
QUIET_SECONDS = 1
"""A rank whose output is not shown live is first looked at after this long: right after the start, nodes are busy."""
LOOK_SECONDS = 0.2
"""How often whoever follows looks up: for an interrupt, for a silent node."""


@dataclass
class Ending:
    """How one rank's part of the job ended.

    Attributes:
        state: succeeded, failed, stopped, or lost (its node, or the supervisor there, vanished).
        exit_code: the script's; 128 + signal if it was killed; None if not known.
        signal: number of the signal that ended it, or None.
        seconds: how long it ran, or None.
        note: what is known besides, a verb phrase, or "".
        because: why it was stopped; "" for a stop on request, or if it was not stopped.
        stopping: seconds after its start when it was told to stop, or None.
        oom: how many processes its machine's kernel killed meanwhile for want of memory.
        arrived: when it ended, on the controller's monotonic clock, or when that was heard of: the order of causes and
            victims. All ranks started at the same moment, so how long one ran says it best.
    """

    state: str
    exit_code: int | None = None
    signal: int | None = None
    seconds: float | None = None
    note: str = ""
    because: str = ""
    stopping: float | None = None
    oom: int = 0
    arrived: float = field(default_factory=time.monotonic)

    @property
    def how(self) -> str:
        """Its note, or "exited with code 1", or "was killed by SIGKILL"."""
        return self.note or how_it_ended(-self.signal if self.signal else self.exit_code or 0)


class Observer(Protocol):
    """Who is told what comes while a job is followed, all in the caller's thread but ``output`` and ``say``."""

    def output(self, node: Node, data: bytes, offset: int) -> None:
        """Take what a shown rank's log has from ``offset`` on, from the thread that follows it; must not block."""

    def say(self, text: str) -> None:
        """Show a sentence about the job, from any thread."""

    def look(self, written: Mapping[str, int], endings: Mapping[str, Ending]) -> str | None:
        """Look at it all every so often: bytes of log by host, and who has ended.

        Returns:
            Why the job has to be stopped; None if it need not.
        """


@dataclass
class _Rank:
    node: Node
    log: RankLog
    offset: int
    heard: float = field(default_factory=time.monotonic)


class Following:
    """All ranks of one job, looked after."""

    def __init__(
        self,
        gang: Gang,
        logs: Mapping[str, RankLog],
        shown: Callable[[Node], bool],
        observer: Observer,
        node_timeout_seconds: int,
        grace_seconds: int,
    ) -> None:
        """Begin nothing yet.

        Args:
            gang: the job's nodes.
            logs: where each host's output goes, whole; what is there already is not fetched again.
            shown: whether a node's output is wanted live.
            observer: is told.
            node_timeout_seconds: a node silent for this long is lost.
            grace_seconds: between TERM and KILL, when the job has to be stopped.
        """
        self._gang = gang
        self._ranks = {node.host: _Rank(node, logs[node.host], logs[node.host].size) for node in gang.topology.nodes}
        self._shown = shown
        self._observer = observer
        self._node_timeout = node_timeout_seconds
        self._grace = grace_seconds
        start = datetime.datetime.fromisoformat(gang.identity.start)
        self._began = time.monotonic() - max(0.0, time.time() - start.timestamp())
        self._news: queue.SimpleQueue[tuple[str, Ending | BaseException]] = queue.SimpleQueue()
        self._stopped_at: float | None = None
        self._given_up = threading.Event()
        self._chunk = min(CHUNK_BYTES, max(2**20, ALL_CHUNKS_BYTES // len(self._ranks)))

    def run(self, interrupted: Callable[[], bool]) -> dict[str, Ending] | None:
        """Follow every rank to its end; the first that ends badly ends the others.

        Args:
            interrupted: whether to give up; the job goes on then.

        Returns:
            Every host's ending, in rank order; None if interrupted.

        Raises:
            JobError: it cannot be followed any more; the job goes on then, too.
        """
        for rank in self._ranks.values():
            threading.Thread(target=self._follow_one, args=(rank,), name=rank.node.host, daemon=True).start()
        endings: dict[str, Ending] = {}
        while len(endings) < len(self._ranks):
            self._gather(endings)
            if interrupted():
                self._given_up.set()  # what nobody is shown any more must not get into the log: it would seem seen
                return None
            self._judge(endings)
            because = self._observer.look({host: rank.offset for host, rank in self._ranks.items()}, endings)
            bad = next((host for host, ending in endings.items() if ending.state != "succeeded"), None)
            if because is None and bad is not None:
                because = self._words(bad, endings[bad])
            if because is not None and self._stopped_at is None and len(endings) < len(self._ranks):
                self._stopped_at = time.monotonic()
                threading.Thread(target=self._gang.stop, args=(self._grace, because), daemon=True).start()
        return {host: endings[host] for host in self._ranks}

    def _gather(self, endings: dict[str, Ending]) -> None:
        """Wait a moment for news, and take all there is."""
        timeout: float = LOOK_SECONDS
        while True:
            try:
                host, item = self._news.get(timeout=timeout)
            except queue.Empty:
                return
            if isinstance(item, BaseException):
                raise item
            endings.setdefault(host, item)
            timeout = 0

    def _judge(self, endings: dict[str, Ending]) -> None:
        """Give up nodes that are silent, or that do not end although they were told to.

        Raises:
            JobError: all are silent; the job is not stopped for that.
        """
        now = time.monotonic()
        overdue = self._stopped_at is not None and now > self._stopped_at + self._grace + STOP_SECONDS
        unfinished = self._ranks.keys() - endings.keys()
        quietest = min((now - self._ranks[host].heard for host in unfinished), default=0.0)
        if len(unfinished) > 1 and quietest > self._node_timeout and self._stopped_at is None:
            raise self._broken_off(f"no node was heard of for {quietest:.0f} s, so this machine is cut off from them")
        # Where all are silent, but not for long enough, it may be this machine that is cut off.
        waits = len(unfinished) > 1 and quietest > self._node_timeout / 3 + POLL_SLACK_SECONDS
        for host in unfinished:
            silent = now - self._ranks[host].heard
            if silent > self._node_timeout and (not waits or self._stopped_at is not None):
                endings[host] = Ending("lost", note=f"gave no sign of life for {silent:.0f} s")
            elif overdue:
                endings[host] = Ending("lost", note=TOLD_TO_STOP)

    def _broken_off(self, why: str) -> JobError:
        job_id = self._gang.job_id
        return JobError(f"{why}. The job runs on; to follow it again: ansible-playbook logs.yml -e job={job_id}")

    def _words(self, host: str, ending: Ending) -> str:
        if ending.state == "stopped":
            return ending.because
        return f"{self._ranks[host].node.name} {ending.how}"

    def _follow_one(self, rank: _Rank) -> None:
        host = rank.node.host
        try:
            self._news.put((host, self._follow_to_end(rank)))
        except NodeError as error:
            self._news.put((host, Ending("lost", note=str(error).removeprefix(f"{host} "))))
        except OSError as error:  # a full disk here: no reason to stop what runs there
            self._news.put((host, self._broken_off(f"the log of {rank.node.name} cannot be written: {error}")))
        except BaseException as error:  # a defect: to be seen
            self._news.put((host, error))

    def _follow_to_end(self, rank: _Rank) -> Ending:
        channel = self._gang.open(rank.node.host)
        live = self._shown(rank.node)
        pace, told = 0, False
        if not live:
            time.sleep(QUIET_SECONDS)
        while True:
            request = self._gang.request(
                "follow",
                rank.node.host,
                offset=rank.offset,
                wait_seconds=min(POLL_SECONDS, self._node_timeout / 3),
                linger_seconds=LINGER_SECONDS,
                pace_seconds=pace,
                max_bytes=self._chunk,
                quiet=not live,
            )
            try:
                reply, data = channel.call(request)
            except Unreachable:
                if time.monotonic() - rank.heard > self._node_timeout:
                    raise
                time.sleep(1)
                continue
            if self._given_up.is_set():
                return Ending("lost")
            rank.heard = time.monotonic()
            pace = PACE_SECONDS if data else 0
            if data:
                rank.log.write(data, rank.offset)
                if live:
                    self._observer.output(rank.node, data, rank.offset)
            rank.offset = reply["offset"]
            if "trouble" in reply and not told:
                told = True
                self._observer.say(f"{rank.node.name} {shown(reply['trouble'])}")
            if reply["state"] not in GOING_ON and not (reply["more"] and data):
                return self._ending(reply)

    def _ending(self, reply: Mapping[str, Any]) -> Ending:
        started, ended = reply.get("started"), reply.get("ended")
        seconds = ended - started if started and ended else None
        return Ending(
            state=reply["state"],
            exit_code=reply.get("exit_code"),
            signal=reply.get("signal"),
            seconds=seconds,
            note=reply.get("error") or ("lost the process that looked after it" if reply["state"] == "lost" else ""),
            because=reply.get("because", ""),
            stopping=reply.get("stopping"),
            oom=reply.get("oom", 0),
            arrived=time.monotonic() if seconds is None else self._began + seconds,
        )
