# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find Lightning's checkpoints in a job's working directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import (
    Unfit,
    check_parts,
    find_step,
    open_archive,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    BUNDLE_MTIME,
    open_file,
    walk,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import escape_surrogates, is_encodable

MOST_LISTED = 1000
"""Of more checkpoints than this only the latest are read: they have the highest steps."""
SHARDED = "is a folder: a sharded checkpoint, of which each node has a part only"


class Found(NamedTuple):
    """A checkpoint that is complete as far as its end says; its parts are not read yet.

    Attributes:
        path: relative to the working directory.
        step: the global step.
        bytes: its size.
        mtime: when it was written, seconds since 1970.
    """

    path: str
    step: int
    bytes: int
    mtime: float


def find_checkpoints(work: str) -> tuple[list[Found], list[tuple[str, str]]]:
    """Return the checkpoints below a working directory, the latest first, and those that are none: path and why.

    What came with the code is none, and not mentioned.
    """
    files: list[tuple[float, str]] = []
    sharded: dict[str, str] = {}
    for path, entry in walk(work):  # a link's target is found by itself; so ModelCheckpoint(save_last="link") is served
        *folders, name = path.split("/")
        depth = next((depth for depth, folder in enumerate(folders, 1) if folder.endswith(".ckpt")), 0)
        if depth:
            sharded[escape_surrogates("/".join(folders[:depth]))] = SHARDED
        elif name.endswith(".ckpt") and int(entry.st_mtime) != BUNDLE_MTIME:
            files.append((entry.st_mtime, path))
    refused = list(sharded.items())
    found = []
    for mtime, path in sorted(files, reverse=True)[:MOST_LISTED]:
        if not is_encodable(path):
            refused.append((escape_surrogates(path), "has a name that is not UTF-8; rename it"))
            continue
        try:
            with open(open_file(work, path), "rb") as file:
                found.append(Found(path, find_step(open_archive(file)), os.fstat(file.fileno()).st_size, mtime))
        except Unfit as why:
            refused.append((path, str(why)))
        except OSError as error:
            refused.append((path, f"cannot be read: {error.strerror}"))
    return found, refused


def find_newest_whole(paths: Iterable[str]) -> tuple[str, int, float] | None:
    """Return the checkpoint with the highest step of which all parts are as they were written, its step, and mtime.

    Of equal steps ``last.ckpt`` is taken, then the latest. None if none of these paths is one.
    """
    found = []
    for path in paths:
        with suppress(Unfit, OSError), open(open_regular(path), "rb") as file:
            if is_encodable(path):
                step, mtime = find_step(open_archive(file)), os.fstat(file.fileno()).st_mtime
                found.append((step, path.endswith("/last.ckpt"), mtime, path))
    for step, _is_last, mtime, path in sorted(found, reverse=True):
        with suppress(Unfit, OSError), open(open_regular(path), "rb") as file:
            check_parts(open_archive(file))
            return path, step, mtime
    return None
