# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find out, as the head of the gang, why no rank prints anything any more; docs/gang.md describes the steps.

Like ``gang_member``, this knows no socket, clock, file or process: what comes of it is in its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import STANDSTILL
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.detect_stall import (
    Silence,
    StallDetector,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import (
    CONNECT,
    CONNECT_SECONDS,
    EXPLAIN,
    LOOK,
    SECONDS_PER_NODE,
    WORK_SECONDS,
)

ANSWER_SECONDS = 30.0
"""A node that has not answered for so long, besides the time that it was to take, counts as unknown."""
MOST_NOTICES = 20
LONGEST_ERROR = 300
NO_REPLY = "did not answer the head"


class Examination:
    """The head's search, from a silence to a verdict or a notice. Times are seconds on a monotonic clock.

    Attributes:
        requests: ``(ranks, task)`` for the inspectors of these ranks; whoever drives this empties it.
        verdict: why the job has to end: its ranks wait in a rendezvous that cannot complete; None if it need not.
        notices: sentences for whoever follows the job, the oldest first.
    """

    def __init__(
        self, rank: int, ranks: Sequence[int], stall_seconds: float, rendezvous_seconds: float, now: float
    ) -> None:
        """Begin to listen for a silence.

        Args:
            rank: the head's.
            ranks: all that take part.
            stall_seconds: a silence of this length is looked into; 0: none is.
            rendezvous_seconds: one of this length while ranks may still be about to meet; 0: none is.
            now: the time.
        """
        self.requests: list[tuple[list[int], dict[str, Any]]] = []
        self.verdict: str | None = None
        self.notices: list[str] = []
        self._rank = rank
        self._ranks = ranks
        self._about = ""  # how what is found out begins
        self._limits = (stall_seconds, rendezvous_seconds)
        self._detector = StallDetector(*self._limits, now)
        self._progress = (0, 0)  # bytes printed, ranks ended
        self._progress_then = (0, 0)  # when the look began
        self._waiting: Silence | None = None  # to be looked into
        self._silence = Silence(0, False, False)  # that is being looked into
        self._number = 0
        self._step = ""  # the one that is under way; "" if none is
        self._deadline = 0.0
        self._asked: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._activities: dict[int, Any] = {}
        self._errors: dict[int, str] = {}
        self._unreached: dict[int, str] = {}
        self._ports: dict[int, int] = {}

    def begin_attempt(self, number: int, ranks: Sequence[int], now: float) -> None:
        """Listen for a silence of another attempt, of these ranks; what was found out before is kept."""
        self._ranks = ranks
        self._about = f"attempt {number}: "  # else the same sentence would be no news
        self.verdict, self._step, self._waiting = None, "", None
        self._detector = StallDetector(*self._limits, now)
        self._progress = self._progress_then = (0, 0)

    def notice(self, sentence: str) -> None:
        """Keep a sentence for whoever follows the job."""
        self.notices = [*self.notices, sentence][-MOST_NOTICES:]

    def tick(self, written: int, ended: int, connected: Iterable[int], unreached: dict[int, str], now: float) -> None:
        """Do what is due.

        Args:
            written: bytes that all ranks have printed.
            ended: how many ranks have ended.
            connected: ranks to whose inspectors a task can be sent, the head's own among them.
            unreached: ranks that the head has never had a connection to, and why.
            now: the time.
        """
        silence, progress = self._detector.check(written, ended, now), (written, ended)
        self._waiting = silence or (self._waiting if progress == self._progress else None)
        self._progress, self._unreached = progress, dict(unreached)
        if not self._step and self._waiting:
            self._silence, self._waiting, self._progress_then = self._waiting, None, progress
            seconds = min(WORK_SECONDS, self._silence.seconds) if self._silence.rendezvous else 0.0
            self._number += 1
            self._ask(LOOK, list(connected), now, seconds, seconds=seconds)
        elif self._step and (now > self._deadline or self._asked <= self._answers.keys()):
            self._go_on(now)

    def skip(self, seconds: float) -> None:
        """Leave out a time in which this process was frozen."""
        self._detector.skip(seconds)
        self._deadline += seconds

    def take(self, rank: int, task: object, number: object, result: object) -> None:
        """Take what an inspector has found; an answer to an earlier question is passed over."""
        if task == self._step and number == self._number and rank in self._asked:
            self._answers[rank] = result if isinstance(result, dict) else {}

    def _ask(self, step: str, ranks: list[int], now: float, takes: float, **more: Any) -> None:
        self._step, self._asked, self._answers = step, set(ranks), {}
        self._deadline = now + takes + ANSWER_SECONDS
        self.requests.append((ranks, {"task": step, "number": self._number, **more}))

    def _go_on(self, now: float) -> None:
        """Go on after a step that is complete, or took too long."""
        step, answers = self._step, self._answers
        self._step = ""
        if step == LOOK:
            self._activities = {rank: one["found"] for rank, one in answers.items() if "found" in one}
            self._errors = {
                rank: str(answers.get(rank, {}).get("error", NO_REPLY))[:LONGEST_ERROR]
                for rank in self._ranks
                if rank not in self._activities
            }
            self._explain(None, now)
        elif step == CONNECT:
            self._explain({str(rank): one.get("found") for rank, one in answers.items()}, now)
        elif step == EXPLAIN:
            self._conclude(answers.get(self._rank, {"error": "the head's inspector did not answer"}), now)

    def _explain(self, reached: dict[str, Any] | None, now: float) -> None:
        """Have the head's inspector explain what was found; ``reached``: whom each node could connect to."""
        self._ask(
            EXPLAIN,
            [self._rank],
            now,
            0,
            activities={str(rank): one for rank, one in self._activities.items()},
            errors={str(rank): why for rank, why in self._errors.items()},
            unreached={str(rank): why for rank, why in self._unreached.items()},
            reached=reached,
            ports={str(rank): port for rank, port in self._ports.items()},
        )

    def _conclude(self, answer: dict[str, Any], now: float) -> None:
        """Take the explanation, or have the nodes connect to each other first where it depends on that."""
        if "ports" in answer:
            self._ports = {int(rank): port for rank, port in answer["ports"].items()}
            seconds = CONNECT_SECONDS + SECONDS_PER_NODE * len(self._ports)
            more = {"ports": answer["ports"], "master": answer["master"], "seconds": seconds}
            self._ask(CONNECT, sorted(self._ports), now, seconds, **more)
            return
        silence = f"{STANDSTILL} {self._silence.seconds:.0f} s"
        if "found" not in answer:
            self.notice(f"{self._about}{silence}, and the search for the cause failed: {answer.get('error')}")
            return
        rendezvous, passed, sentence, is_open = answer["found"]
        if passed:
            self._detector.past_rendezvous()
        if self._progress != self._progress_then:  # it goes on after all
            return
        sentence = f"{silence}: {sentence}"
        if self._silence.ended and rendezvous:
            ranks = "1 rank" if self._silence.ended == 1 else f"{self._silence.ended} ranks"
            sentence += (
                f"; {ranks} had ended with code 0, and cannot join any more: what only one rank does, such as with a "
                "second Trainer, needs num_nodes=1"
            )
        if self._silence.rendezvous and rendezvous and not is_open:
            self.verdict = sentence
        elif self._silence.stall or is_open:
            self.notice(self._about + sentence)
