# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Act as the account that jobs run as, and make their environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import job_directory
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.systemd import has_systemd
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request


def become_job_owner(request: Request) -> str:
    """Become the owner of the job's directory, for good: what a job wrote is read with the job's own rights."""
    job_dir = job_directory(request)
    try:
        owner = owner_of(job_dir)
    except FileNotFoundError:
        raise Refusal(f"has no job {request['job']['id']}", gone=True) from None
    if owner:
        owner.become()
    return job_dir


def refuse_root(name: str, uid: int | None) -> None:
    """Refuse jobs as root; only where there is no systemd, as in a bare container, root may run jobs as itself."""
    as_itself = not name and os.geteuid() == 0
    if (as_itself and has_systemd()) or (name and uid == 0):
        raise Refusal(
            f"would run jobs as {name or 'root'}, but they run unprivileged; set job_user in the inventory to another "
            "account, or ansible_become to false to run them as the account Ansible connects as"
        )


class User:
    """The account a job runs as. ``name`` empty means the account that this agent runs as."""

    def __init__(self, name: str) -> None:
        """Refuse an account that does not exist, is root, or is out of reach."""
        import pwd

        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        except KeyError:
            if name:
                raise Refusal(f"has no user {name}; run: ansible-playbook setup.yml") from None
            raise Refusal(
                f"is used as user id {os.geteuid()}, which no account there has; make one, or set ansible_user to one"
            ) from None
        if entry.pw_uid != os.geteuid() != 0:
            raise Refusal(
                f"cannot run jobs as {name}: the connection's user is {account_name(os.geteuid())} and may not become "
                "another; allow sudo (ansible_become), or set job_user to that name"
            )
        refuse_root(name, entry.pw_uid)
        self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir

    @classmethod
    def numbered(cls, uid: int, gid: int) -> User:
        """Return a file's owner: perhaps an account that was deleted."""
        user = cls.__new__(cls)
        user.name, user.uid, user.gid, user.home = account_name(uid), uid, gid, "/"
        return user

    def become(self) -> None:
        """Turn this process into the user, for good."""
        if os.geteuid() == 0 and self.uid != 0:
            os.initgroups(self.name, self.gid)
            os.setgid(self.gid)
            os.setuid(self.uid)

    def acting(self) -> Acting:
        """Touch files as the user only, so that no link a job has planted makes root write elsewhere."""
        return Acting(self)


def uid_of(name: str) -> int | None:
    """Return the number of the account that jobs run as, or None if it is not there or cannot be used."""
    try:
        return User(name).uid
    except Refusal:
        return None


def account_name(uid: int) -> str:
    """Return the name of an account; its number if it was deleted."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def owner_of(path: str) -> User | None:
    """Return the owner of a job's folder, as whom its processes run; None if that is who this agent runs as."""
    status = os.lstat(path)
    return User.numbered(status.st_uid, status.st_gid) if os.geteuid() == 0 and status.st_uid else None


class Acting:
    """While in this context, root has the rights of a user."""

    def __init__(self, user: User) -> None:
        self._user = user if os.geteuid() == 0 and user.uid != 0 else None

    def __enter__(self) -> None:
        """Take on the user's rights."""
        if self._user:
            os.setegid(self._user.gid)
            os.seteuid(self._user.uid)

    def __exit__(self, *_about: object) -> None:
        """Be root again."""
        if self._user:
            os.seteuid(0)
            os.setegid(0)


def job_environment(user: User, python: str, variables: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return all that a job's environment holds: nothing of the login's or the agent's own comes along.

    Args:
        user: whom the job runs as.
        python: path of the interpreter; the other programs of its folder are found first.
        variables: the job's own, which win.
    """
    environment = {
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": f"{os.path.dirname(python)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    return {name.encode(): value.encode(errors="surrogateescape") for name, value in environment.items()}
