# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find the cluster directory that setup has made.

Root writes, runs and removes what lies there, so two things are made sure of first. Nobody but root and the account
that Ansible uses may put another folder in its place, or anything into it. And setup has left a marker in it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import open_own
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_digits

MARKER = ".thunderhead"
MARK = b"thunderhead cluster_dir 1\n"
"""How the marker begins; the number is that of the layout."""
MOST_LINKS = 40
"""In one path, as for the kernel."""


def trusted() -> set[int]:
    """Return the accounts that may own folders on the way: root, this one, and the one that became this one."""
    through_sudo = os.environ.get("SUDO_UID", "")
    return {0, os.geteuid(), *([int(through_sudo)] if is_digits(through_sudo) else [])}


def account(uid: int) -> str:
    """Return the name of an account."""
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"the account {uid}"


def is_open(found: os.stat_result) -> bool:
    """Return whether others than a folder's owner and root may write there; a group of its owner alone is no other."""
    if found.st_mode & 0o002 or not found.st_mode & 0o020 or found.st_gid == 0:
        return bool(found.st_mode & 0o002)
    import grp
    import pwd

    with suppress(KeyError):
        owner, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
        return not (
            owner.pw_gid == group.gr_gid and set(group.gr_mem) <= {owner.pw_name} and owner.pw_name == group.gr_name
        )
    return True


def real_path(directory: str) -> str:
    """Return the cluster directory without links, though it or folders above it may not be there.

    Raises:
        Refusal: others could put a folder of their own in its place, or something into it.
    """
    path, links = "/", 0
    pending = directory.split("/")[::-1]
    believed = trusted()
    where = f"has the cluster_dir {directory}"
    remedy = (
        "set cluster_dir in the inventory to a folder below those of root or of the account that Ansible uses there"
    )
    while pending:
        name = pending.pop()
        if name in ("", ".", ".."):
            path = os.path.dirname(path) if name == ".." else path
            continue
        below = os.path.join(path, name)
        try:
            found = os.lstat(below)
        except FileNotFoundError:
            return os.path.join(below, *pending[::-1])
        except OSError as error:
            raise Refusal(
                f"{where}, but {below} cannot be looked at ({os.strerror(error.errno or 0)}); {remedy}"
            ) from None
        if found.st_uid not in believed:
            raise Refusal(
                f"{where}, but {below} belongs to {account(found.st_uid)}, who could put anything in its place; "
                f"{remedy}"
            )
        if stat.S_ISLNK(found.st_mode):
            links += 1
            target = os.readlink(below)
            if links > MOST_LINKS:
                raise Refusal(f"{where}, but {below} is a link that leads in a circle; {remedy}")
            path = "/" if target.startswith("/") else path
            pending += target.split("/")[::-1]
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise Refusal(f"{where}, but {below} is no folder; correct cluster_dir in the inventory, or move that away")
        is_last = not any(pending)
        if is_open(found) and (is_last or not found.st_mode & stat.S_ISVTX):
            raise Refusal(
                f"{where}, but others than {account(found.st_uid)} may write in {below}; {remedy}, or chmod go-w it"
            )
        path = below
    return path


def is_marked(path: str) -> bool:
    """Return whether setup has made a folder, given without links."""
    try:
        with open_own(os.path.join(path, MARKER)) as file:
            return os.fstat(file.fileno()).st_uid in trusted() and file.read(len(MARK)) == MARK
    except OSError:
        return False


def require_ours(directory: str) -> str:
    """Return the cluster directory without links.

    Raises:
        Refusal: setup has not made it, or others could have put something in its place.
    """
    path = real_path(directory)
    if not is_marked(path):
        raise Refusal(
            f"has a cluster_dir {directory} that was not made by setup.yml: there is no {MARKER} in it; run: "
            "ansible-playbook setup.yml, or correct cluster_dir in the inventory"
        )
    return path
