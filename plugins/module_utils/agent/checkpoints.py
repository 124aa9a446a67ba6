# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Checkpoints: which a job has left here, whether one is whole, and one put in place for the next job.

Lightning's is what torch.save writes: a zip file with its parts stored uncompressed, among them ``<root>/data.pkl``.
torch 2.13 writes each part's CRC-32 (unless torch.serialization.set_crc32_options(False) was called, when all are 0),
but torch.load does not check it: it loads a damaged checkpoint without a word. Other libraries' checkpoints, files or
folders, are seen, and taken if the user names them.
"""

from __future__ import annotations

import errno
import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.collecting import (
    PLACED_MTIME,
    folder_of,
    open_file,
    open_named,
    walk,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import (
    BUNDLE_MTIME,
    GOING_ON,
    Holder,
    as_owner,
    log_path,
    open_own,
    open_regular,
    read_json,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import (
    LARGEST,
    LONGEST_REPLY,
    encodable,
    is_encodable,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import User, account_name, check_space
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import (
    ANSWER_SECONDS,
    Refusal,
    allow,
    operation,
    said,
    suppress,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.records import job_state

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable, Iterator
    from typing import IO, Any, BinaryIO
    from zipfile import ZipFile

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Reply, Request

MOST_LISTED = 1000
"""Of more checkpoints than this only the latest are looked at: they have the highest steps."""
MOST_OTHERS = 10
"""Of other libraries' checkpoints only so many are named, the latest."""
MOST_NAMED_FILES = 2000
"""A folder with more files than this is no checkpoint, but holds several, or data."""
MOST_LOOKED_AT = 20_000
"""Files of a folder outside the job's own that are looked at."""
SYSTEM = ("/usr", "/etc", "/proc", "/sys", "/dev", "/bin", "/lib", "/boot")
"""Folders in which no job leaves checkpoints."""
MOST_TEXT_BYTES = 2**20
"""Of what the job was told, what its code says and what it printed, each, so much is searched for paths."""
TOLD_IN = (".py", ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".sh")
"""Files of the code that may say where checkpoints go."""
SHARDED = "is a folder: a sharded checkpoint, of which each node has a part only"
NO_STEP = "has no global_step: not Lightning's"
WEIGHTS_ONLY = "has weights only (save_weights_only), from which no training can go on"
LOOSE = (".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
"""How files are called that torch.save and safetensors write."""
MARKS = {
    "trainer_state.json": "a checkpoint of Transformers' Trainer",
    ".metadata": "a checkpoint of torch.distributed.checkpoint",
    ".distcp": "a checkpoint of torch.distributed.checkpoint",
    "_model_states.pt": "a checkpoint of DeepSpeed",
    "random_states_0.pkl": "a checkpoint of Accelerate",
}
"""What a folder is in which a file has such a name, or one that ends so."""
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
    relative to work, step, bytes, mtime]]``; refused, ``[[path, why]]``; others, which are not Lightning's or lie
    elsewhere, the latest first, ``[[path relative to work or absolute, what it is]]``.
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
            sharded[encodable("/".join(folders[:depth]))] = SHARDED
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
    others = {**others_below(work, ""), **({} if found else others_elsewhere(request, job_dir))}
    broken = {path for path, why in refused if why not in (SHARDED, NO_STEP, WEIGHTS_ONLY)}
    latest = sorted(others.keys() - broken, key=others.__getitem__, reverse=True)[:MOST_OTHERS]
    kinds = [(path, others[path][1]) for path in latest if is_encodable(path)]
    return {"found": first_of(found), "refused": first_of(refused), "others": kinds}, b""


def others_below(top: str, prefix: str, since: float = 0) -> dict[str, tuple[float, str]]:
    """Return what other libraries may have left below ``top``: when it was written last, and what it is, by path.

    Args:
        top: a folder.
        prefix: what the paths begin with.
        since: what was written before is none of the job's, seconds since 1970.
    """
    import itertools

    folders: dict[str, tuple[float, str]] = {}
    loose: dict[str, tuple[float, str]] = {}
    for path, entry in itertools.islice(walk(top), MOST_LOOKED_AT):
        if int(entry.st_mtime) == BUNDLE_MTIME or entry.st_mtime < since:
            continue
        folder, _slash, name = path.rpartition("/")
        what = next((what for mark, what in MARKS.items() if name.endswith(mark)), "")
        if what and folder:
            folders[folder] = (max(entry.st_mtime, folders.get(folder, (0.0, ""))[0]), what)
        elif name.endswith(LOOSE):
            loose[path] = (entry.st_mtime, "a file such as torch.save writes")

    def is_outermost(path: str) -> bool:
        parts = path.split("/")
        return not any("/".join(parts[:depth]) in folders for depth in range(1, len(parts)))

    return {os.path.join(prefix, path): about for path, about in {**loose, **folders}.items() if is_outermost(path)}


def others_elsewhere(request: Request, job_dir: str) -> dict[str, tuple[float, str]]:
    """Return what the job has left outside its folder, as ``others_below`` does: where a text of it names a place."""
    import pwd
    import re

    started = (read_json(os.path.join(job_dir, "state.json")) or {}).get("started")
    if not isinstance(started, (int, float)):
        return {}
    home = "~"  # of an account that was deleted
    with suppress(KeyError):
        home = pwd.getpwuid(os.geteuid()).pw_dir
    passed_over = tuple(f"{folder}/" for folder in (os.path.realpath(request["directory"]), *SYSTEM))
    found: dict[str, tuple[float, str]] = {}
    seen: set[str] = set()
    words = re.findall(r"(?<![\w./~-])(?:~|\.\.)?/[\w./@%+=~-]+", "\n".join(texts_of(job_dir)))
    for word in list(dict.fromkeys(words))[:MOST_LISTED]:
        path = os.path.join(job_dir, "work", home + word[1:] if word.startswith("~") else word)
        folder = os.path.realpath(os.path.dirname(path) if path.endswith(LOOSE) and not os.path.isdir(path) else path)
        if folder == "/" or folder in seen or f"{folder}/".startswith(passed_over):
            continue
        seen.add(folder)
        with suppress(OSError):
            if any(name.endswith(tuple(MARKS)) for name in os.listdir(folder)):
                folder = os.path.dirname(folder)  # it is a checkpoint itself
            found.update(others_below(folder, folder, started))
    return found


def texts_of(job_dir: str) -> Iterator[str]:
    """Yield the texts that may say where the job wrote: what it was told, its code, its log's end."""
    work = os.path.join(job_dir, "work")
    told = [os.path.join(job_dir, name) for name in ("spec.json", "node.env")]
    code = [
        os.path.join(work, path)
        for path, entry in walk(work)
        if path.endswith(TOLD_IN) and int(entry.st_mtime) == BUNDLE_MTIME
    ]
    left = MOST_TEXT_BYTES
    for path in (*told, *code):
        with suppress(OSError), open(open_regular(path), "rb") as file:
            data = file.read(left)
            left -= len(data)
            yield data.decode("utf-8", "replace")
    with suppress(OSError), open_own(log_path(job_dir), job_dir) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_TEXT_BYTES))
        yield file.read(MOST_TEXT_BYTES).decode("utf-8", "replace")


@operation
def named(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Say what a path is that the user calls a checkpoint, and of which files it consists.

    Request: path, relative to ``work/`` of the ended job, absolute, or below the home (``~/``) of the account that jobs
    run as; digests, relative paths of the files to be read whole. Reply: top, the folder that its files are relative
    to, or "" if there is nothing of that name; folder, whether it is one; files, ``[[path relative to top, bytes,
    modification time in ns, SHA-256 or ""]]``; why it is not known whether there is something, where that is so.
    """
    import itertools

    path = request["path"]
    if path.startswith("~/"):
        path = User(request["user"]).home + path[1:]
    if os.path.isabs(path):
        User(request["user"]).become()
    else:
        path = os.path.join(as_owner(request), "work", path)
    path = os.path.realpath(path)
    is_folder = os.path.isdir(path)
    top = path if is_folder else os.path.dirname(path)
    nothing: Reply = {"top": "", "folder": False, "files": []}
    try:
        os.stat(path)
    except PermissionError:
        return {**nothing, "why": f"does not let {account_name(os.geteuid())}, as whom jobs run, look at {path}"}, b""
    except OSError:
        return nothing, b""
    files = []
    try:
        names = [os.path.basename(path)]
        if is_folder:
            names = [name for name, _entry in itertools.islice(walk(path, links=True), MOST_NAMED_FILES + 1)]
        if len(names) > MOST_NAMED_FILES:
            raise Refusal(
                f"has more than {MOST_NAMED_FILES} files in {path}, and a checkpoint may not; name the folder of one"
            )
        for name in names:
            with open(open_named(top, name), "rb") as file:
                entry = os.fstat(file.fileno())
                sha256 = digest(file) if name in request["digests"] else ""
                files.append((name, entry.st_size, entry.st_mtime_ns, sha256))
    except OSError as error:
        account = account_name(os.geteuid())
        raise Refusal(f"has {path}, but {account}, as whom jobs run, cannot read it: {said(error)}") from None
    return {"top": top, "folder": is_folder, "files": files}, b""


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
        raise Unfit(NO_STEP)
    if b"pytorch-lightning_version" in pickle and b"optimizer_states" not in pickle:
        raise Unfit(WEIGHTS_ONLY)
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

    Request: path (below work/), total (bytes), sha256, and either offset (the payload's), from_job (a job that may
    have the file at the same path) or from_path (where the file may be here). Reply: placed, whether it is there now,
    whole.
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
            from_job, from_path = request.get("from_job"), request.get("from_path")
            if from_job:
                source = os.path.join(os.path.dirname(job_dir), from_job, "work")
                whole = copy_part(lambda: open_file(source, path), total, folder, part, job_dir)
            elif from_path:
                whole = copy_part(lambda: open_named("", from_path), total, folder, part, job_dir)
            else:
                if request["offset"] == 0:
                    check_space(work, total)
                written = write_part(request["offset"], payload, total, folder, part)
                if written is None:  # an answer was lost on the way, and this is the last piece once more
                    return {"placed": same(request["sha256"], folder, name, job_dir)}, b""
                whole = written
            if whole and not same(request["sha256"], folder, part, job_dir):
                os.unlink(part, dir_fd=folder)
                if not from_job and not from_path:
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


def copy_part(source: Callable[[], int], total: int, folder: int, part: str, touched: str) -> bool:
    """Copy the file that ``source`` opens to ``part``; return False if there is none of that size."""
    try:
        found = source()
    except OSError:
        return False
    with open(found, "rb") as original:
        if os.fstat(found).st_size != total:
            return False
        check_space(touched, total)
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
