# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action python_env and the module that it runs on a node have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Read by ansible-doc."""

    DOCUMENTATION = r"""
options:
  directory:
    description: The cluster directory, absolute.
    type: path
    required: true
  node:
    description: What M(thunderhead.cluster.python_env_info) says of the node.
    type: dict
    required: true
  requirements:
    description: The name of the file that the lock was made from.
    type: str
    default: ""
  digest:
    description: What decides the environment's content.
    type: str
    required: true
  wheels:
    description: >-
      The name of the folder in C(wheels) with what the controller has built, removed at the end; empty for none.
    type: str
    default: ""
  needs_torch:
    description: Packages whose build needs torch.
    type: list
    elements: str
    default: []
  torch_backend:
    description: The build of torch that uv looks for; V(none) for whatever the indexes have.
    type: str
    default: none
  tools:
    description: The lock of the product's own tools.
    type: str
    default: ""
  own_cache:
    description: Whether uv's cache is that of the account, and not C(cache) in the cluster directory.
    type: bool
    default: false
  cache_max_mb:
    description: If the cache has more than this, it is emptied. In MiB, without what environments share with it.
    type: int
    default: 20480
attributes:
  check_mode:
    support: full
    details: Says what would change.
  diff_mode:
    support: full
    details: Shows which packages change.
  platform:
    support: full
    platforms: linux
"""
