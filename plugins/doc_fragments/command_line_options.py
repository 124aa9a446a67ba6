# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
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
