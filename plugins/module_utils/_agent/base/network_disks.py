# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Find out which file systems several machines may share, and whether two names are of one folder."""

from __future__ import annotations

import os

NETWORK_DISKS = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "afs", "ocfs2", "gfs2"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse", "fuse.mfs"),
)
"""Types of file systems that several machines may have at once."""


def mounts() -> list[tuple[str, str, str]]:
    """Return where file systems are mounted, their types, and for those on a network what they are, else ""."""
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            fields, _dash, about = line.partition(" - ")
            root, place = (unescaped(field) for field in fields.split()[3:5])
            kind, source = about.split()[:2]
            shared = f"{unescaped(source)}{root if root != '/' else ''}" if kind in NETWORK_DISKS else ""
            found.append((place, kind, shared))
    return found


def network_disks() -> list[str]:
    """Return the file systems on a network that are mounted: type and source of each."""
    return sorted({f"{kind} {shared}" for _place, kind, shared in mounts() if shared})


def unescaped(field: str) -> str:
    """Return a field of mountinfo as it was."""
    head, *rest = field.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def identity(path: str) -> str:
    """Return what two names of one folder have in common, on one machine or on several that share a disk.

    Args:
        path: without links; neither it nor folders above it need be there.
    """
    place = path
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    within = [mount for mount in mounts() if mount[0] == "/" or f"{place}/".startswith(f"{mount[0]}/")]
    mounted, kind, shared = max(within, key=lambda mount: len(mount[0]), default=("/", "", ""))
    if shared:
        return f"{kind} {shared}/{path[len(mounted.rstrip('/')) :].lstrip('/')}"
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    found = os.stat(place)
    return f"{boot} {found.st_dev}:{found.st_ino} {path[len(place) :].lstrip('/')}"
