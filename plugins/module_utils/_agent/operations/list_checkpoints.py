# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""List the checkpoints that a job left here.

Other libraries' checkpoints, files or folders, are seen, and taken if the user names them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import (
    open_own,
    open_regular,
    read_json,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_checkpoints import (
    SHARDED,
    find_checkpoints,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import log_path
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import become_job_owner
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import (
    NO_STEP,
    WEIGHTS_ONLY,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import LockHolder
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import job_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.working_directory import (
    BUNDLE_MTIME,
    walk,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    GOING_ON,
    LONGEST_REPLY,
    Reply,
    Request,
    is_encodable,
)

MOST_NAMED = 1000
"""Paths that the texts of a job name, of which the first are looked at."""
MOST_OTHERS = 10
"""Of other libraries' checkpoints only so many are named, the latest."""
MOST_LOOKED_AT = 20_000
"""Files of a folder outside the job's own that are listed."""
SYSTEM = ("/usr", "/etc", "/proc", "/sys", "/dev", "/bin", "/lib", "/boot")
"""Folders in which no job leaves checkpoints."""
MOST_TEXT_BYTES = 2**20
"""Of the job's settings, of its code and of its output, each, so much is searched for paths."""
NAMED_IN = (".py", ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".sh")
"""Files of the code that may name where checkpoints go."""
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


def list_checkpoints(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """List the checkpoints that the ended job has left below ``work/``; what came with the code is none.

    One that is cut short is refused; to read all of one takes long, and is for ``verify_checkpoint``. Reply: found,
    ``[[path relative to work, step, bytes, mtime]]``; refused, ``[[path, why]]``; others, which are not Lightning's or
    lie elsewhere, the latest first, ``[[path relative to work or absolute, what it is]]``.
    """
    holder = LockHolder(request)
    job_dir = become_job_owner(request)
    if job_state(job_dir, holder)["state"] in GOING_ON:
        name = request["job"]["id"]
        remedy = f"wait for it, or end it with: ansible-playbook stop.yml -e job={name}"
        raise Refusal(f"runs job {name} still; {remedy}", running=True)
    work = os.path.join(job_dir, "work")
    found, refused = find_checkpoints(work)
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

    started = (read_json(os.path.join(job_dir, "state.json")) or {}).get("started")
    if not isinstance(started, (int, float)):
        return {}
    home = "~"  # of an account that was deleted
    with suppress(KeyError):
        home = pwd.getpwuid(os.geteuid()).pw_dir
    passed_over = tuple(f"{folder}/" for folder in (os.path.realpath(request["directory"]), *SYSTEM))
    found: dict[str, tuple[float, str]] = {}
    seen: set[str] = set()
    paths = re.findall(r"(?<![\w./~-])(?:~|\.\.)?/[\w./@%+=~-]+", "\n".join(texts_of(job_dir)))
    for named in list(dict.fromkeys(paths))[:MOST_NAMED]:
        path = os.path.join(job_dir, "work", home + named[1:] if named.startswith("~") else named)
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
    """Yield the texts that may name where the job wrote: its settings, its code, its log's end."""
    work = os.path.join(job_dir, "work")
    settings = [os.path.join(job_dir, name) for name in ("spec.json", "node.env")]
    code = [
        os.path.join(work, path)
        for path, entry in walk(work)
        if path.endswith(NAMED_IN) and int(entry.st_mtime) == BUNDLE_MTIME
    ]
    left = MOST_TEXT_BYTES
    for path in (*settings, *code):
        with suppress(OSError), open(open_regular(path), "rb") as file:
            data = file.read(left)
            left -= len(data)
            yield data.decode("utf-8", "replace")
    with suppress(OSError), open_own(log_path(job_dir), job_dir) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_TEXT_BYTES))
        yield file.read(MOST_TEXT_BYTES).decode("utf-8", "replace")


def first_of(rows: list[Any]) -> list[Any]:
    """Return the first rows, as many as a reply has room for."""
    room = LONGEST_REPLY // 3
    for number, row in enumerate(rows):
        room -= len(json.dumps(row))
        if room < 0:
            return rows[:number]
    return rows
