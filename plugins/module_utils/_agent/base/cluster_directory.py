# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Make the cluster directory, and list what in it is Thunderhead's.

Of what it holds only that is removed which has the very form of what setup or a job makes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_own, write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_cluster_directory import (
    MARK,
    MARKER,
    is_marked,
    is_open,
    real_path,
    trusted,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    HEX,
    is_digits,
    is_job_id,
    is_made_of,
)

MARKER_TEXT = (
    MARK + b"# setup.yml made this folder. Without this file, Thunderhead neither uses it nor removes anything.\n"
)
MODES = {"bin": 0o755, "envs": 0o755, "tools": 0o755, "cache": 0o700, "wheels": 0o755, "jobs": 0o711, "bundles": 0o700}
"""Of the folders that setup makes. Only the agent writes in jobs, and a job need not see the others' names."""
LOOSE = ("env", "node.env", "requirements.txt")
"""What lies beside these folders: the link to the present environment, and files."""
SYSTEM_FOLDERS = (
    *("/", "/bin", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media"),
    *("/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var"),
)
MOST_NAMED = 3


def is_job_file(name: str) -> bool:
    """Return whether it is a file that lies beside jobs' folders, or a part of one that was not finished."""
    stem, _dot, number = name.rpartition(".")
    if is_digits(number):
        name = stem
    job, _dot, kind = name.partition(".")
    kinds = ("start", "start.part", "started", "because", "log")
    return name in ("lock", "current") or (is_job_id(job) and kind in kinds)


def is_bundle(name: str) -> bool:
    """Return whether it is a bundle: the SHA-256 of some code, or a part of it that was not finished."""
    digest, dot, part = name.partition(".")
    return is_made_of(digest, HEX, 64) and (not dot or part == "part" or is_digits(part))


def is_env(name: str) -> bool:
    """Return whether python_env/node.py names it so: an environment, the tools, or the wheels of a lock."""
    return is_made_of(name, HEX, 16)


def is_trash(name: str) -> bool:
    """Return whether it was put into the trash by ``clean.RemovalQueue``, or moved there by ``clean.remove``."""
    kind, _dot, rest = name.partition(".")
    stem, _dot, number = rest.rpartition(".")
    if not is_digits(number):
        return False
    return is_digits(stem) if kind == "deep" else kind in FOLDERS and FOLDERS[kind](stem)


FOLDERS: dict[str, Callable[[str], bool]] = {
    "jobs": is_job_id,
    "bundles": is_bundle,
    "envs": is_env,
    "tools": is_env,
    "wheels": is_env,
    "cache": lambda name: name == "uv",
}
"""What is removed as a whole: the names in each folder."""
FILES: dict[str, Callable[[str], bool]] = {
    "jobs": is_job_file,
    "envs": lambda name: name == "constraints.txt",
    "bin": lambda name: name == "uv",
    "cache": lambda name: name == "lock",
}
"""What lies there besides, and goes with the folder."""


# ----------------------------------------------------------------------------------------------------------- making it


def require_usable(directory: str) -> str:
    """Return the cluster directory without links: one that setup has made, or may make.

    Raises:
        Refusal: it holds what is not ours, it is somebody's home or the system's, or ``real_path`` refuses it.
    """
    path = real_path(directory)
    if is_marked(path):
        return path
    where = f"has the cluster_dir {directory}"
    if path in SYSTEM_FOLDERS or os.path.dirname(path) in ("/usr", "/var"):
        below = os.path.join(path, "thunderhead")
        raise Refusal(
            f"{where}, which belongs to the system; set it in the inventory to a folder below, such as {below}"
        )
    if path.startswith(("/proc/", "/sys/")):
        raise Refusal(
            f"{where}, which is no folder on a disk; set it in the inventory, for instance to /opt/thunderhead"
        )
    home = whose_home(directory, path)
    if home:
        below = os.path.join(directory, "thunderhead")
        raise Refusal(
            f"{where}, which is the home of {home}; set it in the inventory to a folder below, such as {below}"
        )
    found = entries(path)
    if found and not is_of_0_1_0(path, found):
        named = ", ".join(found[:MOST_NAMED]) + (
            f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        )
        raise Refusal(
            f"{where}, which was not made by setup.yml: it holds {named}; set cluster_dir in the inventory to a folder "
            "that is new or empty, or move these away"
        )
    return path


def entries(path: str) -> list[str]:
    """Return what a folder holds, but what every new disk has; nothing if it is not there."""
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(path) if name != "lost+found")
    return []


def whose_home(*paths: str) -> str | None:
    """Return the account whose home one of these is."""
    import pwd

    names = {os.path.basename(path) for path in paths}
    for entry in pwd.getpwall():
        home = entry.pw_dir.rstrip("/")
        # Another home is not looked at: that could have it mounted.
        if home in paths or (os.path.basename(home) in names and os.path.realpath(home) in paths):
            return entry.pw_name
    return None


def is_of_0_1_0(path: str, names: list[str]) -> bool:
    """Return whether setup or teardown of version 0.1.0, which left no marker, have made a folder with these names."""
    if not is_own_folder(os.path.join(path, "jobs"), MODES["jobs"]):
        return False
    if set(names) <= {"jobs", "home"}:  # teardown
        return all(is_job_id(name) or is_job_file(name) for name in entries(os.path.join(path, "jobs")))
    try:
        with open_own(os.path.join(path, "node.env")) as file:
            is_node_env = file.read(12) == b"MASTER_ADDR="
        return (
            is_node_env
            and is_own_folder(os.path.join(path, "bundles"), MODES["bundles"])
            and is_env_link(os.path.join(path, "env"))
        )
    except OSError:
        return False


def is_own_folder(path: str, mode: int | None = None) -> bool:
    """Return whether it is a folder that no other account may write in; where a mode is given, with that mode.

    It may lie behind a link: in a cluster directory that ``real_path`` accepts, only we and root can make one.
    """
    try:
        found = os.stat(path)
    except OSError:
        return False
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid in trusted() and not is_open(found)
    return is_own and mode in (None, stat.S_IMODE(found.st_mode))


def is_env_link(path: str) -> bool:
    """Return whether it is the link to the present environment, as setup makes it."""
    try:
        folder, _slash, name = os.readlink(path).partition("/")
    except OSError:
        return False
    return folder == "envs" and is_env(name)


def require_open_to(path: str, name: str) -> None:
    """Refuse a cluster directory, given without links, that the account ``name`` cannot get to.

    One that is not there yet is none of the folders' owners, and in none of their groups.
    """
    import pwd

    uid, groups = -1, []
    with suppress(KeyError):
        entry = pwd.getpwnam(name)
        uid, groups = entry.pw_uid, os.getgrouplist(name, entry.pw_gid)
    place = ""
    for part in path.split("/")[1:]:
        place += f"/{part}"
        try:
            found = os.stat(place)
        except FileNotFoundError:
            return
        bit = 0o100 if found.st_uid == uid else 0o010 if found.st_gid in groups else 0o001
        if not found.st_mode & bit:
            raise Refusal(
                f"has the cluster_dir {path}, but {place} is closed to {name}, the account that jobs run as there; "
                "chmod o+x it, or set cluster_dir in the inventory to another folder"
            )


def make(directory: str, parts: list[str], dry: bool) -> list[str]:
    """Make the cluster directory, its marker, and folders in it, as far as they are missing; return what was made.

    The modes of what is there stay as they are.

    Args:
        directory: the cluster directory.
        parts: names of folders in it, those of MODES.
        dry: change nothing.

    Raises:
        Refusal: see ``require_usable``.
    """
    path = require_usable(directory)
    made = []
    if not os.path.isdir(path):
        made.append(directory)
        if not dry:
            make_folder(os.path.dirname(path), 0o755)
            make_folder(path, 0o755)
            path = require_usable(directory)  # whoever was first with a folder in /tmp
    if not is_marked(path):
        made.append(os.path.join(directory, MARKER))
        if not dry:
            write_file(os.path.join(path, MARKER), MARKER_TEXT, 0o644)
            os.chmod(os.path.join(path, MARKER), 0o644)
    for part in parts:
        place = os.path.join(path, part)
        if not os.path.isdir(place):
            if os.path.lexists(place):
                raise Refusal(f"has something in {directory} as {part}, which is to be a folder; move it away")
            made.append(os.path.join(directory, part))
            if not dry:
                make_folder(place, MODES[part])
    return made


def make_folder(path: str, mode: int) -> None:
    """Make a folder with this mode, whatever the umask is, and those above it that are missing."""
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path), 0o755)
    os.mkdir(path, 0o700)
    os.chmod(path, mode)
