# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch the files that a job wrote, in bounded pieces."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes, join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError, Refused
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

BATCH_BYTES = 8 * 2**20
"""The most that one reply carries; also what the controller holds in memory for a node."""
NODES_AT_ONCE = 8
"""How many nodes are read from at the same time."""
PAGE_FILES = 2000
"""The most files that a reply lists."""
MOST_FILES = 10_000_000
"""A node that lists more than this does not come to an end."""
REMEMBERED_FILES = 10_000
"""Of a node that has more to fetch than this, the list is asked for once more instead of kept."""
RETRY_SECONDS = 1
"""How long to wait before a node that was unreachable is asked again."""
LOST_SECONDS = 5
"""How long a node that was lost is given to show that it is back, as after a reboot."""
ROUNDS = 3
"""How often a file is tried that changes while it is read."""
OBSTACLES = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EPERM)
"""Errors that concern a place in artifacts/, not the disk."""
NO_LIMIT_SECONDS = 10**7
"""For what is bounded per request, not as a whole."""


@dataclass(frozen=True)
class File:
    """A file as a node lists it: path below its working directory, bytes, modification time (ns since 1970)."""

    name: str
    size: int
    mtime_ns: int


Part = tuple[File, int, int]
"""A file, an offset and a length in bytes."""


class Source:
    """One node that is read from. What it does not answer is asked again, within the time-out."""

    def __init__(self, gang: Gang, host: str, timeout_seconds: float) -> None:
        self.host = host
        self._gang = gang
        self._timeout = timeout_seconds
        self._bytes = 2**20
        self.cores: dict[str, None] = {}  # core dumps that were passed over, as far as they are known

    @property
    def batch_bytes(self) -> int:
        """How much to ask for at once: through a thin line little, or no piece would arrive within the time-out."""
        return self._bytes

    def ask(self, op: str, **more: Any) -> tuple[dict[str, Any], bytes]:
        """Return the node's answer.

        Raises:
            NodeError: it refuses, or gave no valid answer for as long as the time-out.
        """
        began = time.monotonic()
        while True:
            asked = time.monotonic()
            replies, errors = self._gang.ask(op, self._timeout, hosts=[self.host], **more)
            now = time.monotonic()
            if self.host in replies:
                if now - asked < 1:
                    self._bytes = min(2 * self._bytes, BATCH_BYTES)
                elif now - asked > 4:
                    self._bytes = max(self._bytes // 2, 2**16)
                return replies[self.host]
            if isinstance(errors[self.host], Refused) or now - began >= self._timeout:
                raise errors[self.host]
            time.sleep(RETRY_SECONDS)

    def files(self) -> Iterator[File]:
        """Yield what the job wrote on this node, asked for page by page."""
        after, more, listed_files = "", True, 0
        while more:
            if listed_files > MOST_FILES:
                raise NodeError(self.host, f"lists more than {MOST_FILES} files")
            reply, data = self.ask("list_artifacts", after=after, most=PAGE_FILES)
            self.cores.update(dict.fromkeys(reply["cores"]))
            fields = data.split(b"\0")
            listed_files += len(fields) // 3
            for name, size, mtime_ns in zip(fields[0::3], fields[1::3], fields[2::3], strict=False):
                after = os.fsdecode(name)
                yield File(after, int(size), int(mtime_ns))
            more = reply["more"] and bool(data)


class Store:
    """Where a node's files go. No name that a node makes up, and no link, leads out of the job's folder.

    A file that is not complete lies in the record's folder ``incomplete/``, with the modification time of what it is
    to become: so a later transfer knows whether it can go on, and never joins the parts of two versions.
    """

    def __init__(self, record: Record, folder: str) -> None:
        """Make nothing yet.

        Args:
            record: the job's folder.
            folder: below artifacts/, with a slash at its end; "" for artifacts/ itself.
        """
        self._record = record
        self._folder = folder
        self._incomplete = record.path / "incomplete"

    def allows(self, file: File) -> bool:
        """Whether the name stays in the folder."""
        return self._record.artifact_path(self._folder + file.name) is not None

    def missing(self, file: File) -> int:
        """Return how many bytes are still to be fetched."""
        return 0 if self.has(file) else file.size - self.begun(file)

    def has(self, file: File) -> bool:
        """Whether the file has arrived in this version."""
        with contextlib.suppress(OSError), self._opened(file, make=False) as (folder, name):
            entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
            is_regular = entry.st_mode & 0o170000 == 0o100000
            return is_regular and (entry.st_size, entry.st_mtime_ns) == (file.size, file.mtime_ns)
        return False

    def begun(self, file: File) -> int:
        """Return how many bytes of this version have arrived, the file being incomplete."""
        with contextlib.suppress(OSError):
            entry = os.lstat(self._part(file))
            if entry.st_mtime_ns == file.mtime_ns and entry.st_size < file.size:
                return entry.st_size
        return 0

    def write(self, part: Part, data: bytes) -> None:
        """Write a piece, and put the file in its place with the last."""
        file, offset, length = part
        path = self._part(file)
        path.parent.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (0 if offset else os.O_TRUNC)
        descriptor = os.open(path, flags, 0o644)
        try:
            written = 0
            while written < length:
                written += os.pwrite(descriptor, data[written:], offset + written)
        except OSError:  # a full disk; what had arrived before is kept
            os.ftruncate(descriptor, offset)
            raise
        finally:
            os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
            os.close(descriptor)
        if offset + length == file.size:
            with self._opened(file, make=True) as (folder, name):
                os.rename(path, name, dst_dir_fd=folder)

    def drop(self, file: File) -> None:
        """Forget what has arrived of a file that has changed."""
        self._part(file).unlink(missing_ok=True)

    def _part(self, file: File) -> Path:
        digest = hashlib.sha256(os.fsencode(self._folder + file.name)).hexdigest()
        return self._incomplete / f"{digest[:32]}.part"  # a name of full length has no room for a suffix

    @contextlib.contextmanager
    def _opened(self, file: File, make: bool) -> Iterator[tuple[int, str]]:
        """Give a descriptor of the folder that the file belongs in, and the file's name; no link is followed."""
        *folders, name = (self._folder + file.name).split("/")
        folder = os.open(self._record.path / "artifacts", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for below in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(below, dir_fd=folder)
                descriptor = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = descriptor
            yield folder, name
        finally:
            os.close(folder)


class Transfer:
    """What one node wrote, on its way."""

    def __init__(self, source: Source, store: Store) -> None:
        """Ask for nothing yet."""
        self._source = source
        self._store = store
        self._wanted: list[File] | None = None
        self._refused: list[str] = []
        self._obstructed: set[str] = set()

    def measure(self) -> int:
        """Return how many bytes are still to be fetched.

        Raises:
            NodeError: the node could not be read.
        """
        wanted: list[File] | None = []
        total = 0
        for file in self._source.files():
            if not self._store.allows(file):
                self._refused.append(file.name)
            elif not self._store.has(file):
                total += self._store.missing(file)
                if wanted is not None:
                    wanted.append(file)
                    wanted = wanted if len(wanted) <= REMEMBERED_FILES else None
        self._wanted = wanted
        return total

    def fetch(self) -> list[str]:
        """Fetch it; return what the user should know about single files.

        Raises:
            NodeError: the node could not be read.
            OSError: the controller could not write.
        """
        for _round in range(ROUNDS):
            changed = self._fetch_once()
            self._wanted = None
            if not changed:
                break
        failed = {
            "their names would leave the folder": self._refused,
            "something else lies in their place": sorted(self._obstructed),
            "they change while they are read": sorted(changed),
            "they are core dumps, which stay in the job's work directory there": list(self._source.cores),
        }
        host = self._source.host
        return [
            f"not collected from {host}, because {why}: {join_names(names)}" for why, names in failed.items() if names
        ]

    def _fetch_once(self) -> set[str]:
        """Fetch what is missing; return the names of files that changed meanwhile."""
        changed: set[str] = set()
        files = self._source.files() if self._wanted is None else self._wanted
        wanted = (
            (file, self._store.begun(file))
            for file in files
            if self._store.allows(file) and file.name not in self._obstructed and not self._store.has(file)
        )
        for batch in batches(wanted, self._source, changed):
            parts = [(file.name, offset, length) for file, offset, length in batch]
            reply, data = self._source.ask("read_files", parts=parts)
            position = 0
            for part, (length, size, mtime_ns) in zip(batch, reply["parts"], strict=True):
                file = part[0]
                if (length, size, mtime_ns) != (part[2], file.size, file.mtime_ns):
                    changed.add(file.name)
                    self._store.drop(file)
                elif file.name not in changed:
                    self._write(part, data[position : position + length])
                position += length
        return changed

    def _write(self, part: Part, data: bytes) -> None:
        try:
            self._store.write(part, data)
        except OSError as error:
            if error.errno not in OBSTACLES:
                raise
            self._obstructed.add(part[0].name)
            self._store.drop(part[0])


def batches(files: Iterable[tuple[File, int]], source: Source, given_up: Collection[str] = ()) -> Iterator[list[Part]]:
    """Yield lists of parts, each of at most ``source.batch_bytes`` bytes and 1,000 parts, that cover ``files``.

    Args:
        files: and the offset from which on each is wanted; asked for only as far as needed.
        source: says for each batch again how large it may be.
        given_up: names of files of which no more is wanted; may grow meanwhile.
    """
    batch: list[Part] = []
    room = source.batch_bytes
    for file, begun in files:
        offset = begun
        while file.name not in given_up:
            length = min(file.size - offset, room)
            batch.append((file, offset, length))
            offset += length
            room -= length
            if room == 0 or len(batch) == 1000:
                yield batch
                batch, room = [], source.batch_bytes
            if offset >= file.size:
                break
    if batch:
        yield batch


def collect(
    gang: Gang, which: str, record: Record, node_timeout_seconds: float, lost: Collection[str] = ()
) -> list[str]:
    """Bring what the job wrote to ``runs/<id>/artifacts/``; called again, it goes on where it ended.

    Args:
        gang: the job's nodes; asked from several threads.
        which: ``head`` (rank 0, right below artifacts/), ``all`` (each into artifacts/rank<k>-<host>/, or
            spare-<host>/) or ``none``.
        record: the job's folder, which is there.
        node_timeout_seconds: a node that is unreachable for this long is given up.
        lost: hosts that did not answer any more and are not waited for; one that is back is collected from.

    Returns:
        What the user should know, a sentence each; empty if all is there.
    """
    chosen = {"head": gang.topology.nodes[:1], "all": gang.topology.nodes, "none": []}[which]
    remedy = f"run: ansible-playbook logs.yml -e job={gang.job_id}"
    (record.path / "artifacts").mkdir(exist_ok=True)

    def incomplete(node: Node, error: Exception) -> str:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        return f"what {node.name} wrote is not complete here: {why}; it is in the job's work directory there; {remedy}"

    def transfer_from(node: Node) -> Transfer:
        seconds = min(node_timeout_seconds, LOST_SECONDS) if node.host in lost else node_timeout_seconds
        folder = f"{node.file_stem}/" if which == "all" else ""
        return Transfer(Source(gang, node.host, seconds), Store(record, folder))

    nodes = {node.host: node for node in chosen}
    transfers = {host: transfer_from(node) for host, node in nodes.items()}
    places = threading.Semaphore(NODES_AT_ONCE)

    def measure(transfer: Transfer) -> int:
        with places:
            return transfer.measure()

    def fetch(transfer: Transfer) -> list[str] | OSError:
        with places:
            try:
                return transfer.fetch()
            except OSError as error:
                return error

    sizes, errors = fan_out(transfers, measure, NO_LIMIT_SECONDS)
    needed, free = sum(sizes.values()), shutil.disk_usage(record.path).free
    if needed > free:
        lack = f"artifacts ({format_bytes(needed)}) do not fit into {record.path} ({format_bytes(free)} free)"
        return [f"{lack}; free some space there; {remedy} again"]
    fetched, more_errors = fan_out({host: transfers[host] for host in sizes}, fetch, NO_LIMIT_SECONDS)
    notes: list[str] = []
    for host, node in nodes.items():
        result = {**fetched, **errors, **more_errors}[host]
        notes += result if isinstance(result, list) else [incomplete(node, result)]
    with contextlib.suppress(OSError):
        (record.path / "incomplete").rmdir()
    return notes
