# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
# ruff: noqa: E402 (in a module the documentation comes first)
"""What a node has of all that the role node_env makes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_env_info
short_description: Looks at the account, the directories and the environment file of a node
version_added: 0.1.0
author: The Thunderhead developers
description:
  - Changes nothing.
options:
  directory:
    description: The node's cluster directory.
    type: path
    required: true
  parts:
    description: The folders that it is to have.
    type: list
    elements: str
    required: true
  user:
    description: The account that jobs run as; empty means that of Ansible.
    type: str
    default: ""
  checksum:
    description: SHA-256 of what C(node.env) is to hold.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: It changes nothing anyway.
"""

EXAMPLES = r"""
- name: Look at the node
  thunderhead.cluster.node_env_info:
    directory: /opt/thunderhead
    parts: [jobs, bundles]
    user: thunderhead
    checksum: "{{ lookup('ansible.builtin.template', 'node.env.j2') | hash('sha256') }}"
"""

RETURN = r"""
has_user:
  description: Whether the account is there, or none is needed.
  returned: success
  type: bool
is_complete:
  description: Whether the account, the folders and the file are there and as they are to be.
  returned: success
  type: bool
"""

import hashlib
import os
import pwd
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.directory import make
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.jobs import open_regular
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, said


def has_file(path: str, checksum: str, owner: int | None) -> bool:
    """Return whether a file holds just that, is nobody else's to read, and belongs to an account; None for any."""
    try:
        with open(open_regular(path), "rb") as file:
            about = os.fstat(file.fileno())
            is_private = stat.S_IMODE(about.st_mode) == 0o600 and owner in (None, about.st_uid)
            return is_private and hashlib.sha256(file.read()).hexdigest() == checksum
    except OSError:
        return False


def main() -> None:
    """Look at it."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str", "required": True},
            "user": {"type": "str", "default": ""},
            "checksum": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    directory, user = module.params["directory"], module.params["user"]
    path = os.path.join(directory, "node.env")
    if os.path.isdir(path):
        module.fail_json(msg=f"This node has a folder as {path}, which is to be a file; move it away.")
    try:
        to_make = make(directory, module.params["parts"], dry=True)
    except Refusal as refusal:
        module.fail_json(msg=f"This node {refusal}.")
    except OSError as error:
        module.fail_json(msg=f"{directory} could not be looked at: {said(error)}")
    owner, has_user = None, True
    try:
        owner = pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        has_user = False
    is_written = has_file(path, module.params["checksum"], owner)
    module.exit_json(changed=False, has_user=has_user, is_complete=has_user and is_written and not to_make)


if __name__ == "__main__":
    main()
