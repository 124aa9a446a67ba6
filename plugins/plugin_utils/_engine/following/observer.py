# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a followed job's output, and explain when it stalls."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings, stall
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import Screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import pluralize


class JobObserver:
    """Show what the ranks of one job print, and report what they do when they print nothing."""

    def __init__(
        self,
        gang: Gang,
        logs: Mapping[str, RankLog],
        screen: Screen,
        stacks: Path,
        stall_timeout_seconds: int,
        rendezvous_timeout_seconds: int,
        about: Mapping[str, Any],
    ) -> None:
        """Keep what is needed; nothing is shown yet.

        Args:
            gang: the job's nodes.
            logs: of each host.
            screen: shows the ranks' output.
            stacks: folder for what the ranks are doing, made when it is needed.
            stall_timeout_seconds: without any output for this long, what the ranks do is reported; 0 means never.
            rendezvous_timeout_seconds: the same since the start; a rendezvous that cannot complete ends the job.
            about: what job.json says of the job.
        """
        self._gang = gang
        self._logs = logs
        self._screen = screen
        self._stacks = stacks
        self._watch = stall.StallDetector(
            stall_timeout_seconds, rendezvous_timeout_seconds, age_seconds=gang.identity.age
        )
        self._explaining: threading.Thread | None = None
        self._silence: stall.Silence | None = None  # to be explained
        self._progress = (0, 0)  # bytes printed, ranks ended
        self._reports: queue.SimpleQueue[stall.StallReport] = queue.SimpleQueue()
        self._about = about
        self._states: dict[str, Mapping[str, Any]] = {}
        self._reported: set[str] = set()
        self._warned = False  # that the ranks have not met

    def output(self, node: Node) -> None:
        """Show what is new in a rank's log."""
        self._screen.check_logs()

    def say(self, text: str) -> None:
        """Show a sentence of the engine's own."""
        self._screen.say(text)

    def update_state(self, node: Node, state: Mapping[str, Any]) -> None:
        """Take a rank's state from its node's reply."""
        self._states[node.host] = state

    @property
    def parts(self) -> job_warnings.Parts:
        """Each host with the last state of its rank."""
        return [(node.host, self._states.get(node.host, {})) for node in self._gang.topology.nodes]

    def check_stall(self, written: Mapping[str, int], endings: Mapping[str, RankEnding]) -> stall.StallReport | None:
        """Return a report on a stall, once, or None. Its cause is searched for in a thread of its own."""
        if not endings:
            self._report_state()
        silence, progress = self._watch.check(written, len(endings)), (sum(written.values()), len(endings))
        self._silence = silence or (self._silence if progress == self._progress else None)
        self._progress = progress
        if self._explaining and self._explaining.is_alive():
            self._silence = None
        elif self._silence:
            explaining = threading.Thread(target=self._explain, args=(self._silence,), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started; the next check tries again
                explaining.start()
                self._explaining, self._silence = explaining, None
        return None if self._reports.empty() else self._reports.get()

    def _report_state(self) -> None:
        """Report, once each, what the ranks were not seen to do, and when they do it later."""
        parts = self.parts
        together, read = job_warnings.met(self._about, parts), job_warnings.checkpoint_read(parts)
        news = ""
        if False in (together, read) and all("met" in state or len(parts) == 1 for _host, state in parts):
            news = job_warnings.warning(self._about, parts, ended=False)
        if news:
            self._warned = self._warned or together is False
            self._say_once(news)
        elif together and self._warned:
            self._say_once("the ranks have met now")
        self.report_checkpoint()

    def report_checkpoint(self) -> None:
        """Report, once, which checkpoint the job goes on from, if a process of it was seen to read that."""
        if job_warnings.checkpoint_read(self.parts) and "checkpoint_step" in self._about:
            step = self._about["checkpoint_step"]
            known = f"{self._about['resumed']}, step {step}" if step is not None else self._about["checkpoint"]
            self._say_once(f"goes on from {known}")

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._reported:
            self._reported.add(sentence)
            self._screen.say(sentence)

    def _explain(self, silence: stall.Silence) -> None:
        try:
            self._find_cause(silence)
        except Exception as error:  # a defect, which must not end the job
            self._screen.say(
                f"nothing was printed for {silence.seconds:.0f} s, and the search for the cause failed: {error!r}"
            )

    def _find_cause(self, silence: stall.Silence) -> None:
        before = self._progress
        stacks = stall.gather_stacks(self._gang, self._stacks, seconds=stall.WORK_SECONDS if silence.rendezvous else 0)
        found = stall.explain(self._gang.topology, stacks, self._logs, self._gang)
        if found.passed:
            self._watch.past_rendezvous()
        if self._progress != before:  # it goes on after all
            return
        sentence = f"nothing was printed for {silence.seconds:.0f} s: {found.sentence}"
        if silence.ended and found.rendezvous:
            sentence += (
                f"; {pluralize(silence.ended, 'rank')} had ended with code 0, and cannot join any more: what only one "
                "rank does, such as with a second Trainer, needs num_nodes=1"
            )
        hopeless = silence.rendezvous and found.rendezvous and not found.open
        if hopeless or silence.stall or found.open:
            self._reports.put(stall.StallReport(sentence, hopeless))
