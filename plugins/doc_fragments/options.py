# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The argument of every action that takes options of the command line."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ansible-doc."""

    DOCUMENTATION = r"""
options:
  options:
    description:
      - Further arguments, as a mapping; they count before those that stand beside it.
      - It is there for the lookup P(thunderhead.cluster.options#lookup), which returns what C(-e) gave.
    type: dict
    default: {}
"""
