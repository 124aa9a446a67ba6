# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of every module that lets peers through a firewall."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ansible-doc."""

    DOCUMENTATION = r"""
options:
  peers:
    description: IPv4 and IPv6 addresses that may connect. Required with O(state=present); may be empty.
    type: list
    elements: str
  ports:
    description: TCP ports (V(29500)) and ranges (V(32768-60999)) they may connect to. Required with O(state=present).
    type: list
    elements: str
  state:
    description: With V(absent), the cluster's chains, the jumps to them and the files are taken away.
    type: str
    choices: [present, absent]
    default: present
"""
