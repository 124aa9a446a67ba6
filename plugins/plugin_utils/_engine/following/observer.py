# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a followed job's output, and what its nodes say of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import STANDSTILL
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.fetch_stacks import (
    FETCH_SECONDS,
    fetch_stacks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import Screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import format_moment

MOST_REPORTED = 100
"""How many different sentences are shown of what was found out: what a node says of its job is not to fill a screen."""


class JobObserver:
    """Show what the ranks of one job print, and what its head says of silent ranks and of attempts.

    Attributes:
        notices: what the head has found out, each with its time, the oldest first.
        attempt: which of the job's attempts runs, or was the last, as far as the head has said.
        roster: who takes part in it; see ``Topology.of_attempt``.
        ended_attempts: how each one before it went, as ``read_gang_state`` has it.
    """

    def __init__(
        self,
        gang: Gang,
        logs: Mapping[str, RankLog],
        screen: Screen,
        stacks: Path,
        about: Mapping[str, Any],
    ) -> None:
        """Keep what is needed; nothing is shown yet.

        Args:
            gang: the job's nodes.
            logs: of each host.
            screen: shows the ranks' output.
            stacks: folder for what the ranks are doing, made when it is needed.
            about: what job.json says of the job.
        """
        self._gang = gang
        self._logs = logs
        self._screen = screen
        self._stacks = stacks
        self._about = about
        self._states: dict[str, Mapping[str, Any]] = {}
        self.notices: list[str] = []
        self.attempt = 1
        self.roster: list[int] = []
        self._taking_part = gang.topology.taking_part
        self.ended_attempts: list[dict[str, Any]] = []
        self._reported: set[str] = set()
        self._reporting: threading.Thread | None = None  # that fetches stacks
        self._lock = threading.Lock()
        self._warned = False  # that the ranks have not met

    def output(self, node: Node) -> None:
        """Show what is new in a rank's log."""
        self._screen.check_logs()

    def say(self, text: str) -> None:
        """Show a sentence of the engine's own."""
        self._screen.say(text)

    def update_state(self, node: Node, state: Mapping[str, Any]) -> None:
        """Take a rank's state from its node's reply."""
        with self._lock:
            self._states[node.host] = {**self._states.get(node.host, {}), **state}
        if node.rank == 0:  # the head; what others say that they have found out is not the gang's
            gang = state.get("gang", {})
            self.attempt, roster = gang.get("attempt", self.attempt), gang.get("roster", self.roster)
            if roster != self.roster:
                self.roster, self._taking_part = roster, self._gang.topology.of_attempt(roster).taking_part
            self.ended_attempts = gang.get("ended_attempts", self.ended_attempts)
            self._report_notices(gang.get("notices", []))

    def _report_notices(self, notices: list[tuple[float, str]]) -> None:
        """Show what the head has found out, and where the stacks lie, in a thread: the nodes are asked for those."""
        with self._lock:
            news = [f"{format_moment(at)} {escape(one)}" for at, one in notices]
            news = [one for one in news if one not in self._reported]
            is_busy = self._reporting is not None and self._reporting.is_alive()
            if not news or is_busy or len(self._reported) > MOST_REPORTED:
                return
            reporting = threading.Thread(target=self._report, args=(news,), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started; the next reply tries again
                reporting.start()
                self._reported.update(news)
                self.notices += news
                self._reporting = reporting

    def _report(self, notices: list[str]) -> None:
        is_standstill = [STANDSTILL in one for one in notices]
        folder = fetch_stacks(self._gang, self._stacks) if any(is_standstill) else ""
        for one, has_stacks in zip(notices, is_standstill, strict=True):
            self._screen.say(f"{one}{f'; what every rank was doing: {folder}' if has_stacks and folder else ''}")

    def finish(self) -> None:
        """Wait until all that was found out is shown."""
        if self._reporting:
            self._reporting.join(FETCH_SECONDS)

    @property
    def parts(self) -> job_warnings.Parts:
        """Each host that takes part with the last state of its rank."""
        return [(node.host, self._states.get(node.host, {})) for node in self._taking_part]

    def report_state(self) -> None:
        """Report what is new of all ranks together; called every so often as long as none has ended."""
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
