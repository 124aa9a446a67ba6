# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Lookup ``thunderhead.cluster.option``: what was given with ``-e``, whatever an inventory calls by the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: option
author: The Thunderhead developers
short_description: An option of the command line
description:
  - Returns the value of a variable that was given with C(-e), as C(name=value), as JSON or YAML, or in a file.
  - A variable of that name in an inventory, a play or a role, or a fact, is somebody else's and does not count.
options:
  _terms:
    description: Names of options.
    type: list
    elements: str
    required: true
  default:
    description: The value of an option that was not given; as a module's argument, V(omit) leaves the argument out.
    type: raw
"""

EXAMPLES = """
- name: Run the script that the command line names
  thunderhead.cluster.job:
    script: "{{ lookup('thunderhead.cluster.option', 'script', default=omit) }}"
"""

RETURN = """
_raw:
  description: The values, in the order of the names; templates in them are resolved.
  type: list
  elements: raw
"""


class LookupModule(LookupBase):
    """Looks at the command line alone."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **options: Any) -> list[Any]:
        """Return the options' values."""
        self.set_options(var_options=variables, direct=options)
        given = load_extra_vars(self._loader)
        default = self.get_option("default")
        return [self._templar.template(given[name]) if name in given else default for name in terms]
