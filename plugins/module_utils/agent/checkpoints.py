# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Checkpoints: which a job has left here, whether one is whole, and one put in place for the next job.

A checkpoint is what torch.save writes: a zip file with its parts stored uncompressed, among them ``<root>/data.pkl``.
torch 2.13 writes each part's CRC-32 (unless torch.serialization.set_crc32_options(False) was called, when all are 0),
but torch.load does not check it: it loads a damaged checkpoint without a word.
"""

from __future__ import annotations

import errno
import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.collecting import (
    PLACED_MTIME,
    folder_of,
    open_file,
    walk,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    BUNDLE_MTIME,
    GOING_ON,
    Holder,
    as_owner,
    open_regular,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import (
    LARGEST,
    LONGEST_REPLY,
    encodable,
    is_encodable,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import check_space
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import (
    ANSWER_SECONDS,
    Refusal,
    allow,
    operation,
    suppress,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.records import job_state

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Iterator
    from typing import IO, Any, BinaryIO
    from zipfile import ZipFile

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request

MOST_LISTED = 1000
"""Of more checkpoints than this only the latest are looked at: they have the highest steps."""
MOST_PICKLE_BYTES = 2**26
"""A data.pkl holds no tensors, only what they are called: kilobytes, and of the largest models megabytes."""
BLOCK_BYTES = 2**23
ASIDE = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME")
"""What may stand between a key and its value in a pickle."""


class Unfit(Exception):
    """Why a file is no complete checkpoint: a verb phrase."""


@operation
def checkpoints(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List the checkpoints that the ended job has left below ``work/``; what came with the code is none.

    One that is cut short is refused; to read one whole takes long, and is for ``verify``. Reply: found, ``[[path
    relative to work, step, bytes, mtime]]``; refused, ``[[path, why]]``.
    """
    holder = Holder(request)
    job_dir = as_owner(request)
    if job_state(job_dir, holder)["state"] in GOING_ON:
        name = request["job"]["id"]
        remedy = f"wait for it, or end it with: ansible-playbook stop.yml -e job={name}"
        raise Refusal(f"runs job {name} still; {remedy}", running=True)
    work = os.path.join(job_dir, "work")
    files: list[tuple[float, str]] = []
    sharded: dict[str, str] = {}
    for path, entry in walk(work):  # a link's target is found by itself; so ModelCheckpoint(save_last="link") is served
        *folders, name = path.split("/")
        depth = next((depth for depth, folder in enumerate(folders, 1) if folder.endswith(".ckpt")), 0)
        if depth:
            sharded[encodable("/".join(folders[:depth]))] = (
                "is a folder: a sharded checkpoint, of which each node has a part only"
            )
        elif name.endswith(".ckpt") and int(entry.st_mtime) != BUNDLE_MTIME:
            files.append((entry.st_mtime, path))
    refused = list(sharded.items())
    found = []
    for mtime, path in sorted(files, reverse=True)[:MOST_LISTED]:
        if not is_encodable(path):
            refused.append((encodable(path), "has a name that is not UTF-8; rename it"))
            continue
        try:
            with open(open_file(work, path), "rb") as file:
                found.append((path, find_step(open_archive(file)), os.fstat(file.fileno()).st_size, mtime))
        except Unfit as why:
            refused.append((path, str(why)))
        except OSError as error:
            refused.append((path, f"cannot be read: {error.strerror}"))
    return {"found": first_of(found), "refused": first_of(refused)}, b""


def first_of(rows: list[Any]) -> list[Any]:
    """Return the first rows, as many as a reply has room for."""
    room = LONGEST_REPLY // 3
    for number, row in enumerate(rows):
        room -= len(ascii(row))
        if room < 0:
            return rows[:number]
    return rows


def open_archive(file: BinaryIO) -> ZipFile:
    """Return the checkpoint's parts.

    Raises:
        Unfit: it is cut short, in another format, or without checksums.
    """
    import zipfile

    if file.read(4) != b"PK\3\4":
        raise Unfit("is not in torch's zip format" if os.fstat(file.fileno()).st_size else "is empty")
    try:
        archive = zipfile.ZipFile(file)  # reads the central directory, which is the file's end
    except Exception:  # of a file that anybody may have written, whatever the module says
        raise Unfit("is truncated") from None
    parts = archive.infolist()
    stored = all(part.compress_type == zipfile.ZIP_STORED and not part.flag_bits & 1 for part in parts)
    # Together no larger than the file, or a small one could keep a node busy for hours.
    if not stored or sum(part.file_size for part in parts) > os.fstat(file.fileno()).st_size:
        raise Unfit("is not in torch's zip format")
    if not any(part.CRC for part in parts) and any(part.file_size for part in parts):
        raise Unfit("has no checksums: torch.serialization.set_crc32_options(False) left them out")
    return archive


def find_step(archive: ZipFile) -> int:
    """Return the checkpoint's global step. It is not unpickled: that would run whatever code it names.

    Raises:
        Unfit: there is none, or nothing that a training could go on from.
    """
    names = [part.filename for part in archive.infolist() if part.filename.count("/") == 1]
    name = next((name for name in names if name.endswith("/data.pkl")), None)
    if name is None:
        raise Unfit("is not in torch's zip format")
    if archive.getinfo(name).file_size > MOST_PICKLE_BYTES:
        raise Unfit("has a data.pkl larger than any of Lightning's")
    try:
        pickle = archive.read(name)
    except Exception:
        raise Unfit("has a damaged part data.pkl") from None
    step = step_in(pickle)
    if step is None:
        raise Unfit("has no global_step: not Lightning's")
    if b"pytorch-lightning_version" in pickle and b"optimizer_states" not in pickle:
        raise Unfit("has weights only (save_weights_only), from which no training can go on")
    return step


def step_in(pickle: bytes) -> int | None:
    """Return the whole number that follows the first ``global_step`` in a pickle, or None."""
    import pickletools

    is_next = False
    with suppress(Exception):  # a damaged one
        for opcode, argument, _position in pickletools.genops(pickle):
            if is_next and opcode.name not in ASIDE:
                return argument if isinstance(argument, int) and 0 <= argument <= LARGEST else None
            is_next = is_next or argument == "global_step"
    return None


@operation
def verify(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Read a checkpoint whole. Request: path. Reply: why it is not complete, or ""; then also its bytes and sha256."""
    with open(open_file(os.path.join(as_owner(request), "work"), request["path"]), "rb") as file:
        try:
            archive = open_archive(file)
            find_step(archive)
            check_parts(archive)
        except Unfit as why:
            return {"why": str(why)}, b""
        file.seek(0)
        return {"why": "", "bytes": os.fstat(file.fileno()).st_size, "sha256": digest(file)}, b""


def check_parts(archive: ZipFile) -> None:
    """Read all parts.

    Raises:
        Unfit: one differs from what was written; the first is named.
    """
    for part in archive.infolist():
        try:
            with archive.open(part) as content:
                for _block in blocks(content):  # at its end it compares the checksum
                    pass
        except Exception:
            raise Unfit(f"has a damaged part {part.filename.partition('/')[2] or part.filename}") from None


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of a file, which may take as long as it goes on."""
    while True:
        block = file.read(BLOCK_BYTES)
        if not block:
            return
        allow(ANSWER_SECONDS)
        yield block


def digest(file: BinaryIO, touched: str = "") -> str:
    """Return the SHA-256 of the rest of a file; a folder ``touched`` shows meanwhile that work is going on."""
    import hashlib

    so_far = hashlib.sha256()
    for block in blocks(file):
        so_far.update(block)
        if touched:
            os.utime(touched)
    return so_far.hexdigest()


@operation
def place(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Put a file into the prepared job's ``work/``, in pieces; one that comes twice does no harm.

    Request: path (below work/), total (bytes), sha256, and either offset (the payload's) or from_job (a job that may
    have the file at the same path). Reply: placed, whether it is there now, whole.
    """
    job_dir = as_owner(request)
    path, total = request["path"], request["total"]
    if os.path.exists(os.path.join(job_dir, "state.json")):
        raise Refusal(f"has started job {request['job']['id']} already; report this")
    os.utime(job_dir)  # now and below: so that its supervisor sees that the controller has not vanished
    work = os.path.join(job_dir, "work")
    try:
        with folder_of(work, path, make=True) as (folder, name):
            part = f".{request['sha256']}.part"
            from_job = request.get("from_job")
            if from_job:
                source = os.path.join(os.path.dirname(job_dir), from_job, "work")
                whole = copy_part(source, path, total, folder, part, job_dir)
            else:
                if request["offset"] == 0:
                    check_space(work, total)
                written = write_part(request["offset"], payload, total, folder, part)
                if written is None:  # an answer was lost on the way, and this is the last piece once more
                    return {"placed": same(request["sha256"], folder, name, job_dir)}, b""
                whole = written
            if whole and not same(request["sha256"], folder, part, job_dir):
                os.unlink(part, dir_fd=folder)
                if not from_job:
                    raise Refusal("received a checkpoint that does not match its SHA-256; run the playbook again")
                whole = False
            if whole:
                os.utime(part, (PLACED_MTIME, PLACED_MTIME), dir_fd=folder)
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
            raise
        raise Refusal(f"has something else of the code where {path!a} belongs; rename that in the project") from None
    return {"placed": whole}, b""


def copy_part(source: str, path: str, total: int, folder: int, part: str, touched: str) -> bool:
    """Copy the file ``path`` below ``source`` to ``part``; return False if there is none of that size."""
    try:
        found = open_file(source, path)
    except OSError:
        return False
    with open(found, "rb") as original:
        if os.fstat(found).st_size != total:
            return False
        check_space(source, total)
        with open(create(folder, part), "wb") as copy:
            for block in blocks(original):
                copy.write(block)
                os.utime(touched)
    return True


def write_part(offset: int, piece: bytes, total: int, folder: int, part: str) -> bool | None:
    """Write a piece; return whether it was the last, or None if it was and the whole has been taken away since.

    Raises:
        Refusal: the pieces before it are not there.
    """
    is_last = offset + len(piece) == total
    try:
        descriptor = open_regular(part, folder, os.O_WRONLY) if offset else create(folder, part)
    except FileNotFoundError:
        if is_last:
            return None
        raise
    with open(descriptor, "wb") as file:
        if os.fstat(descriptor).st_size < offset:
            raise Refusal("lost a part of the checkpoint; run the playbook again")
        file.seek(offset)
        file.write(piece)
    return is_last


def create(folder: int, name: str) -> int:
    """Make an empty file, whatever was there."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)


def same(sha256: str, folder: int, name: str, touched: str) -> bool:
    """Return whether a file is there and has this SHA-256."""
    try:
        with open(open_regular(name, folder), "rb") as file:
            return digest(file, touched) == sha256
    except FileNotFoundError:
        return False
