# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What a rank wrote into its working directory, brought to the controller in bounded pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.channel import Channel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record

BATCH_BYTES = 8 * 2**20
"""The most that one reply carries; also what the controller holds in memory."""

Part = tuple[str, int, int]
"""Path, offset in bytes, length in bytes."""


def batches(files: Sequence[tuple[str, int]], limit: int = BATCH_BYTES) -> Iterator[list[Part]]:
    """Yield lists of parts, each of at most ``limit`` bytes and 1,000 parts, that cover ``files`` (path, size)."""
    batch: list[Part] = []
    room = limit
    for path, size in files:
        offset = 0
        while True:
            length = min(size - offset, room)
            batch.append((path, offset, length))
            offset += length
            room -= length
            if room == 0 or len(batch) == 1000:
                yield batch
                batch, room = [], limit
            if offset >= size:
                break
    if batch:
        yield batch


def collect(channel: Channel, request: Callable[[str], Mapping[str, Any]], record: Record) -> list[str]:
    """Copy what one rank wrote to ``runs/<id>/artifacts/``.

    Args:
        channel: to the rank's node.
        request: gives the fields every request for this job has, for an operation's name.
        record: the job's folder.

    Returns:
        The names that were refused because they would leave the folder.

    Raises:
        NodeError: the node could not be read.
        OSError: the controller could not write.
    """
    listing, _payload = channel.call(request("artifacts"))
    targets = {name: record.artifact_path(name) for name, _size in listing["files"]}
    wanted = [(name, size) for name, size in listing["files"] if targets[name] is not None]
    for batch in batches(wanted):
        reply, data = channel.call({**request("read"), "parts": batch})
        position = 0
        for (name, offset, _length), length in zip(batch, reply["lengths"], strict=True):
            target = targets[name]
            assert target is not None  # only wanted names are asked for
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data[position : position + length])
            position += length
    return sorted(name for name, target in targets.items() if target is None)
