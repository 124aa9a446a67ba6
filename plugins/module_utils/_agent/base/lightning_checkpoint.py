# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read Lightning's checkpoint files without unpickling them.

One is what torch.save writes: a zip file with its parts stored uncompressed, among them ``<root>/data.pkl``. torch 2.13
writes each part's CRC-32 (unless torch.serialization.set_crc32_options(False) was called, when all are 0), but
torch.load does not check it: it loads a damaged checkpoint without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, BinaryIO
from zipfile import ZipFile

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.answer import (
    ANSWER_SECONDS,
    extend_deadline,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import LARGEST

NO_STEP = "has no global_step: not Lightning's"
WEIGHTS_ONLY = "has weights only (save_weights_only), from which no training can go on"
MOST_PICKLE_BYTES = 2**26
"""A data.pkl holds no tensors, only what they are called: kilobytes, and of the largest models megabytes."""
BLOCK_BYTES = 2**23
ASIDE = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME")
"""What may stand between a key and its value in a pickle."""


class Unfit(Exception):
    """Why a file is no complete checkpoint: a verb phrase."""


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
        extend_deadline(ANSWER_SECONDS)
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
