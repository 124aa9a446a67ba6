# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the supervisors of a job against each other in simulated time, with faults, and check what must always hold.

One seed is one run: the same seed gives the same run, event for event. ``make simulate`` runs many, and prints a time
line of the first that fail.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import REFUSED, STANDSTILL
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor import (
    gang_connections,
    gang_member,
    inspector_tasks,
    job_plan,
    next_attempt,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.authenticated_stream import (
    AuthenticatedStream,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_ranks import GANG_SECONDS

KEY = bytes(range(32))
TIMEOUTS = (6.0, 6.0, 30.0)
"""Of gangs, in seconds; nothing here takes real time."""
TICK = 0.2
LONGEST_DELAY = 0.15
MILD = 0.6
"""A fault that is shorter than this part of the time-out ends no job."""
GRACE = 2.0
RENDEZVOUS_SECONDS = 20.0
"""A job that prints nothing for so long is looked into."""
STUCK_SECONDS = 200.0
"""A script that waits for others gives up after so long, as torch's does."""
LONGEST_LOOK = 2.0
"""What an inspector takes at most, besides the time that it is told to measure."""
GIVE_UP_SECONDS = 60.0
"""A supervisor that nobody starts gives its job up after so long; here sooner than in reality."""
MOST_EVENTS = 400_000
"""Four times as many as the largest gang needs."""
HORIZON = 3000.0
"""By then every run is over."""


class Broken(AssertionError):
    """What must always hold did not."""


def recording(base: type[AuthenticatedStream]) -> type[AuthenticatedStream]:
    """Return a class of streams that keep what was sent and what has come."""

    class RecordingStream(base):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.sent: list[dict[str, Any]] = []
            self.come: list[dict[str, Any]] = []

        def send(self, message: dict[str, Any]) -> None:
            if self._connection_key is not None:  # else it waits, and comes here again
                self.sent.append(message)
            super().send(message)

        def receive(self, data: bytes) -> list[dict[str, Any]]:
            messages: list[dict[str, Any]] = super().receive(data)
            self.come += messages
            return messages

    return RecordingStream


@dataclass
class Link:
    """One direction of a connection: what is on its way, and when the last of it arrives."""

    arrives: float = 0.0
    stuck_since: float | None = None
    stalled: list[Callable[[], None]] = field(default_factory=list)


@dataclass
class Machine:
    """A node with its supervisor and its script."""

    rank: int
    clock: float
    connections: gang_connections.GangConnections
    seconds: float  # that its script takes
    ends_at: float = HORIZON
    ends_well: bool = True
    alive: bool = True  # the supervisor
    powered: bool = True
    frozen: list[Callable[[], None]] | None = None  # what waits until it thaws
    frozen_at: float = 0.0
    thawed_at: float = -HORIZON
    has_to_tick: bool = False  # when it thaws, after all that has arrived was taken
    script: str = "waiting"
    open: dict[int, int] = field(default_factory=dict)  # connection: the rank at the other end
    stopping: bool = False
    ended: float = 0.0
    term: int = 1
    inspects: bool = True
    returned: bool = False  # after it lost power
    verdict: str | None = None  # that its supervisor took first in this attempt
    started: float = HORIZON
    attempt: int = 1
    has_fault: bool = False  # its script is killed, and not by its supervisor
    asked: str | None = None  # by somebody, to stop, and why
    overtaken: bool = False  # another attempt has begun while it was frozen

    @property
    def member(self) -> gang_member.GangMember:
        """Its part in the gang."""
        return self.connections.member

    def stand_still(self, now: float) -> None:
        """Freeze: what happens from now on waits."""
        self.frozen, self.frozen_at = [], now


class World:
    """All machines of one run, the network between them, and what has happened."""

    def __init__(self, seed: int) -> None:
        """Choose size, scripts and faults by the seed."""
        self.random = random.Random(seed)
        self.now = 0.0
        self.lines: list[str] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.links: dict[tuple[int, int], Link] = {}
        self.cut: set[tuple[int, int]] = set()
        self.heads: dict[int, int] = {}
        self.severe: dict[str, float] = {}  # when what has happened that may end the job
        self.mild = 0
        self.has_tampered = False
        self.voted: dict[tuple[int, int], int] = {}  # by rank and term, for whom
        self.asked_to_stop = False
        self.streams: dict[int, list[Any]] = {}
        self.tampered: dict[tuple[int, int], str] = {}  # with the next piece of a connection's direction
        size = self.random.choice([2, 2, 3, 3, 3, 4, 5, 5, 8])
        if seed % 100 == 99:
            size = self.random.choice([16, 32, 64])
        self.members = [job_plan.Member(f"n{rank}", f"198.18.0.{rank}", 40000) for rank in range(size)]
        self.timeout = self.random.choice(TIMEOUTS)
        length = self.random.uniform(5, 7 * self.timeout)
        kinds = random.Random(f"{seed} kind")
        # Most print all the time. In others all ranks wait in a rendezvous, for good or until one prints while it is
        # looked at, or one works while the others wait for it.
        self.kind = kinds.choice([*["prints"] * 7, "is stuck", "is quiet", "pauses"])
        self.quiet_from = HORIZON if self.kind == "prints" else kinds.uniform(0, 10)
        self.quiet_to = HORIZON
        self.must_connect = kinds.random() < 0.5
        self.inspector_dies = self.kind in ("is stuck", "is quiet") and kinds.random() < 0.2
        self.stood_still: dict[int, float] = {}  # when which supervisor took a verdict on a job that prints nothing
        if self.kind == "is stuck":
            length = STUCK_SECONDS
        # What happens besides, in every other run.
        self.extras = random.Random(f"{seed} extras")
        self.has_extras = self.extras.random() < 0.5
        self.controller_dies = self.has_extras and self.extras.random() < 0.2  # once the head has the start message
        self.disk_full_from = (
            self.extras.uniform(0, length) if self.has_extras and self.extras.random() < 0.3 else HORIZON
        )
        # A third of the jobs may be tried again; with some nothing else happens, and that often.
        self.attempts = random.Random(f"{seed} attempts")
        is_killed_often, is_frozen_once = seed % 11 == 7, seed % 11 == 8
        # Some have spares, and of these every other one loses a node and nothing else happens.
        spares = random.Random(f"{seed} spares")
        self.spares = min(spares.choice([1, 1, 2]), size - 2) if seed % 22 in (20, 21) else 0
        self.loses_one = seed % 22 == 21 and self.spares > 0
        has_attempts_only = is_killed_often or is_frozen_once or self.loses_one
        self.retries = 5 if has_attempts_only or self.spares else self.attempts.choice([0, 0, 0, 0, 2, 5])
        if has_attempts_only:
            self.kind, self.quiet_from, self.inspector_dies, self.has_extras = "prints", HORIZON, False, False
            self.controller_dies = False
        self.grace = self.attempts.choice([GRACE, 4 * GRACE]) if self.retries else GRACE
        self.return_seconds = self.attempts.choice([0.0, 200.0])
        self.faults = 0  # scripts that were killed
        self.frozen: set[int] = set()  # who was
        self.begun = 1  # the latest attempt of which a rank has started
        self.step = 0  # of the newest checkpoint
        self.last_step = 0  # that an attempt has gone on from
        self.unproductive = 0  # attempts in a row that began from no newer checkpoint
        self.saves = self.attempts.choice([1.0, 1.0, 0.5, 0.1, 0.1])  # how often an attempt leaves a newer checkpoint
        self.gang_file: dict[str, Any] | None = None  # what the head wrote down last
        self.notices: list[str] = []  # its own, so far
        self.decided = HORIZON  # when the first verdict was taken
        if is_frozen_once:
            self.saves, self.return_seconds = 1.0, 20 * self.timeout
        self.machines = []
        for rank in range(size):
            clock = self.random.uniform(0, 1e6)
            limits = (0, RENDEZVOUS_SECONDS, self.retries, self.return_seconds, self.grace, self.spares)
            member = gang_member.GangMember(rank, size, self.timeout, clock, *limits)
            nonces = random.Random(f"{seed} {rank}")
            connections = gang_connections.GangConnections(
                member, rank, size, self.timeout, KEY, lambda nonces=nonces: nonces.randbytes(16)
            )
            seconds = length + self.random.choice([0.0, 0.0, self.random.uniform(0, 10)])
            seconds += spares.uniform(0, 8) * self.timeout if self.loses_one else 0
            self.machines.append(Machine(rank, clock, connections, seconds))
        if self.inspector_dies:
            taking_part = self.machines[: self.last + 1]
            (taking_part[-1] if self.kind == "is quiet" else kinds.choice(taking_part)).inspects = False
        for machine in self.machines:
            self.at(self.random.uniform(0, TICK), lambda machine=machine: self.tick(machine))
        self.at(0, lambda: self.start(self.machines[:1]))
        if self.controller_dies:
            self.say("the controller dies once the head has the start message")
            self.at(GIVE_UP_SECONDS, self.give_up_waiting)
        else:
            self.at(gang_member.REACH_SECONDS + self.random.uniform(0.2, 1), self.help)
        if not has_attempts_only:
            self.plan(length)
        if is_frozen_once:
            frozen, seconds = self.attempts.choice(self.machines[1:]), self.attempts.uniform(1, 10) * self.timeout
            self.at(self.attempts.uniform(0, length), lambda: self.freeze_one(frozen, seconds))
        if self.loses_one:
            self.saves = 1.0
            self.at(spares.uniform(0, length), lambda: self.lose_one(spares, self.machines[1:]))
            if self.spares > 1:
                self.at(spares.uniform(0, length), lambda: self.lose_one(spares, self.machines[-1:]))
        if self.has_extras:
            self.plan_extras(length)
        if self.retries:
            for _number in range(9 if is_killed_often else self.attempts.choice([0, 1, 1, 2])):
                self.at(self.attempts.uniform(0, 2 * length), self.kill_script)

    @property
    def last(self) -> int:
        """The last one of those that take part."""
        return self.machines[0].member.roster[-1]

    def start(self, machines: list[Machine]) -> None:
        """Have the controller write the start message to some nodes."""
        for machine in machines:
            self.on(machine, lambda machine=machine: machine.member.start(self.members, self.now + machine.clock))

    def help(self) -> None:
        """Have the controller start over SSH whom the head could not reach, or undo what it has prepared."""
        head = self.machines[0]
        waiting = [machine for machine in self.machines if machine.script == "waiting"]
        ranks = head.member.unreached(self.now + head.clock) if head.alive and head.frozen is None else []
        if ranks is None:  # it still tries to
            self.at(1, self.help)
        elif head.alive and head.frozen is None:
            unreached = [self.machines[rank] for rank in ranks]
            self.start(unreached)
            if not all(machine.alive for machine in unreached):
                self.end_all("a node could not start")
        elif head.frozen is not None:
            self.at(1, self.help)
        else:
            for machine in waiting:
                self.say(f"n{machine.rank} is discarded")
                self.die(machine)
            self.end_all("n0 could not start")

    def give_up_waiting(self) -> None:
        """Have the supervisors that nobody has started give the job up."""
        for machine in self.machines:
            if machine.script == "waiting" and machine.alive:
                self.say(f"n{machine.rank} gives up waiting")
                self.die(machine)

    def end_all(self, why: str) -> None:
        """Have the controller stop all nodes."""
        for machine in self.machines:
            if machine.script == "running" or (self.retries and machine.script != "waiting"):
                machine.asked = machine.asked or why
                self.on(machine, lambda machine=machine: machine.member.end(why))

    def plan(self, length: float) -> None:
        """Choose the faults: mild ones, one after the other, and at most two severe ones."""
        when = self.random.uniform(0, self.timeout)
        while when < length and self.random.random() < 0.6:
            seconds = self.random.uniform(0.1, MILD * self.timeout)
            fault = self.random.choice([self.freeze, self.freeze_all, self.partition, self.reset, self.tamper])
            self.at(when, lambda fault=fault, seconds=seconds: fault(seconds))
            when += 5 * seconds + self.random.uniform(1, 2) * self.timeout
            self.mild += 1
        for _number in range(self.random.choice([0, 0, 1, 1, 1, 2])):
            fault = self.random.choice(
                [self.kill, self.power_off, self.fail, self.stop, self.long_freeze, self.long_partition]
            )
            self.at(self.random.uniform(0, length), fault)

    def plan_extras(self, length: float) -> None:
        """Choose what happens besides: followers that come and go, machines that sleep, start messages that repeat."""
        for _number in range(self.extras.choice([0, 1, 1, 2, 2])):
            comes, stays = self.extras.uniform(1, length), self.extras.uniform(1, length)
            self.at(comes, lambda until=comes + stays: self.follow(until, None))
        for _number in range(self.extras.choice([0, 0, 1, 2])):
            again = self.extras.sample(self.machines, self.extras.randint(1, len(self.machines)))
            self.at(self.extras.uniform(0, length), lambda again=again: self.start_again(again))
        if not self.mild and self.extras.random() < 0.3:
            seconds = self.extras.uniform(0.1, MILD * self.timeout)
            self.mild += 1
            self.at(self.extras.uniform(0, length), lambda: self.sleep(seconds))
        if self.extras.random() < 0.2:
            self.at(self.extras.uniform(0, length), self.extras.choice([self.reboot, self.stop_twice]))

    def start_again(self, machines: list[Machine]) -> None:
        """Have the start message come again, as when its answer was lost on the way to the controller."""
        started = [machine for machine in machines if machine.script != "waiting" or not self.controller_dies]
        self.say(f"the start message comes again to {[machine.rank for machine in started]}")
        self.start(started)

    def follow(self, until: float, bad_since: float | None) -> None:
        """Have a follower look at the job every second, as run.yml and logs.yml do, until it goes."""
        if self.now > until or not any(self.may_go_on(machine) for machine in self.machines):
            return
        head = self.machines[0]
        told = self.gang_file if head.powered and self.extras.random() < 0.95 else None  # a torn file says nothing
        left_out = {*range(len(self.machines))} - {*told["roster"]} if told else set()
        reached = [machine for machine in self.machines if machine.powered and machine.rank not in left_out]
        why = next((self.why_bad(machine) for machine in reached if self.why_bad(machine)), "")
        if not why:
            bad_since = None
        else:
            bad_since = self.now if bad_since is None else bad_since
            roster = told["roster"] if told else []
            unmet = [rank for rank in roster if told and told["ranks"][rank]["state"] == gang_member.UNKNOWN]
            gang_decides = self.spares > 0 and head.powered and self.may_go_on(head)
            if unmet or (self.now - bad_since > GANG_SECONDS and not gang_decides):
                self.say(f"a follower stops the job: {why}")
                self.end_all(why)
                return
        self.at(1, lambda: self.follow(until, bad_since))

    def may_go_on(self, machine: Machine) -> bool:
        """Return whether a rank runs, or another attempt of it may follow, as its node tells a follower."""
        return machine.script in ("waiting", "running") or (self.retries > 0 and machine.alive)

    def why_bad(self, machine: Machine) -> str:
        """Return why a rank has ended badly, as its node tells a follower; "" if it has not."""
        if machine.script != "running" and self.may_go_on(machine):
            return ""
        name = f"rank {machine.rank} (n{machine.rank})"
        if machine.script == "failed":
            return f"{name} exited with code 1"
        if machine.script == "stopped":
            return machine.member.verdict or ""
        if machine.script == "running" and not machine.alive:
            return f"{name} lost its supervisor process"
        return ""

    # ------------------------------------------------------------------------------------------------------- faults

    def say(self, text: str) -> None:
        self.lines.append(f"{self.now:8.3f}  {text}")

    def some(self) -> Machine | None:
        """Return a machine that is on, if there is one."""
        alive = [machine for machine in self.machines if machine.alive and machine.powered and not machine.member.over]
        return self.random.choice(alive) if alive else None

    def freeze(self, seconds: float) -> None:
        machine = self.some()
        if machine is not None and machine.frozen is None:
            self.freeze_one(machine, seconds)

    def freeze_one(self, machine: Machine, seconds: float) -> None:
        if seconds > self.timeout:
            self.severe["freeze"] = self.now
            self.faults += 1
        self.say(f"n{machine.rank} freezes for {seconds:.1f} s")
        machine.stand_still(self.now)
        self.frozen.add(machine.rank)
        self.at(seconds, lambda: self.thaw(machine))

    def freeze_all(self, seconds: float) -> None:
        """Freeze all machines together, as one that carries them all as virtual machines may be."""
        seconds *= 5
        self.say(f"all freeze for {seconds:.1f} s")
        for machine in self.machines:
            if machine.frozen is None:
                machine.stand_still(self.now)
                self.at(seconds + self.random.uniform(0, 0.5), lambda machine=machine: self.thaw(machine))

    def thaw(self, machine: Machine) -> None:
        waiting, machine.frozen = machine.frozen or [], None
        machine.ends_at += self.now - machine.frozen_at  # its script stood still, too
        machine.thawed_at = self.now
        self.say(f"n{machine.rank} thaws")
        for one in waiting:
            one()
        if machine.has_to_tick and machine.frozen is None:
            machine.has_to_tick = False
            self.tick(machine)

    def long_freeze(self) -> None:
        self.freeze(self.random.uniform(1, 4) * self.timeout)

    def partition(self, seconds: float) -> None:
        ranks = [machine.rank for machine in self.machines]
        side = set(self.random.sample(ranks, self.random.randint(1, len(ranks) - 1)))
        pairs = {(a, b) for a in side for b in ranks if b not in side}
        back = {(b, a) for a, b in pairs}
        cut = self.random.choice([pairs, back, pairs | back, pairs | back]) - self.cut
        self.say(f"cut off for {seconds:.1f} s: {sorted(cut)}")
        self.cut |= cut
        self.at(seconds, lambda: self.heal(cut, seconds))

    def heal(self, cut: set[tuple[int, int]], seconds: float) -> None:
        self.cut -= cut
        self.say(f"healed: {sorted(cut)}")
        for pair in sorted(cut):
            for (_number, *ends), link in list(self.links.items()):
                if ends == [*pair] and link.stalled:  # TCP waits ever longer before it tries again
                    self.at(self.random.uniform(0, seconds), lambda link=link, ends=ends: self.release(link, *ends))

    def release(self, link: Link, sender: int, receiver: int) -> None:
        """Have what waited on a link arrive, unless it is cut again."""
        if (sender, receiver) not in self.cut:
            link.stuck_since = None
            stalled, link.stalled = link.stalled, []
            for one in stalled:
                one()

    def long_partition(self) -> None:
        self.severe["partition"] = self.now
        self.partition(self.random.uniform(1, 4) * self.timeout)

    def reset(self, _seconds: float) -> None:
        machine = self.some()
        if machine is None or not machine.open:
            return
        number = self.random.choice(list(machine.open))
        self.say(f"connection {number} is reset")
        for one in self.machines:
            if number in one.open:
                self.on(one, lambda one=one: self.lose(one, number))

    def tamper(self, _seconds: float) -> None:
        """Have somebody on the network change what a connection carries."""
        machine = self.some()
        if machine is None or not machine.open:
            return
        number = self.random.choice(list(machine.open))
        how = self.random.choice(["repeated", "lost", "changed", "swapped with the next"])
        self.say(f"something that n{machine.rank} sends over connection {number} is {how}")
        self.tampered[number, machine.rank] = how
        self.has_tampered = True

    def kill(self) -> None:
        machine = self.some()
        if machine is None:
            return
        self.severe["kill"] = self.now
        self.say(f"the supervisor of n{machine.rank} is killed")
        self.die(machine)

    def lose_one(self, spares: random.Random, machines: list[Machine]) -> None:
        """Have a node lose its supervisor or its power, or freeze or be cut off for long: any but the head."""
        machine = spares.choice(machines)
        if not machine.alive or machine.member.over or machine.frozen is not None:
            return
        how = spares.choice(["kill", "power", "freeze", "partition"])
        if how == "freeze":
            self.freeze_one(machine, spares.uniform(1, 20) * self.timeout)
            return
        self.severe[how] = self.now
        self.faults += 1
        self.say(f"n{machine.rank} is lost: {how}")
        if how == "kill":
            self.die(machine)
        elif how == "partition":
            others = [one.rank for one in self.machines if one is not machine]
            cut = {pair for rank in others for pair in ((rank, machine.rank), (machine.rank, rank))} - self.cut
            self.cut |= cut
            seconds = spares.uniform(1.2, 20) * self.timeout
            self.at(seconds, lambda: self.heal(cut, seconds))
        else:
            machine.alive = machine.powered = False

    def die(self, machine: Machine) -> None:
        machine.alive = False
        for number, other in list(machine.open.items()):
            self.hang_up(machine, number, other)
        machine.open.clear()

    def power_off(self, kind: str = "power") -> Machine | None:
        machine = self.some()
        if machine:
            self.severe[kind] = self.now
            self.say(f"n{machine.rank} loses power")
            machine.alive = machine.powered = False
        return machine

    def reboot(self) -> None:
        """Have a machine lose power and come back, without a supervisor."""
        machine = self.power_off("reboot")
        if machine:
            self.at(self.extras.uniform(0.2, 2) * self.timeout, lambda: self.come_back(machine))

    def come_back(self, machine: Machine) -> None:
        self.say(f"n{machine.rank} is there again")
        machine.powered = machine.returned = True
        machine.open.clear()

    def sleep(self, seconds: float) -> None:
        """Suspend a machine: its monotonic clock stands still, so that it does not notice."""
        machine = self.some()
        if machine is None or machine.frozen is not None:
            return
        self.say(f"n{machine.rank} sleeps for {seconds:.1f} s")
        machine.stand_still(self.now)

        def wake() -> None:
            machine.clock -= seconds
            self.thaw(machine)

        self.at(seconds, wake)

    def stop_twice(self) -> None:
        """Have two controllers stop the job at the same time, each on a node and for a reason of its own."""
        one, other = self.some(), self.some()
        if one is None or other is None:
            return
        self.severe["two stops"] = self.now
        self.asked_to_stop, one.asked, other.asked = True, "", "another controller"
        self.say(f"n{one.rank} and n{other.rank} are asked to stop")
        self.on(one, lambda: one.member.end(""))
        self.at(self.extras.uniform(0, 1), lambda: self.on(other, lambda: other.member.end("another controller")))

    def fail(self) -> None:
        machine = self.some()
        if machine is None or machine.script != "running":
            return
        self.severe["failure"] = self.now
        machine.ends_at, machine.ends_well = self.now, False

    def kill_script(self) -> None:
        """Have the kernel, or a person, kill a script."""
        machine = self.some()
        if machine is None or machine.script != "running" or machine.stopping:
            return
        self.severe["fault"] = self.now
        self.faults += 1
        self.say(f"the script of n{machine.rank} is killed")
        machine.ends_at, machine.ends_well, machine.has_fault = self.now, False, True
        if self.attempts.random() < 0.2:  # while the ranks end, or the next attempt is waited for
            self.at(self.attempts.uniform(0, 2 * GRACE), self.stop)

    def stop(self) -> None:
        machine = self.some()
        if machine is None:
            return
        self.severe["stop"] = self.now
        self.asked_to_stop, machine.asked = True, ""
        self.say(f"n{machine.rank} is asked to stop")
        self.on(machine, lambda: machine.member.end(""))

    # ----------------------------------------------------------------------------------------------- time and network

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), what))

    def on(self, machine: Machine, what: Callable[[], None]) -> None:
        """Do something in a supervisor: not in one that is dead, and later in one that is frozen."""
        if not machine.alive:
            return
        if machine.frozen is not None:
            machine.frozen.append(lambda: self.on(machine, what))
            return
        what()
        self.pump(machine)

    def tick(self, machine: Machine) -> None:
        def once() -> None:
            now = self.now + machine.clock
            if machine.script == "running" and self.now >= machine.ends_at:
                machine.ended = self.now
                machine.script = "succeeded" if machine.ends_well else "failed"
                if machine.stopping:
                    machine.script = "stopped"
                self.say(f"the script of n{machine.rank} ended: {machine.script}")
                why = f"rank {machine.rank} (n{machine.rank}) exited with code 1" if machine.script == "failed" else ""
                machine.member.script_ended(machine.script, why, now, machine.has_fault)
                if machine.asked is not None:
                    machine.member.end(machine.asked)
            goes_on = self.now >= self.quiet_to and machine.rank == self.last  # the others wait for it
            if machine.script == "running" and (self.now < self.quiet_from or goes_on):
                machine.member.printed(int(1000 * self.now))
            machine.connections.tick(now)
            self.at(TICK * self.random.uniform(0.8, 1.2), lambda: self.tick(machine))

        machine.has_to_tick = machine.frozen is not None
        if not machine.member.over and not machine.has_to_tick:
            self.on(machine, once)

    def pump(self, machine: Machine) -> None:
        """Do what a supervisor wants done after anything has happened in it."""
        member, now = machine.member, self.now + machine.clock
        if member.term < machine.term:
            raise Broken(f"no head of an earlier term is obeyed: n{machine.rank} goes back to term {member.term}")
        machine.term = member.term
        for rank, message in member.outbox:
            if message.get("kind") == "vote" and self.voted.setdefault((machine.rank, message["term"]), rank) != rank:
                raise Broken(f"one vote per member and term: n{machine.rank} votes twice in {message['term']}")
            if message.get("kind") == "vote" and self.silence(machine, member.head) <= self.timeout / 2:
                raise Broken(f"nobody votes against a head that it hears: n{machine.rank} votes for n{rank}")
        if member.role == gang_member.HEAD and self.heads.setdefault(member.term, machine.rank) != machine.rank:
            raise Broken(f"one head per term: n{machine.rank} and n{self.heads[member.term]} lead in {member.term}")
        if member.members is not None and machine.script == "waiting":
            self.say(f"n{machine.rank} starts{' as a spare' if member.is_spare else ''}")
            machine.started = self.now
        if member.members is not None and machine.script == "waiting" and member.is_spare:
            machine.script = gang_member.SPARE
            member.script_ended(gang_member.SPARE, "", now)
        elif member.members is not None and machine.script == "waiting":
            machine.script, machine.ends_at = "running", self.now + machine.seconds
        if member.attempt != machine.attempt and member.has_ended:  # in which it has no part
            if machine.script == "running":
                raise Broken(f"who has no part in an attempt has ended before: n{machine.rank} has not")
            machine.attempt, machine.script = member.attempt, gang_member.SPARE if member.is_spare else "stopped"
            machine.verdict, machine.stopping, machine.overtaken = None, False, False
        elif member.attempt != machine.attempt:
            self.begin_attempt(machine)
        if machine.verdict not in (None, member.verdict):
            raise Broken(f"the first verdict stays: n{machine.rank} takes {member.verdict!r} for {machine.verdict!r}")
        machine.verdict = member.verdict
        if member.verdict is not None and not machine.stopping:
            self.say(f"n{machine.rank} ({member.role}, term {member.term}): verdict {member.verdict!r}")
            if member.verdict.startswith(STANDSTILL):
                self.stood_still[machine.rank] = self.now
            machine.stopping = True
            self.decided = min(self.decided, self.now)
            machine.ends_at = min(machine.ends_at, self.now + self.random.uniform(0, self.grace))
        summary = member.summary() if machine.rank == 0 else None
        if summary:
            if summary["notices"][: len(self.notices)] != self.notices:
                raise Broken(f"what was found is kept: {self.notices} became {summary['notices']}")
            self.notices = summary["notices"]
            if self.now < self.disk_full_from:
                self.gang_file = summary
        tasks, member.tasks = member.tasks, []
        for task in tasks:
            self.inspect(machine, task)
        for number, data in machine.connections.take_unsent().items():
            self.transmit(machine, number, data)
        closing, machine.connections.closing = machine.connections.closing, []
        for number in closing:
            if number in machine.open:
                self.hang_up(machine, number, machine.open.pop(number))
        for rank in machine.connections.to_dial(now):
            self.dial(machine, self.machines[rank], now)
        if member.over and machine.alive:
            self.say(f"n{machine.rank} ({member.role}) is over")
            self.die(machine)

    def begin_attempt(self, machine: Machine) -> None:
        """Start the script again, as the gang says."""
        member = machine.member
        self.say(f"n{machine.rank} begins attempt {member.attempt}, from {member.checkpoint!r}")
        before = [one for one in self.machines if one.script == "running" and one.powered and not one.returned]
        earlier = [one for one in before if one.attempt < member.attempt]
        for one in earlier:  # what stands still, or has until now, or has lost its supervisor, cannot end it
            stood_still = one.frozen is not None or self.now - one.thawed_at < self.timeout
            one.overtaken = one.overtaken or stood_still or not one.alive
        running = next((one for one in earlier if not one.overtaken), None)
        if running:
            raise Broken(f"at most one attempt runs: {running.attempt} on n{running.rank}, {member.attempt} begins")
        if member.attempt > self.begun:
            self.begin_anew(member)
        if member.checkpoint != self.machines[0].member.checkpoint:
            raise Broken(f"all go on from the same checkpoint: n{machine.rank} does from {member.checkpoint}")
        machine.attempt, machine.script, machine.verdict = member.attempt, "running", None
        machine.stopping = machine.has_fault = False
        machine.ends_well, machine.ends_at = True, self.now + machine.seconds
        if machine.asked is not None:
            member.end(machine.asked)

    def begin_anew(self, member: gang_member.GangMember) -> None:
        """Check what must hold when the first rank of an attempt is started."""
        step = int(member.checkpoint.partition(".")[0] or 0)
        if self.attempts.random() < 0.3:  # one that begins badly
            self.at(self.attempts.uniform(0, LONGEST_DELAY), lambda: self.reset(0))
            self.at(self.attempts.uniform(0, 1), self.kill_script)
        self.unproductive = 0 if step > self.last_step else self.unproductive + 1
        self.last_step, self.begun = step, member.attempt
        if self.begun > self.retries + 1 or self.unproductive >= next_attempt.MOST_UNPRODUCTIVE:
            raise Broken(f"given up in the end: attempt {self.begun} begins, {self.unproductive} left nothing new")
        if "stop" in self.severe and self.severe.keys() <= {"stop", "fault"} and not self.mild:
            late = self.now - self.severe["stop"]
            if late > self.grace + 1:
                raise Broken(f"what was asked to stop is not started again: it is, {late:.0f} s later")

    def inspect(self, machine: Machine, task: dict[str, Any]) -> None:
        """Do what a node's inspector is asked to, which takes a while."""
        if not machine.inspects:
            return
        if task["task"] == inspector_tasks.FIND:
            if self.attempts.random() < self.saves:
                self.step += self.attempts.randint(1, 9)
            result: dict[str, Any] = {
                "found": [f"{self.step}.ckpt", self.step, 1.0] if self.step else None,
                "refusal": "",
            }
        elif task["task"] == inspector_tasks.LOOK:
            if self.kind == "pauses" and machine.rank == self.last:
                self.quiet_to = min(self.quiet_to, self.now + self.random.uniform(0, task["seconds"] - 3 * TICK))
            works = self.kind == "is quiet" and machine.rank == self.last
            result = {"found": "works" if works else "waits"}
        elif task["task"] == inspector_tasks.CONNECT:
            result = {"found": {"failed": {}, "master": None}}
        elif self.must_connect and task["reached"] is None and "works" not in task["activities"].values():
            ports = {rank: 40000 + int(rank) for rank in task["activities"]}
            result = {"ports": ports, "master": True}
        else:
            is_open = "works" in task["activities"].values() or bool(task["errors"])
            result = {"found": [True, False, f"{len(task['activities'])} wait", is_open]}
        answer = {"task": task["task"], "number": task["number"], "result": result}
        seconds = task.get("seconds", 0) + self.random.uniform(0.01, LONGEST_LOOK)
        self.at(seconds, lambda: self.on(machine, lambda: machine.member.task_done(answer)))

    def silence(self, machine: Machine, rank: int) -> float:
        """Return how long a machine has not heard another; for ever if nobody listens there any more."""
        other = machine.member._nodes[rank]
        if other.heard is None or (not other.connected and other.refused_since is not None):
            return self.timeout
        return self.now + machine.clock - other.heard

    def dial(self, machine: Machine, other: Machine, now: float) -> None:
        number = next(self.numbers)
        machine.open[number] = other.rank
        machine.connections.opened(number, now, other.rank)
        self.record(machine, number)
        self.links[number, machine.rank, other.rank] = Link()
        self.links[number, other.rank, machine.rank] = Link()
        self.at(self.delay(), lambda: self.arrive(machine, other, number))

    def arrive(self, machine: Machine, other: Machine, number: int) -> None:
        """A request for a connection arrives, or never does."""
        if not other.powered or self.cut & {(machine.rank, other.rank), (other.rank, machine.rank)}:
            return
        if other.alive:
            other.open[number] = machine.rank
            self.on(other, lambda: self.accept(other, number))
        else:
            self.on(machine, lambda: self.refuse(machine, other.rank, number))
            return
        self.on(machine, lambda: self.flush_held(machine, number))

    def accept(self, machine: Machine, number: int) -> None:
        machine.connections.opened(number, self.now + machine.clock)
        self.record(machine, number)

    def record(self, machine: Machine, number: int) -> None:
        self.streams.setdefault(number, []).append(machine.connections._connections[number].stream)

    def refuse(self, machine: Machine, rank: int, number: int) -> None:
        now = self.now + machine.clock
        machine.open.pop(number, None)
        machine.connections.not_reached(rank, REFUSED, now)
        machine.connections.closed(number, now)

    def flush_held(self, machine: Machine, number: int) -> None:
        if number in machine.open:
            link = self.links[number, machine.rank, machine.open[number]]
            stalled, link.stalled = link.stalled, []
            for one in stalled:
                one()

    def delay(self) -> float:
        return self.random.uniform(0.001, self.random.choice([0.01, LONGEST_DELAY]))

    def transmit(self, machine: Machine, number: int, data: bytes) -> None:
        if number not in machine.open:
            return
        other = self.machines[machine.open[number]]
        for piece in self.pieces(number, machine.rank, data):
            self.carry(number, machine.rank, other.rank, lambda piece=piece: self.deliver(other, number, piece))

    def pieces(self, number: int, sender: int, data: bytes) -> Iterator[bytes]:
        """Cut a stream as a network may, or change it as somebody there may."""
        how = self.tampered.pop((number, sender), None)
        if how == "changed":
            at = self.random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << self.random.randrange(8))]) + data[at + 1 :]
        elif how == "repeated":
            data += data
        elif how == "lost":
            return
        elif how == "swapped with the next":
            first, newline, rest = data.partition(b"\n")
            data = rest + first + newline
        while data:
            size = self.random.choice([len(data), len(data), self.random.randint(1, len(data))])
            yield data[:size]
            data = data[size:]

    def carry(self, number: int, sender: int, receiver: int, what: Callable[[], None]) -> None:
        """Have something happen at the other end, after all that was sent before, once the way is free."""
        link, there = self.links[number, sender, receiver], self.machines[receiver]
        if there.returned:  # it knows of no connection
            machine = self.machines[sender]
            self.at(self.delay(), lambda: self.on(machine, lambda: self.lose(machine, number)))
            return
        is_open = number in there.open and there.powered
        if not is_open or link.stalled or (sender, receiver) in self.cut:
            link.stalled.append(lambda: self.carry(number, sender, receiver, what))
            self.give_up(link, number, sender, receiver)
            return
        link.arrives = max(link.arrives, self.now + self.delay())

        def arrive() -> None:
            if (sender, receiver) in self.cut or link.stalled:
                link.stalled.append(lambda: self.carry(number, sender, receiver, what))
                self.give_up(link, number, sender, receiver)
            else:
                what()

        self.at(link.arrives - self.now, arrive)

    def give_up(self, link: Link, number: int, sender: int, receiver: int) -> None:
        """Close a connection at the end that sends, if nothing of it arrives for too long (TCP_USER_TIMEOUT)."""
        if link.stuck_since is not None or number not in self.machines[receiver].open:
            return
        since = link.stuck_since = self.now
        machine = self.machines[sender]

        def close() -> None:
            if link.stuck_since == since:
                link.stalled = []
                self.on(machine, lambda: self.lose(machine, number))

        self.at(self.timeout / 3, close)

    def deliver(self, machine: Machine, number: int, data: bytes) -> None:
        if machine.powered and number in machine.open:
            self.on(machine, lambda: machine.connections.received(number, data, self.now + machine.clock))

    def hang_up(self, machine: Machine, number: int, rank: int) -> None:
        other = self.machines[rank]
        self.carry(number, machine.rank, rank, lambda: self.on(other, lambda: self.lose(other, number)))

    def lose(self, machine: Machine, number: int) -> None:
        if machine.open.pop(number, None) is not None:
            machine.connections.closed(number, self.now + machine.clock)

    # ------------------------------------------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run to the end.

        Raises:
            Broken: what must hold does not.
        """
        while self.events and self.now < HORIZON:
            self.now, number, what = heapq.heappop(self.events)
            if number > MOST_EVENTS:
                raise Broken("every gang ends: supervisors send each other messages without end")
            what()
        self.check()

    def check(self) -> None:
        """Check what must hold at the end."""
        left = [one for one in self.machines if one.alive and not one.member.over]
        if left:
            raise Broken(f"every gang ends: n{left[0].rank} has not")
        for streams in self.streams.values():
            for one, other in (streams, streams[::-1]) if len(streams) == 2 else ():
                if one.come != json.loads(json.dumps(other.sent[: len(one.come)])):
                    raise Broken(f"every message once, in order, as it was sent: {one.come} of {other.sent}")
        self.check_standstill()
        self.check_attempts()
        living = [one for one in self.machines if one.member.over]
        roster = self.machines[0].member.roster
        lost = [
            one
            for one in self.machines
            if one.rank in roster
            and not one.member.over
            and one.script == "running"
            and any(other.heard for other in one.member._nodes)
        ]  # one that never met another is missed by none
        for one in living:
            self.check_one(one, lost)
        is_forgotten = self.controller_dies and any(one.script == "waiting" for one in self.machines)
        if len(self.severe) == 1 and not self.severe.keys() & {"freeze", "partition", "fault"} and not is_forgotten:
            if self.spares:  # with which it goes on
                return
            self.check_time()
            # One that slept until all was over has met nobody in time.
            stopped = [one for one in living if one.script == "stopped" and one.started <= self.decided]
            blamed = {self.blamed(one.member.verdict) for one in stopped}
            if "two stops" in self.severe:
                blamed -= {"''", "'another controller'"}
            is_one = len(blamed) <= 1 or (self.stood_still and self.asked_to_stop)  # at the same moment
            if not is_one and not self.has_tampered:
                raise Broken(f"one verdict for all: {sorted(blamed)}")

    def check_one(self, one: Machine, lost: list[Machine]) -> None:
        verdict = one.member.verdict
        if one.script == "running":
            raise Broken(f"no process outlives its job: the script of n{one.rank} does")
        if one.script == "stopped" and verdict is None:
            raise Broken(f"every end has a cause: n{one.rank} was stopped without one")
        if verdict == "" and not self.asked_to_stop:
            raise Broken(f"every end has a cause: that of n{one.rank} is a stop on request, which nobody made")
        if one.script not in ("succeeded", gang_member.SPARE) and not self.severe and self.kind != "is stuck":
            raise Broken(f"no false alarm: n{one.rank} {one.script} because {verdict}")
        # Else it is told nothing, and runs alone.
        has_met = one.member.head == one.rank or one.member._nodes[one.member.head].heard is not None
        if lost and verdict is None and has_met and "partition" not in self.severe:
            raise Broken(f"every end has a cause: n{one.rank} does not know that n{lost[0].rank} was lost")
        roster = self.machines[0].member.roster
        bad = [other for other in self.machines if other.member.over and other.script == "failed"]
        bad = [other for other in bad if other.rank in roster]
        if bad and verdict is None and has_met:
            raise Broken(f"succeeded only if every rank did: n{one.rank} does not know that n{bad[0].rank} failed")

    def check_attempts(self) -> None:
        """Check that a job which only lost some of its scripts went on to its end."""
        if not self.severe or self.mild or self.has_extras or self.inspector_dies:
            return
        passing = {"fault", "freeze", "kill", "power", "partition"} if self.loses_one else {"fault", "freeze"}
        may_return = self.return_seconds or self.loses_one
        if self.severe.keys() - passing or ("freeze" in self.severe and not may_return):
            return
        head = self.machines[0].member
        is_late = any(one.started > self.timeout for one in self.machines)  # the head had not met it
        is_late = is_late or any(head._nodes[rank].heard is None for rank in head.roster[1:])
        if 0 in self.frozen or is_late:  # where the head is lost, the job ends
            return
        if self.kind != "is stuck" and self.saves == 1 and self.faults <= self.retries:
            taking_part = [self.machines[rank] for rank in self.machines[0].member.roster]
            left = [one for one in taking_part if one.script != "succeeded"]
            if left:
                raise Broken(f"a job goes on by itself: n{left[0].rank} {left[0].script}")

    def check_standstill(self) -> None:
        """Check who was taken for standing still."""
        if self.stood_still and self.kind != "is stuck":
            raise Broken(f"no false alarm: a job that {self.kind} stands still for {sorted(self.stood_still)}")
        first = self.machines[0].member._examination
        notices = first.notices if first else []
        if len(set(notices)) < len(notices):
            raise Broken(f"every finding is told once: {notices}")
        is_alone = any(all(other.heard is None for other in one.member._nodes) for one in self.machines)
        if self.kind != "is stuck" or self.severe or self.mild or is_alone:
            return
        if self.inspector_dies:
            if self.machines[0].inspects and not notices:
                raise Broken("who waits for a rank of which nothing is known is told: nobody was")
            return
        connects = inspector_tasks.CONNECT_SECONDS + inspector_tasks.SECONDS_PER_NODE * len(self.machines)
        looks = inspector_tasks.WORK_SECONDS + connects + 3 * LONGEST_LOOK
        limit = self.quiet_from + RENDEZVOUS_SECONDS + looks + self.timeout
        late = [one.rank for one in self.machines if not self.stood_still.get(one.rank, HORIZON) <= limit]
        if late:
            raise Broken(f"a rendezvous that cannot complete ends the job: that of n{late[0]} did not by {limit:.0f}")

    def check_time(self) -> None:
        """Check that what happened has ended the job soon."""
        ((kind, when),) = self.severe.items()
        loss, soon = self.timeout, min(self.timeout, 7.0)
        noticed = {"failure": 0, "stop": 0, "two stops": 0, "power": loss, "reboot": loss, "kill": soon}[kind]
        if self.kind == "is stuck" and when > self.quiet_from + RENDEZVOUS_SECONDS:
            return  # that has ended the job before, or does so meanwhile
        limit = when + noticed + 8 + (7 * self.timeout if self.mild else 0)
        for one in self.machines:
            has_met = any(other.heard is not None for other in one.member._nodes)
            if one.script == "succeeded" and one.ended > limit and has_met:
                raise Broken(f"every gang ends soon: n{one.rank} goes on {one.ended - when:.0f} s after: {kind}")

    @staticmethod
    def blamed(verdict: str | None) -> str:
        """Return the rank that a verdict names; two that lose the same one may say so in other words."""
        found = re.search(r"rank \d+", verdict or "")
        return found[0] if found else repr(verdict)


gang_connections.AuthenticatedStream = recording(AuthenticatedStream)  # type: ignore[misc]


def run(seed: int) -> World:
    """Run one seed.

    Raises:
        Broken: with the time line.
    """
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        raise Broken(f"seed {seed}: {error!r}\n" + "\n".join(world.lines)) from error
    return world


def main(first: int, count: int) -> int:
    """Run seeds, and print those that fail."""
    began, failed = time.monotonic(), 0
    seen: dict[str, int] = {}
    for seed in range(first, first + count):
        try:
            world = run(seed)
        except Broken as error:
            failed += 1
            if failed <= 3:
                print(error)
            continue
        for kind in world.severe or ["nothing severe"]:
            seen[kind] = seen.get(kind, 0) + 1
    seconds = time.monotonic() - began
    print(f"{count} seeds, {failed} failed, {60 * count / seconds:.0f} a minute; {seen}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
