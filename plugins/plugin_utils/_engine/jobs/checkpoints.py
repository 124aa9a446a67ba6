# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a job's newest checkpoint, bring it to the controller, and put it on all nodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import (
    escape,
    format_bytes,
    join_names,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang, Replies
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError, join_errors
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.artifacts import (
    BATCH_BYTES,
    RETRY_SECONDS,
    Source,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)

LIST_SECONDS = 60
"""What looking at all checkpoints of a node may take."""
SLOWEST_DISK = 20e6
"""Bytes per second at which even a bad disk is read; the time-outs of what reads a whole checkpoint follow from it."""
FIRST_BYTES = 2**20
"""How much is sent first; then as much as the line takes."""
MOST_NOTES = 5
"""Of more refused checkpoints than this, or of other libraries', only the first are named."""
NOTHING_STARTED = "Nothing was started on any node."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on a node, or one file of it.

    Attributes:
        host: where it lies.
        path: relative to the job's working directory.
        step: the global step.
        bytes: its size.
        sha256: of its content, once all of it was read; "" before.
        notes: what was passed over on the way to it, a sentence each.
        source: its absolute path on the node, if it lies outside the job's working directory.
    """

    host: str
    path: str
    step: int
    bytes: int
    sha256: str = ""
    notes: tuple[str, ...] = ()
    source: str = ""


def newest(listings: Mapping[str, Mapping[str, Any]]) -> Checkpoint | None:
    """Return the checkpoint to go on from, or None.

    The highest step wins; of equal ones ``last.ckpt``, then the first host, then the latest modification time.

    Args:
        listings: what the operation ``list_checkpoints`` answered, by host in rank order.
    """
    ranked = [
        ((step, os.path.basename(path) == "last.ckpt", -rank, mtime), Checkpoint(host, path, step, size))
        for rank, (host, reply) in enumerate(listings.items())
        for path, step, size, mtime in reply["found"]
    ]
    if not ranked:
        return None
    _key, best = max(ranked, key=lambda pair: pair[0])
    return dataclasses.replace(best, notes=tuple(_refused(listings)))


def _refused(listings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = [f"{path} on {host} {why}" for host, reply in listings.items() for path, why in reply["refused"]]
    more = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], f"{more} more were refused"] if more > 0 else notes


def _unknown(error: NodeError) -> str:
    return f"{error}; what it has is not known" if isinstance(error, Unreachable) else str(error)


def _none(gang: Gang, listings: Mapping[str, Mapping[str, Any]], unasked: Iterable[str]) -> JobError:
    """Return the error that no checkpoint was found, with the files that are there instead, and the remedy."""
    others: dict[tuple[str, str], list[str]] = {}
    for host, reply in listings.items():
        for path, what in reply["others"]:
            others.setdefault((path, what), []).append(host)
    seen = [f"{escape(path)} on {join_names(hosts)} ({escape(what)})" for (path, what), hosts in others.items()]
    passed = "; ".join(["", *map(escape, _refused(listings)), *unasked])
    not_found = (
        f"no checkpoint was found in the folder of job {gang.job_id} that resume takes by itself, which is a complete "
        f"one of Lightning's, a file *.ckpt with a global_step{passed}"
    )
    taken = "and the script finds it in CKPT_PATH, or run the script again, without resume"
    if not seen:
        return JobError(
            f"{not_found}; if it wrote one elsewhere or of another kind, name it with -e checkpoint=PATH, {taken}"
        )
    path = next(iter(others))[0]
    is_plain = shlex.quote(path) == path
    option = f"checkpoint={path}" if is_plain else shlex.quote(json.dumps({"checkpoint": path}))
    example = f"-e resume={gang.job_id} -e {option}"
    return JobError(
        f"{not_found}; there is {join_names(seen, MOST_NOTES)}; name the one to go on from, as in: {example}, {taken}"
    )


def find(gang: Gang, timeout_seconds: float = 30) -> Checkpoint:
    """Return the newest complete checkpoint of an ended job.

    Each node lists its own; all of the newest is then read where it lies, and if it is damaged, the next.

    Args:
        gang: the ended job's nodes.
        timeout_seconds: a node that is unreachable for this long is given up.

    Raises:
        JobError: there is none; the sentence says what was passed over and why.
    """
    replies, errors = _ask(gang, "list_checkpoints", gang.settings, max(LIST_SECONDS, timeout_seconds), timeout_seconds)
    listings = {host: {**reply, "refused": list(reply["refused"])} for host, (reply, _payload) in replies.items()}
    if any("running" in error.facts for error in errors.values()):
        raise join_errors(errors.values(), NOTHING_STARTED)
    unasked = list(map(_unknown, errors.values()))
    while True:
        best = newest(listings)
        if best is None:
            raise _none(gang, listings, unasked)
        listing = listings[best.host]
        try:
            seconds = timeout_seconds + best.bytes / SLOWEST_DISK
            reply, _payload = Source(gang, best.host, seconds).ask("verify_checkpoint", path=best.path)
        except NodeError as error:
            unasked.append(_unknown(error))
            del listings[best.host]
            continue
        if not reply["why"]:
            notes = [escape(note) for note in (*best.notes, *unasked)]
            return dataclasses.replace(best, bytes=reply["bytes"], sha256=reply["sha256"], notes=tuple(notes))
        listing["refused"].append((best.path, reply["why"]))
        listing["found"] = [found for found in listing["found"] if found[0] != best.path]


def fetch(gang: Gang, checkpoint: Checkpoint, target: Path, timeout_seconds: float = 30) -> Path:
    """Bring a checkpoint to the controller.

    What an interrupted transfer has left beside the target (``.part``) is gone on from, and a target that is there
    already is taken as it is; either only if the SHA-256 is right.

    Args:
        gang: the nodes of the job that wrote it.
        checkpoint: from ``find``.
        target: the file to be made; its folder too.
        timeout_seconds: a node that is unreachable for this long is given up.

    Returns:
        The target.

    Raises:
        JobError: the node became unreachable, the disk is too small, or the file changed.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if _has(target, checkpoint):
            return target
        for _try in ("going on from what is there", "from the beginning"):
            if _fetch_once(Source(gang, checkpoint.host, timeout_seconds), checkpoint, part):
                part.replace(target)
                return target
            part.unlink()
    except NodeError as error:
        raise join_errors(
            [error], f"{NOTHING_STARTED} Run it again, and the transfer goes on where it ended."
        ) from None
    except OSError as error:
        raise JobError(
            f"checkpoint {escape(checkpoint.path)} cannot be written: {error}; free some space, or set job_runs_dir"
        ) from None
    raise JobError(
        f"checkpoint {escape(checkpoint.path)} on {checkpoint.host} changes while it is read; end what writes to it, "
        "and run this again"
    )


def _has(target: Path, checkpoint: Checkpoint) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != checkpoint.bytes:
        return False
    with open(target, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == checkpoint.sha256


def _fetch_once(source: Source, checkpoint: Checkpoint, part: Path) -> bool:
    """Return whether what has arrived is what was asked for."""
    with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        digest = hashlib.file_digest(file, "sha256")
        offset = file.tell()
        needed, free = checkpoint.bytes - offset, shutil.disk_usage(part.parent).free
        if needed > free:
            raise JobError(
                f"checkpoint {escape(checkpoint.path)} ({format_bytes(checkpoint.bytes)}) does not fit into "
                f"{part.parent} ({format_bytes(free)} free); free some space there, or set job_runs_dir"
            )
        top, name = os.path.split(checkpoint.source)
        where = {"top": top} if top else {}
        while offset < checkpoint.bytes:
            length = min(source.batch_bytes, checkpoint.bytes - offset)
            _reply, data = source.ask("read_files", parts=[(name or checkpoint.path, offset, length)], **where)
            if len(data) != length:
                return False
            file.write(data)
            digest.update(data)
            offset += length
    return digest.hexdigest() == checkpoint.sha256


def distribute(
    gang: Gang, file: Path | None, checkpoint: Checkpoint, from_job: str, timeout_seconds: float = 30
) -> None:
    """Put a checkpoint into the working directory of a prepared job on every node, at the path that it has.

    Args:
        gang: the prepared job's nodes.
        file: the checkpoint on the controller; None if every node is known to have it.
        checkpoint: from ``find``.
        from_job: id of the job that wrote it: a node that has it still copies it, and is sent nothing, as is one that
            has it where it was found (``checkpoint.source``). "" if there is none.
        timeout_seconds: a node that is unreachable for this long is given up.

    Raises:
        JobError: names every node that does not have it now, with its reason.
    """
    about = {"path": checkpoint.path, "total": checkpoint.bytes, "sha256": checkpoint.sha256}
    reading_seconds = timeout_seconds + checkpoint.bytes / SLOWEST_DISK
    here = {"from_path": checkpoint.source} if checkpoint.source else {"from_job": from_job}
    placed = dict.fromkeys(gang.settings, False)
    if any(here.values()):
        placed = _place(gang, gang.settings, reading_seconds, timeout_seconds, **here, **about)
    missing = [host for host in gang.settings if not placed[host]]
    if missing and file is None:
        raise join_errors([NodeError(host, "does not have the checkpoint") for host in missing], NOTHING_STARTED)
    if not missing or file is None:
        return
    with open(file, "rb") as content:
        offset, length, is_last = 0, FIRST_BYTES, False
        while not is_last:
            piece = content.read(length)
            if not piece and checkpoint.bytes:
                raise JobError(f"checkpoint {file} was cut short meanwhile; run the playbook again")
            is_last = offset + len(piece) == checkpoint.bytes
            began = time.monotonic()
            seconds = reading_seconds if is_last else timeout_seconds
            placed = _place(gang, missing, seconds, timeout_seconds, payload=piece, offset=offset, **about)
            took = time.monotonic() - began
            length = min(2 * length, BATCH_BYTES) if took < 1 else max(length // 2, 2**16) if took > 4 else length
            offset += len(piece)
    lost = [NodeError(host, "lost the checkpoint that it was sent") for host in missing if not placed[host]]
    if lost:
        raise join_errors(lost, f"{NOTHING_STARTED} Run the playbook again.")


def _place(
    gang: Gang, hosts: Iterable[str], answer_seconds: float, timeout_seconds: float, **more: Any
) -> dict[str, bool]:
    replies, errors = _ask(gang, "place_file", hosts, answer_seconds, timeout_seconds, **more)
    if errors:
        raise join_errors(errors.values(), NOTHING_STARTED)
    return {host: reply["placed"] for host, (reply, _payload) in replies.items()}


def _ask(
    gang: Gang, op: str, hosts: Iterable[str], answer_seconds: float, timeout_seconds: float, **more: Any
) -> tuple[Replies, dict[str, NodeError]]:
    """Ask nodes; those that are unreachable are asked again for ``timeout_seconds``.

    An answer may take ``answer_seconds``.
    """
    found: Replies = {}
    refusals: dict[str, NodeError] = {}
    began = time.monotonic()
    left = list(hosts)
    while True:
        replies, errors = gang.ask(op, answer_seconds, hosts=left, **more)
        found.update(replies)
        left = [host for host, error in errors.items() if isinstance(error, Unreachable)]
        refusals.update({host: error for host, error in errors.items() if host not in left})
        if not left or time.monotonic() - began >= timeout_seconds:
            failed = {**refusals, **errors}
            in_order = {host: found[host] for host in hosts if host in found}
            return in_order, {host: failed[host] for host in hosts if host in failed}
        time.sleep(RETRY_SECONDS)
