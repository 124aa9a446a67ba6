# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a module the documentation comes first)
"""Install a node's Python environment from a lock."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_env_install
short_description: Installs a node's environment from a lock, for the action python_env
version_added: 0.1.0
description:
  - Used by the action M(thunderhead.cluster.python_env), which says what it does, and gives it the lock and the indexes
    with their passwords.
options:
  lock:
    description: All packages and their hashes, as text; empty if the environment is there.
    type: str
    default: ""
  settings:
    description: >-
      The indexes, folders of wheels, proxy and settings of uv, in JSON, as M(thunderhead.cluster.python_env) puts them
      together.
    type: str
    required: true
extends_documentation_fragment:
  - thunderhead.cluster.python_env
  - ansible.builtin.action_common_attributes
author: The Thunderhead developers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the environment
  thunderhead.cluster.python_env_install:
    directory: /opt/thunderhead
    node: "{{ found.nodes[inventory_hostname] }}"
    lock: "{{ lookup('ansible.builtin.file', 'lock.txt') }}"
    digest: "{{ locks.hosts[inventory_hostname].digest }}"
    settings: '{"index_url": "", "extra_index_urls": [], "find_links": [], "proxy": "", "uv_settings": {}}'
"""

RETURN = r"""
path:
  description: The environment's folder.
  returned: success
  type: str
  sample: /opt/thunderhead/envs/0123456789abcdef
"""

import contextlib
import json
import os
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.installation import (
    Environment,
    alone,
    bound_cache,
    explained,
    recorded,
    write,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure, Uv


def read(path: str) -> str:
    """Return a file's text, "" if it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


class Installation:
    """The environment and the tools of this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.given: dict[str, Any] = module.params
        self.directory: str = self.given["directory"]
        self.node: dict[str, Any] = self.given["node"]
        self.is_root = os.geteuid() == 0

    def run(self) -> dict[str, Any]:
        """Install them, unless in check mode; return the module's result.

        Raises:
            Failure: the environment cannot be installed.
        """
        record_path = os.path.join(self.directory, "requirements.txt")
        before = read(record_path)
        if self.node["complete"]:
            after = read(os.path.join(self.directory, self.node["target"], "requirements.txt"))
        else:
            after = recorded(self.given["lock"], self.given["requirements"], self.given["digest"])
        result = {
            "changed": not self.node["current"] or (self.module.check_mode and not self.node["tools_current"]),
            "path": os.path.join(self.directory, self.node["target"]),
            "diff": {"before": before, "after": after, "before_header": record_path, "after_header": record_path},
        }
        if not self.module.check_mode:
            folder = tempfile.mkdtemp(prefix="thunderhead-")
            try:
                result["changed"] = self._install(folder, after) or result["changed"]
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if before != after:
                write(record_path, after)
        return result

    def _install(self, folder: str, record: str) -> bool:
        """Install, and remove the wheels; return whether the tools were installed."""
        wheels = os.path.join(self.directory, "wheels", self.given["wheels"]) if self.given["wheels"] else ""
        cache = "" if self.given["own_cache"] else os.path.join(self.directory, "cache", "uv")
        uv = Uv(
            os.path.join(self.directory, "bin", "uv"), json.loads(self.given["settings"]), folder, cache, is_locked=True
        )
        with alone(self.directory, uv):
            try:
                return self._install_from(wheels, folder, record, uv, cache)
            finally:
                if os.path.isdir(wheels):
                    shutil.rmtree(wheels)
                with contextlib.suppress(OSError):  # another setup's are there
                    os.rmdir(os.path.join(self.directory, "wheels"))

    def _install_from(self, wheels: str, folder: str, record: str, uv: Uv, cache: str) -> bool:
        given = self.given
        has_tools = False
        made = self._environment(uv, self.node["target"])
        if given["lock"].strip():
            uv.require_reachable(uv.indexes(given["torch_backend"]))
        try:
            made.make(given["lock"], given["torch_backend"], given["needs_torch"], wheels, folder, record)
        except Failure as failure:
            if cache and "No space left" in failure.output:  # part of it is what fills the disk
                shutil.rmtree(cache, ignore_errors=True)
            remarks = [one for one in uv.machine.not_taken() if "extra-index-url" not in one]
            raise Failure("; besides, ".join([failure.why, *remarks]), failure.output) from None
        made.switch("env", self.node["target"])
        if given["tools"] and not self.node["tools_current"]:
            try:
                if not given["lock"].strip():  # else they were tried
                    uv.require_reachable(uv.indexes(""))
                tools = self._environment(uv, self.node["tools"])
                tools.make(given["tools"], "none", [], wheels, folder, given["tools"])
                tools.switch("tools/env", os.path.basename(self.node["tools"]))
                has_tools = True
            except Failure as failure:
                self.module.warn(
                    "py-spy could not be installed here, so the stacks of a job that hangs cannot be shown: "
                    f"{failure.why}; see that a package index, or a folder of python_env_find_links, has it, and run "
                    "setup again"
                )
        if cache:
            try:
                bound_cache(uv, cache, given["cache_max_mb"])
            except Failure as failure:
                self.module.warn(
                    f"uv's cache {cache} is larger than python_env_cache_max_mb and could not be emptied; remove that "
                    f"folder while no setup.yml runs. {explained(failure)}"
                )
        return has_tools

    def _environment(self, uv: Uv, target: str) -> Environment:
        return Environment(self.directory, target, uv, self.node["executable"], self.is_root)


def main() -> None:
    """Install the environment and the tools."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "node": {"type": "dict", "required": True},
            "lock": {"type": "str", "default": ""},
            "requirements": {"type": "str", "default": ""},
            "digest": {"type": "str", "required": True},
            "wheels": {"type": "str", "default": ""},
            "needs_torch": {"type": "list", "elements": "str", "default": []},
            "torch_backend": {"type": "str", "default": "none"},
            "tools": {"type": "str", "default": ""},
            # As one text in JSON: Ansible hides a secret wherever its value occurs, and some of these are usual words.
            "settings": {"type": "str", "required": True, "no_log": True},
            "own_cache": {"type": "bool", "default": False},
            "cache_max_mb": {"type": "int", "default": 20480},
        },
        supports_check_mode=True,
    )
    try:
        result = Installation(module).run()
    except Failure as failure:
        directory = module.params["directory"]
        module.fail_json(
            msg=f"This node has no new environment, and {directory}/env is as it was, because {explained(failure)}"
        )
    except OSError as error:
        module.fail_json(msg=f"{error.filename or 'a file'} could not be changed: {error.strerror or error}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
