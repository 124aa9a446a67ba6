# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Who looks on while a job is followed: shows its output, and notices when it has come to a standstill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.follow import Ending
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.screen import Screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.topology import Node


class Onlooker:
    """The observer of one job.

    Attributes:
        verdict: why the job has to end because of a standstill; "" if it need not.
    """

    def __init__(self, gang: Gang, logs: Mapping[str, RankLog], screen: Screen, stacks: Path, order: Order) -> None:
        """Look at nothing yet; ``stacks`` is the folder for what the ranks are doing."""
        self._gang = gang
        self._logs = logs
        self._screen = screen
        self._stacks = stacks
        self._order = order
        self.verdict = ""

    def output(self, node: Node, data: bytes) -> None:
        """Show a piece of a rank's output."""
        self._screen.show(node.rank, node.host, data)

    def look(self, written: Mapping[str, int], endings: Mapping[str, Ending]) -> str | None:
        """Return why the job has to be stopped, or None."""
        return self.verdict or None
