# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
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
