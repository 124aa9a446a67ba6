# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a module the documentation comes first)
"""Make the cluster directory of a node, or remove what is ours in it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_directory
short_description: Makes the cluster directory of a node, or takes away what is ours in it
version_added: 0.1.0
description:
  - Makes the folder if it is not there, and marks it as made by setup with the file C(.thunderhead).
  - Refuses a folder that holds anything else, a home, a folder of the system, and one that other accounts than root
    and the one that Ansible uses could change, or put another in its place.
  - Modes of folders that are there stay as they are.
options:
  path:
    description: The cluster directory, absolute.
    type: path
    required: true
  parts:
    description:
      - Names in it. With V(present) folders to be made, of C(bin), C(envs), C(tools), C(cache), C(wheels), C(jobs) and
        C(bundles).
      - With V(absent) what is to go, of those, C(trash), C(env), C(node.env) and C(requirements.txt). In these only
        what has the form of what setup and jobs make is removed; the cluster directory too, if only the mark is left.
    type: list
    elements: str
    default: []
  state:
    description: Whether these parts are to be there.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Says what would change.
  diff_mode:
    support: full
    details: Shows which folders come and go.
  platform:
    support: full
    platforms: linux
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make the folders for jobs and their code
  thunderhead.cluster.cluster_directory:
    path: /opt/thunderhead
    parts: [jobs, bundles]

- name: Remove the environments
  thunderhead.cluster.cluster_directory:
    path: /opt/thunderhead
    parts: [env, envs]
    state: absent
"""

RETURN = r"""
left:
  description: With V(absent), the paths below the cluster directory that stay, not being ours or not to be removed.
  returned: success
  type: list
  elements: str
  sample: [jobs/photos]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.cluster_directory import make
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations.clean import remove_own_parts


def main() -> None:
    """Make the directory, or remove its parts."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    path, parts = module.params["path"], module.params["parts"]
    left: list[str] = []
    try:
        if module.params["state"] == "present":
            changes = make(path, parts, module.check_mode)
        else:
            changes, left = remove_own_parts(path, parts, module.check_mode)
    except Refusal as refusal:
        module.fail_json(msg=f"This node {refusal}.")
    except OSError as error:
        module.fail_json(msg=f"{path} could not be changed: {error_text(error)}")
    lines = "".join(f"{change}\n" for change in changes)
    before, after = ("", lines) if module.params["state"] == "present" else (lines, "")
    module.exit_json(changed=bool(changes), left=left, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
