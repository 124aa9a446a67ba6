# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The same call on every node at once, one thread each: ``forks`` does not limit it, and no node waits for another."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import NodeError, Unreachable

Item = TypeVar("Item")
Result = TypeVar("Result")


def fan_out(
    items: Mapping[str, Item], call: Callable[[Item], Result], timeout_seconds: float
) -> tuple[dict[str, Result], dict[str, NodeError]]:
    """Call ``call(item)`` for every host's item at the same time.

    Args:
        items: host name to what is handed to ``call``, in rank order.
        call: may raise NodeError; any other exception is a defect and is raised again here.
        timeout_seconds: a node without a result after this long counts as unreachable. Its thread is left behind (a
            daemon: a frozen node's connection can block for minutes and must not hold up the end of the run).

    Returns:
        Results and errors by host, each in the order of ``items``.
    """
    arrivals: queue.SimpleQueue[tuple[str, Result | None, BaseException | None]] = queue.SimpleQueue()

    def work(host: str, item: Item) -> None:
        try:
            arrivals.put((host, call(item), None))
        except BaseException as error:
            arrivals.put((host, None, error))

    for host, item in items.items():
        threading.Thread(target=work, args=(host, item), name=host, daemon=True).start()
    results: dict[str, Result] = {}
    errors: dict[str, NodeError] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(results) + len(errors) < len(items):
        try:
            host, result, error = arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if isinstance(error, NodeError):
            errors[host] = error
        elif error is not None:
            raise error
        else:
            results[host] = result  # type: ignore[assignment]  # no error, so there is a result
    for host in items.keys() - results.keys() - errors.keys():
        errors[host] = Unreachable(host, f"gave no answer within {timeout_seconds:.0f} s")
    return (
        {host: results[host] for host in items if host in results},
        {host: errors[host] for host in items if host in errors},
    )
