# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the module python_env the lock, and the indexes with their passwords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import SETTINGS, without_credentials
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import expanded


class ActionModule(ActionBase):
    """Has the module python_env_install do it; the module of this name documents arguments and results."""

    _supports_check_mode = True
    _supports_async = False

    ARGUMENTS: ClassVar[dict[str, dict[str, Any]]] = {
        "directory": {"type": "path", "required": True},
        "node": {"type": "dict", "required": True},
        "lock": {"type": "path", "default": ""},
        "requirements": {"type": "str", "default": ""},
        "digest": {"type": "str", "required": True},
        "indexes": {"type": "list", "elements": "str", "default": []},
        "written_indexes": {"type": "list", "elements": "str", "default": []},
        "links": {"type": "list", "elements": "str", "default": []},
        "wheels": {"type": "str", "default": ""},
        "needs_torch": {"type": "list", "elements": "str", "default": []},
        "torch_backend": {"type": "str", "default": "none"},
        "tools": {"type": "str", "default": ""},
        "index_url": {"type": "str", "default": ""},
        "extra_index_urls": {"type": "list", "elements": "str", "default": []},
        "find_links": {"type": "list", "elements": "str", "default": []},
        "proxy": {"type": "str", "default": ""},
        "uv_settings": {"type": "dict", "default": {}},
        "own_cache": {"type": "bool", "default": False},
        "cache_max_mb": {"type": "int", "default": 20480},
    }

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Hand the arguments on."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(dict(self.ARGUMENTS))
        settings = {name: arguments.pop(name) for name in SETTINGS}
        written = arguments.pop("written_indexes")
        settings |= indexes(arguments.pop("indexes"), written, settings)
        settings["find_links"] += links(arguments.pop("links"), written)
        arguments["settings"] = json.dumps(settings)  # as one text, which no output repeats
        arguments["lock"] = Path(arguments["lock"]).read_text(encoding="utf-8") if arguments["lock"] else ""
        done = self._execute_module(
            "thunderhead.cluster.python_env_install", module_args=arguments, task_vars=task_vars
        )
        return {**result, **done}


def indexes(used: list[str], written: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Return which indexes a node asks: those that the lock's packages come from, with the credentials that are known.

    Args:
        used: by the resolution; the default first, or "".
        written: in the requirements, with variables.
        given: in the inventory: index_url and extra_index_urls.
    """
    in_files = {without_credentials(url): expanded(url) for url in written}
    known = in_files | {without_credentials(url): url for url in [given["index_url"], *given["extra_index_urls"]]}
    default, more = (used[0], used[1:]) if used else ("", [])
    index = given["index_url"] or (known[default] if default in in_files else "")
    extra = [known.get(url, url) for url in more]
    return {
        "index_url": index,
        "extra_index_urls": list(dict.fromkeys([*given["extra_index_urls"], *extra])),
        # Only for a node that has no index of its own.
        "fallback_index_url": "" if index else default,
    }


def links(used: list[str], written: list[str]) -> list[str]:
    """Return the URLs of the pages of links that a node needs, with the credentials that are known.

    Args:
        used: by the resolution.
        written: in the requirements, with variables.
    """
    known = {without_credentials(url): expanded(url) for url in written}
    return [known.get(url, url) for url in used]
