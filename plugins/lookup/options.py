# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E402 (in a plugin the documentation comes first)
"""Return the options that were given with ``-e``, whatever an inventory calls by the same name."""

from __future__ import annotations

DOCUMENTATION = """
name: options
author: The Thunderhead developers (!UNKNOWN)
short_description: Options of the command line
description:
  - Returns the variables of some names that were given with C(-e), as C(name=value), as JSON or YAML, or in a file.
  - A variable of such a name in an inventory, a play or a role, or a fact, is somebody else's and does not count.
options:
  _terms:
    description: Names of options.
    type: list
    elements: str
    required: true
"""

EXAMPLES = """
- name: Run the script that the command line names
  thunderhead.cluster.job:
    options: "{{ lookup('thunderhead.cluster.options', 'script', 'script_args') }}"
"""

RETURN = """
_raw:
  description: One mapping, of the names that were given to their values; templates in them are resolved.
  type: list
  elements: dict
"""

from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars


class LookupModule(LookupBase):
    """Looks at the command line alone."""

    def run(
        self, terms: Sequence[str], variables: dict[str, Any] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return the options that were given, in one mapping."""
        self.set_options(var_options=variables, direct=options)
        given = load_extra_vars(self._loader)
        return [{name: self._resolved(name, given[name]) for name in terms if name in given}]

    def _resolved(self, name: str, value: Any) -> Any:
        try:
            return self._templar.template(value)
        except AnsibleError as error:
            raise AnsibleError(f"The option {name} cannot be resolved.") from error
