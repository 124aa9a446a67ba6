# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Walk and open the files of a job's working directory, following no link out of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_regular

BUNDLE_MTIME = 946684800
"""Modification time, seconds since 1970, of every file that came with the code: what differs was written by the job."""
PLACED_MTIME = BUNDLE_MTIME + 1
"""Modification time of a checkpoint that was there before the start: a later job can go on from it, but this job has
not written it, so it is not collected."""


def walk(top: str, after: str = "", links: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files below ``top`` that come after the path ``after``, as paths relative to ``top``.

    Folders and files of one folder are in the order of their names, so that a walk can be taken up again. Not os.walk:
    a job can nest folders deeper than Python's recursion goes.

    Args:
        top: a folder.
        after: the last path of an earlier walk, or "".
        links: follow them, and raise OSError where something cannot be looked at; else no link is followed, and that
            is passed over.
    """
    cursor = after.split("/") if after else []
    pending = [_entries(top, "", cursor[:1], links)]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        path, is_folder = entry
        if is_folder:
            depth = len(pending)
            on_the_way = path.split("/") == cursor[:depth]
            pending.append(_entries(top, path, cursor[depth : depth + 1] if on_the_way else [], links))
        elif path != after:
            with suppress(*_passed_over(links)):
                yield path, os.stat(os.path.join(top, path), follow_symlinks=links)


def _entries(top: str, folder: str, first: list[str], links: bool) -> Iterator[tuple[str, bool]]:
    """Yield the folders (True) and regular files (False) of a folder, by name, from the name ``first`` on."""
    found = []
    with suppress(*_passed_over(links)), os.scandir(os.path.join(top, folder)) as entries:
        for entry in entries:
            if not first or entry.name >= first[0]:
                if links:
                    os.stat(entry.path)  # is_dir and is_file are False of a link that leads nowhere
                is_folder = entry.is_dir(follow_symlinks=links)
                if (is_folder and entry.name != "__pycache__") or entry.is_file(follow_symlinks=links):
                    found.append((os.path.join(folder, entry.name), is_folder))
    yield from sorted(found)


def _passed_over(links: bool) -> tuple[type[OSError], ...]:
    return () if links else (OSError,)


@contextlib.contextmanager
def folder_of(top: str, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder below ``top`` that holds ``path``, following no link; give its descriptor and the file's name.

    Args:
        top: a folder.
        path: relative to it.
        make: make the folders that are missing.

    Raises:
        Refusal: the path leaves ``top``.
        OSError: a folder of the path is none.
    """
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)):
        raise Refusal(f"was asked for {path!a}, which is no path below {top}; report this")
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=folder)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder, name
    finally:
        os.close(folder)


def open_file(top: str, path: str) -> int:
    """Open the regular file ``path`` below ``top`` for reading, following no link."""
    with folder_of(top, path) as (folder, name):
        return open_regular(name, folder)


def open_named(top: str, path: str) -> int:
    """Open a regular file that the user named for reading, as whoever this is by now: links are followed."""
    return open_regular(os.path.realpath(os.path.join(top, path)))
