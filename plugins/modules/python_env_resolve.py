# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a module the documentation comes first)
"""Resolve requirements on a node, for all nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_env_resolve
short_description: Resolves requirements on this machine, for every kind of node
version_added: 0.1.0
description:
  - Used by M(thunderhead.cluster.python_env_lock) where a node resolves, and not the controller. It works in the home
    of the account, above which no other may write, and nothing stays on the node. What one leaves there that is broken
    off, in C(.thunderhead-resolve), goes with the next; two at once wait for each other.
options:
  archive:
    description: A tar file with uv and what the requirements name on the controller.
    type: path
    required: true
  request:
    description: What is to be resolved, in JSON.
    type: str
    required: true
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Changes nothing that stays.
  diff_mode:
    support: N/A
    details: Changes nothing.
  platform:
    support: full
    platforms: linux
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Resolve
  thunderhead.cluster.python_env_resolve:
    archive: /tmp/workshop.tar
    request: "{{ request | to_json }}"
"""

RETURN = r"""
resolution:
  description: Locks by target, the indexes, and what else the nodes need to know.
  returned: success
  type: dict
contents:
  description: The wheels that were built, by name, in base64.
  returned: success
  type: dict
"""

import base64
import contextlib
import errno
import fcntl
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_cluster_directory import (
    account,
    is_open,
    trusted,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import resolve
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure

FOLDER = ".thunderhead-resolve"
"""In the account's home; its lock is held as long as it is used."""


def make_workshop() -> tuple[str, int]:
    """Return an empty folder in this account's home, and the lock on the one around it, when no other holds that.

    Not in /tmp: uv and builds go by what a pyproject.toml or uv.toml in any of the folders above says.

    Raises:
        Failure: another account may write in a folder above it.
        OSError: there is no home, or something else in the folder's place.
    """
    try:
        folder = home = os.path.realpath(Path.home())
    except RuntimeError:  # neither HOME nor the accounts' list says it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "~") from None
    while True:
        found = os.stat(folder)
        if found.st_uid not in trusted():
            raise Failure(
                f"{folder} belongs to {account(found.st_uid)}, and uv, which works in {home}, goes by files there; "
                f"chown it to {account(os.geteuid())}, or set python_env_resolve_on to another node or to localhost"
            )
        if is_open(found):
            raise Failure(
                f"others may write in {folder}, and uv, which works in {home}, goes by files there; chmod go-w it, or "
                "set python_env_resolve_on to another node or to localhost"
            )
        if folder == "/":
            break
        folder = os.path.dirname(folder)
    place = os.path.join(home, FOLDER)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700)
        lock = os.open(place, os.O_DIRECTORY | os.O_NOFOLLOW)
        found = os.fstat(lock)
        if found.st_uid != os.geteuid() or is_open(found):
            os.close(lock)
            raise Failure(f"{place} is not {account(os.geteuid())}'s alone, and uv goes by files there; remove it")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            break
        os.close(lock)  # who held it has removed it
    for name in os.listdir(place):
        shutil.rmtree(os.path.join(place, name), ignore_errors=True)
    return tempfile.mkdtemp(dir=place), lock


def main() -> None:
    """Unpack the archive, resolve, and return the locks and the wheels."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            # As one text: Ansible hides a secret wherever its value occurs, and some of these are everyday words.
            "request": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    folder = ""
    try:
        folder, _lock = make_workshop()  # held until this process ends
        with tarfile.open(module.params["archive"]) as archive:
            archive.extractall(folder)  # the controller made it
        there = {name: os.path.join(folder, name) for name in ("uv", "cache", "project")}
        request = {**json.loads(module.params["request"]), **there, "folder": folder}
        resolution = resolve(request)
        contents = {}
        for name in resolution["wheels"]:
            with open(os.path.join(folder, "wheels", name), "rb") as file:
                contents[name] = base64.b64encode(file.read()).decode()
        module.exit_json(changed=False, resolution=resolution, contents=contents)
    except Failure as failure:
        module.fail_json(msg=failure.why, output=failure.output, unmet=failure.unmet)
    except OSError as error:
        module.fail_json(msg=f"it could not use {error.filename or 'a file'}: {error.strerror or error}")
    finally:
        if folder:
            shutil.rmtree(os.path.dirname(folder), ignore_errors=True)


if __name__ == "__main__":
    main()
