# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Remove old jobs, code and environments from this node.

What is to go is first moved into ``trash/``, where nobody looks for it, so that nothing is ever seen half removed: an
environment without half of its files would pass for a complete one. Then the trash is emptied, which takes its time.

A job's folder belongs to the account the job runs as: nothing in it is trusted, no link in it is followed. What has
not the form of ours is not touched: see ``directory``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.cluster_directory import (
    FILES,
    FOLDERS,
    LOOSE,
    MODES,
    entries,
    is_bundle,
    is_env,
    is_env_link,
    is_own_folder,
    is_trash,
    require_usable,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import read_json
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_cluster_directory import (
    MARKER,
    require_ours,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    job_directory,
    log_path,
    reason_path,
    start_file_path,
    started_by,
    started_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import (
    read_holder,
    read_state,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import marked, run_command
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import valid_fields
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import job_unit
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    Reply,
    Request,
    is_job_id,
    is_text,
)

DAY_SECONDS = 86400
LOCK_SECONDS = 0.2
"""A process that only reads the lock holds it for a moment."""
DEEP = "deep."
DEEP_LEVELS = 400
MOST_ROUNDS = 1000


def clean(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Remove all but the newest ended jobs, then the bundles and environments that nothing uses any more.

    Request: directory, keep (how many ended jobs stay), owner (whose count and go; None: everybody's), dry (only say
    what would go), seconds (after which to answer, though the trash is not empty). Reply: jobs, bundles and envs, lists
    of names; bytes (that became free); left, ``[[path, why]]`` of what could not be removed; more, whether to ask
    again.

    A job that is prepared, starts or ends at the same time is neither disturbed nor kept waiting:

    - Job folders. A node runs one job at a time, no id comes twice, and whoever takes the lock writes its id into
      jobs/current before it makes its folder. So of the folders that were listed *before* the lock and jobs/current are
      looked at, all have ended but the one that these name; and what comes later is not in the list.
    - Bundles: see ``remove_unused_bundles``.
    - Environments. Setup has no lock: it builds beside the present environment, then switches the link. What is younger
      than a day, complete or not, may be on its way to that, and stays.
    """
    directory = request["directory"]
    if os.path.isdir(directory):
        require_ours(directory)
    names = folders_in(os.path.join(directory, "jobs"))
    current = holder_of(directory)
    specs = {name: read_spec(job_directory(request_for_job(request, name))) for name in names}
    trash = RemovalQueue(directory, request["dry"])
    keep = request["keep"]
    own = [name for name in names if is_owned_by(request["owner"], job_directory(request_for_job(request, name)))]
    if current in own and "ended" in read_state(os.path.join(directory, "jobs"), str(current)):
        keep = max(0, keep - 1)  # its supervisor only tells the other nodes
    gone = list_ended_jobs(request, [name for name in own if name != current and is_job_id(name)], trash)[keep:]
    if not current or specs.get(current):
        remove_unused_bundles(
            directory, [spec for name, spec in specs.items() if name not in gone], names, current, trash
        )
        for env in unused_envs(directory, specs[current] if current else None):
            trash.take("envs", env)
    for name in gone:
        trash.take("jobs", name)
    for name in trash.taken["jobs"]:
        start_file, job_dir = (
            start_file_path(request_for_job(request, name)),
            job_directory(request_for_job(request, name)),
        )
        if request["dry"]:
            with suppress(OSError):
                trash.bytes += os.lstat(log_path(job_dir)).st_blocks * 512  # which goes with its second name
        else:
            for path in (
                start_file,
                f"{start_file}.part",
                started_path(job_dir),
                reason_path(job_dir),
                log_path(job_dir),
            ):
                with suppress(OSError):
                    os.unlink(path)
    is_empty = trash.empty(request["seconds"])
    return {**trash.taken, "bytes": trash.bytes, "left": trash.left, "more": not is_empty}, b""


def request_for_job(request: Request, name: str) -> Request:
    """Return the request as one about the job ``name``."""
    return {**request, "job": {"id": name}}


def folders_in(path: str) -> list[str]:
    """Return the names of the folders in a folder, links not among them."""
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


@contextlib.contextmanager
def try_lock(directory: str) -> Iterator[bool]:
    """Hold the node's lock for a moment, if it is free."""
    try:
        lock = os.open(os.path.join(directory, "jobs", "lock"), os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:  # no job was ever here
        yield True
        return
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.01)
        yield True
    finally:
        os.close(lock)


def holder_of(directory: str) -> str | None:
    """Return the id of the job that holds the node, or None."""
    with try_lock(directory) as is_free:
        return None if is_free else read_holder(os.path.join(directory, "jobs"))["id"]


def read_spec(job_dir: str) -> dict[str, str] | None:
    """Return the bundle and the python of a job, or None if they are not known; the job may have changed the file."""
    spec = valid_fields(read_json(os.path.join(job_dir, "spec.json")), dict.fromkeys(("bundle", "python"), is_text))
    return spec if spec and len(spec) == 2 else None


def is_owned_by(owner: str | None, job_dir: str) -> bool:
    """Whether a job is one of the owner's, or, as one that never started, nobody's; None owns all."""
    return owner is None or started_by(job_dir) in (owner, None)


def list_ended_jobs(request: Request, names: list[str], trash: RemovalQueue) -> list[str]:
    """Return those of the jobs that are over, the newest first."""
    over = []
    for name in names:
        if alive(request_for_job(request, name)):
            remedy = f"end them with: ansible-playbook stop.yml -e job={name}"
            trash.left.append((f"jobs/{name}", f"it has processes that its supervisor left behind; {remedy}"))
        else:
            over.append(name)
    return sorted(over, reverse=True)  # an id begins with the time


def alive(request: Request) -> bool:
    """Return whether a job without a supervisor has processes all the same: one whose supervisor was killed may."""
    jobs, name = os.path.split(job_directory(request))
    if "ended" in read_state(jobs, name):
        return False
    unit = job_unit(request)
    return bool(marked(job_directory(request))) or bool(
        unit and run_command(["systemctl", "is-active", "--quiet", unit])[0] == 0
    )


def remove_unused_bundles(
    directory: str, specs: list[dict[str, str] | None], names: list[str], current: str | None, trash: RemovalQueue
) -> None:
    """Take the bundles that no job uses, unless a job came that was not listed.

    No job may look for its code meanwhile, find it, and then miss it. Either the lock is held here while the bundles
    move, so none is prepared. Or a job has it, whose own bundle stays: if it still has it after the move, no other was
    prepared during the move; if not, all is put back.

    Args:
        directory: of the cluster on this node.
        specs: of the jobs that stay; None for one of which nothing is known, for which all younger bundles stay.
        names: of all jobs that were looked at.
        current: which of them holds the node.
        trash: where the bundles go.
    """
    used = {spec["bundle"] for spec in specs if spec}
    folder = os.path.join(directory, "bundles")
    unused = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            is_young = entry.stat(follow_symlinks=False).st_mtime > time.time() - DAY_SECONDS
            in_the_making = "." in entry.name
            if not is_bundle(entry.name) or not entry.is_file(follow_symlinks=False) or entry.name in used:
                continue
            if not (is_young and (in_the_making or None in specs)):
                unused.append(entry.name)
    with try_lock(directory) as is_ours:
        came = set(folders_in(os.path.join(directory, "jobs"))) - set(names)
        if came or not (is_ours or current):
            return
        for name in sorted(unused):
            trash.take("bundles", name)
        if not is_ours and holder_of(directory) != current:
            trash.put_back("bundles")


def unused_envs(directory: str, spec: dict[str, str] | None) -> list[str]:
    """Return the environments that neither the link ``env`` nor the running job uses, but those made within a day.

    Args:
        directory: of the cluster on this node.
        spec: the running job's, or None if none runs.
    """
    folder = os.path.join(directory, "envs")
    used = {os.path.realpath(os.path.join(directory, "env"))}
    if spec:
        used.add(os.path.realpath(os.path.dirname(os.path.dirname(spec["python"]))))
    unused = []
    for name in filter(is_env, folders_in(folder)):
        path = os.path.join(folder, name)
        changed = []
        for file in ("", "installed.txt"):  # which setup writes last
            with suppress(OSError):
                changed.append(os.lstat(os.path.join(path, file)).st_mtime)
        if os.path.realpath(path) not in used and max(changed, default=0) < time.time() - DAY_SECONDS:
            unused.append(name)
    return sorted(unused)


class RemovalQueue:
    """What goes."""

    def __init__(self, directory: str, dry: bool) -> None:
        """Take nothing yet.

        Args:
            directory: of the cluster on this node.
            dry: change nothing, only add up.
        """
        self._directory = directory
        self._path = os.path.join(directory, "trash")
        self._dry = dry
        self._moved: dict[tuple[str, str], str] = {}
        self._in_place: list[str] = []
        self.taken: dict[str, list[str]] = {"jobs": [], "bundles": [], "envs": []}
        self.bytes = 0
        self.left: list[tuple[str, str]] = []

    def take(self, kind: str, name: str) -> None:
        """Move a job, a bundle or an environment out of sight."""
        path = os.path.join(self._directory, kind, name)
        if not is_own_folder(os.path.dirname(path)):
            self.left.append((f"{kind}/{name}", f"others than root and this account may write in {kind}"))
            return
        if self._dry:
            self.bytes += used_bytes(path)
        else:
            target = os.path.join(self._path, f"{kind}.{name}.{os.getpid()}")
            try:
                with suppress(FileExistsError):
                    os.mkdir(self._path, 0o700)
                os.rename(path, target)
            except FileNotFoundError:  # another clean was first
                return
            except OSError as error:
                if error.errno != errno.EXDEV:
                    self.left.append((f"{kind}/{name}", error_text(error)))
                    return
                target = path  # the folder lies on a disk of its own
                self._in_place.append(path)
                with suppress(OSError):
                    os.unlink(os.path.join(path, "installed.txt"))  # without it an environment is not complete
            self._moved[kind, name] = target
        self.taken.setdefault(kind, []).append(name)

    def put_back(self, kind: str) -> None:
        """Undo what was taken of a kind."""
        for name in self.taken[kind]:
            if not self._dry:
                os.rename(self._moved[kind, name], os.path.join(self._directory, kind, name))
        self._in_place = []
        self.taken[kind] = []

    def empty(self, seconds: float) -> bool:
        """Remove what lies in the trash, also what an earlier clean did not come to; return whether that is all.

        Args:
            seconds: how long at most, by and large.
        """
        deadline = time.monotonic() + seconds
        seen: set[str] = set()
        while True:
            waiting = [path for path in [*self._waiting(), *self._in_place] if path not in seen]
            if not waiting:
                break
            seen.update(waiting)
            for path in waiting:
                if time.monotonic() > deadline and not self._dry:
                    return False
                size = 0 if os.path.basename(path).startswith(DEEP) else used_bytes(path)
                try:
                    if not self._dry:
                        remove(path, self._path)
                    self.bytes += size
                except FileNotFoundError:  # another clean is at it too
                    pass
                except OSError as error:
                    self.left.append((os.path.relpath(path, self._directory), error_text(error)))
        if not self._dry:
            with suppress(OSError):
                os.rmdir(self._path)
        return True

    def _waiting(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [os.path.join(self._path, name) for name in sorted(filter(is_trash, os.listdir(self._path)))]
        return []


def remove_own_parts(directory: str, parts: list[str], dry: bool) -> tuple[list[str], list[str]]:
    """Remove what setup and jobs have made in a cluster directory, and it too if nothing else is left in it.

    Args:
        directory: the cluster directory.
        parts: which names in it.
        dry: change nothing.

    Returns:
        What went, and what of these parts did not, or lies in the cluster directory besides, because it is not ours or
        cannot be removed: paths below it.

    Raises:
        Refusal: see ``cluster_directory.require_usable``.
    """
    path = require_usable(directory)
    trash = RemovalQueue(path, dry)
    gone: list[str] = []
    left: list[str] = []
    folders = []
    found = {part: split_ours_and_others(path, part) for part in parts if os.path.lexists(os.path.join(path, part))}
    for part, (ours, others) in found.items():
        gone += ours
        left += others
        for one in ours:
            kind, _slash, name = one.partition("/")
            if kind in FOLDERS and FOLDERS[kind](name):
                trash.take(kind, name)
            elif kind != "trash" and not dry:
                os.unlink(os.path.join(path, one))
        if not others and part not in ours:
            folders.append(part)
    trash.empty(float("inf"))
    for part in folders if not dry else ():
        with suppress(OSError):
            os.rmdir(os.path.join(path, part))
    gone += folders
    rest = set(entries(path)) - set(gone)
    if rest == {MARKER}:
        gone.append(".")
        if not dry:
            os.unlink(os.path.join(path, MARKER))
            with suppress(OSError):  # a disk of its own
                os.rmdir(path)
    strays = rest - {MARKER, "home", "trash", *MODES, *LOOSE}
    return gone, [*left, *sorted(strays), *(f"{name} ({why})" for name, why in trash.left)]


def split_ours_and_others(path: str, part: str) -> tuple[list[str], list[str]]:
    """Return what of a part of the cluster directory is ours, and what is not: paths below it."""
    place = os.path.join(path, part)
    if part in LOOSE:
        is_ours = is_env_link(place) if part == "env" else has_type(place, stat.S_IFREG)
        return ([part], []) if is_ours else ([], [part])
    if not is_own_folder(place):
        return [], [part]
    ours: list[str] = []
    others: list[str] = []
    for name in sorted(os.listdir(place)):
        inside = os.path.join(place, name)
        if part == "tools" and name == "env":
            is_ours = has_type(inside, stat.S_IFLNK) and is_env(os.readlink(inside))
        elif part in FOLDERS and FOLDERS[part](name):
            is_ours = has_type(inside, stat.S_IFREG if part == "bundles" else stat.S_IFDIR)
        elif part == "trash":
            is_ours = is_trash(name)
        else:
            is_ours = part in FILES and FILES[part](name) and has_type(inside, stat.S_IFREG)
        (ours if is_ours else others).append(f"{part}/{name}")
    return ours, others


def has_type(path: str, kind: int) -> bool:
    """Return whether it is of a type of file, as ``stat`` names them; a link is a link."""
    return stat.S_IFMT(os.lstat(path).st_mode) == kind


def remove(path: str, workshop: str) -> None:
    """Remove a file or folder, whatever a job has made of it; no link is followed.

    Args:
        path: of the file or folder.
        workshop: a folder that takes what is nested deeper than rmtree reaches (it recurses, and keeps a file open for
            each level), to be removed in its turn.
    """
    import shutil

    if not os.path.isdir(path):
        os.unlink(path)
        return
    for _round in range(MOST_ROUNDS):
        try:
            shutil.rmtree(path)  # on Linux it goes from folder to folder by descriptors, so no link leads it astray
            return
        except RecursionError:
            pass
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for level in range(DEEP_LEVELS):  # along what rmtree could not finish: all before it is gone
            with os.scandir(folder) as entries:
                name = next((entry.name for entry in entries if entry.is_dir(follow_symlinks=False)), None)
            if name is None:
                break
            if level == DEEP_LEVELS - 1:
                os.rename(name, f"{workshop}/{DEEP}{os.getpid()}.{time.monotonic_ns()}", src_dir_fd=folder)
            else:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
        os.close(folder)
    raise OSError(errno.ELOOP, "Folders are nested too deep", path)


def used_bytes(path: str) -> int:
    """Return what becomes free when a file or folder goes: without links, and files that have another name besides."""
    total = 0
    pending = [path]
    while pending:
        path = pending.pop()
        with suppress(OSError):
            entry = os.lstat(path)
            is_folder = entry.st_mode & 0o170000 == 0o040000
            if is_folder:
                pending += [os.path.join(path, name) for name in os.listdir(path)]
            if is_folder or entry.st_nlink == 1:
                total += entry.st_blocks * 512
    return total
