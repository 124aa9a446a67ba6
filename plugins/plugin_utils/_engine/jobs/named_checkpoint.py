# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a checkpoint that the user names, of whatever library, on the nodes or on this machine."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    escape,
    format_bytes,
    join_names,
    pluralize,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.describe_checkpoint import (
    MOST_NAMED_FILES,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.checkpoints import (
    LIST_SECONDS,
    NOTHING_STARTED,
    SLOWEST_DISK,
    Checkpoint,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)

FOLDER = ".checkpoint"
"""Where in a job's working directory a checkpoint is put that does not come from an earlier job's."""
HERE = "this machine"


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint that the user named.

    Attributes:
        path: of CKPT_PATH: relative to the new job's working directory, or absolute if every node has it there.
        files: what it consists of; empty if every node has it. Of one on this machine, ``host`` is HERE and ``source``
            the path here.
        description: where it was found, a clause.
        notes: what the user should know.
    """

    path: str
    files: tuple[Checkpoint, ...]
    description: str
    notes: tuple[str, ...] = ()


def find_named(path: str, gang: Gang, job: str, hosts: Sequence[str], timeout_seconds: float = 30) -> NamedCheckpoint:
    """Return the checkpoint of that name, from whichever node has it, or else from this machine.

    A folder of which the nodes have a part each is put together; of files that several have, the first node's is taken.

    Args:
        path: absolute; below a home (``~/``: on a node that of the account that jobs run as); or relative to the
            earlier job's working directory, or to the current directory here.
        gang: the nodes to be asked, in rank order.
        job: id of the earlier job, or "": then a relative path is one on this machine.
        hosts: those that are to have it.
        timeout_seconds: of a node that does not answer for this long it is not known whether it has it.

    Raises:
        JobError: it has no name, nobody has it, it cannot be read, or a node that does not answer may have a part.
    """
    here = os.path.expanduser(path)
    path = path if path.startswith("~/") else here
    everywhere = is_absolute(path)
    if os.path.basename(os.path.normpath(path)) in ("", ".", "..", "~"):
        raise JobError(
            f"checkpoint {escape(path)} is not the name of a file or a folder; name the checkpoint itself, as in: "
            "-e checkpoint=out/checkpoint-10"
        )
    answers: Replies = {}
    errors: dict[str, NodeError] = {}
    if job or everywhere:
        answers, errors = gang.ask("describe_checkpoint", max(LIST_SECONDS, timeout_seconds), path=path, digests=[])
    replies = {host: reply for host, (reply, _payload) in answers.items() if reply["top"]}
    if refusals := [error for error in errors.values() if not isinstance(error, Unreachable) and not _is_gone(error)]:
        raise join_errors(refusals, NOTHING_STARTED)
    silent = [error for error in errors.values() if not _is_gone(error)]
    notes = [f"whether {error.host} has checkpoint {escape(path)} is not known: {error}" for error in silent]
    notes += [f"{host} {escape(reply['why'])}" for host, (reply, _payload) in answers.items() if "why" in reply]
    if not replies and os.path.exists(here):
        return _from_here(Path(here), notes)
    if not replies:
        asked = join_names([host for host in gang.settings if host not in errors])
        where = f"on {asked}" if everywhere else f"in the folder of job {job} on {asked}"
        places = f"neither {where} nor " if job or everywhere else "not "
        closed = [f"{host} {reply['why']}" for host, (reply, _payload) in answers.items() if "why" in reply]
        reasons = "".join(f"; {escape(str(why))}" for why in [*closed, *errors.values()])
        raise JobError(
            f"checkpoint {escape(path)} is {places}on this machine ({os.path.abspath(here)}){reasons}; name a file or "
            "a folder by its absolute path, or by its path in the folder of the job that resume names"
        )
    first = next(iter(replies.values()))
    if first["folder"] and silent:
        who = join_names([error.host for error in silent])
        reason = "; ".join(map(str, silent))
        raise JobError(
            f"checkpoint {escape(path)} is a folder, and {who} may have a part of it, but {reason}; make that node "
            "reachable, or if it has no part, leave it out of the inventory"
        )
    if not any(reply["files"] for reply in replies.values()):
        raise JobError(
            f"checkpoint {escape(path)} is a folder without files on {join_names(list(replies))}; name another"
        )
    if everywhere and all(replies.get(host) == first for host in hosts):
        size = sum(size for _name, size, *_more in first["files"])
        if path.startswith("~"):
            path = first["top"] if first["folder"] else os.path.join(first["top"], first["files"][0][0])
        return NamedCheckpoint(path, (), f"{format_bytes(size)}, which every node has there")
    return _put_together(path, gang, replies, timeout_seconds, notes)


def is_absolute(path: str) -> bool:
    """Whether a path that the user wrote is one on the nodes, whatever job they had."""
    return path.startswith("~/") or os.path.isabs(os.path.expanduser(path))


def _is_gone(error: NodeError) -> bool:
    return bool(error.facts.get("gone"))


def _put_together(
    path: str, gang: Gang, replies: Mapping[str, Mapping[str, Any]], timeout_seconds: float, notes: Sequence[str]
) -> NamedCheckpoint:
    """Have each node read the files that are taken from it."""
    is_folder = next(iter(replies.values()))["folder"]
    target = os.path.normpath(path)
    if target.partition("/")[0] in ("", "..", "~"):  # it lies outside the job's folder
        target = os.path.join(FOLDER, os.path.basename(target))
    taken: dict[str, tuple[str, int, int]] = {}
    others: set[str] = set()
    unread: dict[str, list[str]] = {}
    for host, reply in replies.items():
        for name, size, mtime_ns, _sha256 in reply["files"]:
            holder, holders_size, holders_mtime_ns = taken.setdefault(name, (host, size, mtime_ns))
            if size != holders_size:
                others.add(host)
            elif host == holder or mtime_ns != holders_mtime_ns:  # on a shared disk it is the same file
                unread.setdefault(host, []).append(name)
    files: dict[str, Checkpoint] = {}
    for host, names in unread.items():
        seconds = max(LIST_SECONDS, timeout_seconds) + sum(taken[name][1] for name in names) / SLOWEST_DISK
        answers, errors = gang.ask("describe_checkpoint", seconds, [host], path=path, digests=names)
        if errors:
            raise join_errors(errors.values(), NOTHING_STARTED)
        read = {name: (size, sha256) for name, size, _mtime_ns, sha256 in answers[host][0]["files"] if sha256}
        if read.keys() != set(names):
            raise JobError(f"checkpoint {escape(path)} on {host} changes while it is read; end what writes to it")
        for name in names:
            goes_to = os.path.join(target, name) if is_folder else target
            source = os.path.join(replies[host]["top"], name)
            file = files.setdefault(name, Checkpoint(host, goes_to, -1, *read[name], source=source))
            if file.sha256 != read[name][1]:
                others.add(host)
    size = sum(file.bytes for file in files.values())
    hosts = list(dict.fromkeys(file.host for file in files.values()))
    if others:
        notes = [*notes, f"other files of these names on {join_names(sorted(others))} were passed over"]
    description = f"{pluralize(len(files), 'file')}, {format_bytes(size)}, from {join_names(hosts)}"
    return NamedCheckpoint(target, tuple(files.values()), description, tuple(notes))


def _from_here(path: Path, notes: Sequence[str]) -> NamedCheckpoint:
    target = os.path.join(FOLDER, path.resolve().name)
    try:
        found = list(_files_here(path)) if path.is_dir() else [(path, target)]
        files = tuple(
            Checkpoint(HERE, name, -1, file.stat().st_size, _sha256(file), source=str(file.resolve()))
            for file, name in found
        )
    except OSError as error:
        raise JobError(f"checkpoint {path} cannot be read: {error.strerror}: {error.filename}") from None
    size = sum(file.bytes for file in files)
    description = f"{pluralize(len(files), 'file')}, {format_bytes(size)}, from {path.resolve()} on {HERE}"
    return NamedCheckpoint(target, files, description, tuple(notes))


def _files_here(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a folder, and where they go; as on a node, links are followed.

    Raises:
        OSError: something in it cannot be looked at.
    """
    found = list(itertools.islice(_walked(path), MOST_NAMED_FILES + 1))
    if len(found) > MOST_NAMED_FILES:
        raise JobError(
            f"checkpoint {path} has more than {MOST_NAMED_FILES} files, and a checkpoint may not; name the folder of "
            "one"
        )
    for file in sorted(found):
        yield file, os.path.join(FOLDER, path.resolve().name, str(file.relative_to(path)))


def _walked(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        mode = entry.stat().st_mode  # is_dir and is_file are False of what cannot be looked at
        if stat.S_ISDIR(mode):
            if any(entry.samefile(above) for above in entry.absolute().parents):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(entry))
            yield from _walked(entry)
        elif stat.S_ISREG(mode):
            yield entry


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
