# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Call a function for every node at once, one thread each.

Unless this machine does not allow so many files: then some nodes are asked after others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unable,
    Unreachable,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.connection_slots import Deadline
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.open_files import (
    allow_files_for_nodes,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(
    items: Mapping[str, Item], call: Callable[[Item], Result], timeout_seconds: float
) -> tuple[dict[str, Result], dict[str, NodeError]]:
    """Call ``call(item)`` for every host's item at the same time.

    Args:
        items: host name to what is handed to ``call``, in rank order.
        call: may raise NodeError; any other exception is a defect and is raised again here.
        timeout_seconds: a node from which nothing comes for this long counts as unreachable (see
            ``connection_slots.Deadline``). Its thread is left behind (a daemon: a frozen node's connection can block
            for minutes and must not hold up the end of the run).

    Returns:
        Results and errors by host, each in the order of ``items``.
    """
    arrivals: queue.SimpleQueue[tuple[str, Result | None, BaseException | None]] = queue.SimpleQueue()

    def work(host: str, deadline: Deadline) -> None:
        deadline.begin()
        try:
            arrivals.put((host, call(items[host]), None))
        except BaseException as error:
            arrivals.put((host, None, error))

    results: dict[str, Result] = {}
    errors: dict[str, NodeError] = {}
    at_once, _needed = allow_files_for_nodes(len(items))
    waiting = list(items)[::-1]
    asked: dict[str, Deadline] = {}
    while waiting or asked:
        while waiting and len(asked) < at_once:
            host = waiting.pop()
            asked[host] = Deadline(timeout_seconds)
            try:
                threading.Thread(target=work, args=(host, asked[host]), name=host, daemon=True).start()
            except RuntimeError as failure:
                del asked[host]
                errors[host] = Unable(host, f"start a thread for each node: {failure}; raise ulimit -u")
        if not asked:
            continue
        try:
            first = min(deadline.at for deadline in asked.values())
            host, result, error = arrivals.get(timeout=max(0.0, first - time.monotonic()))
        except queue.Empty:
            for host in [host for host, deadline in asked.items() if deadline.at <= time.monotonic()]:
                del asked[host]
                errors[host] = Unreachable(host, f"gave no answer within {timeout_seconds:.0f} s")
            continue
        if host not in asked:  # too late
            continue
        del asked[host]
        if isinstance(error, NodeError):
            errors[host] = error
        elif error is not None:
            raise error
        else:
            results[host] = result  # type: ignore[assignment]  # no error, so there is a result
    return (
        {host: results[host] for host in items if host in results},
        {host: errors[host] for host in items if host in errors},
    )
