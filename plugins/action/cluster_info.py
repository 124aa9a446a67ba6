# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rank the nodes and say what the roles need to know of each; run by setup.yml and teardown.yml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ansible.plugins.loader import module_loader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import ask_setup_facts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import require_hosts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller import role_settings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.cluster_action import (
    Arguments,
    ClusterAction,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.inventory import Inventory
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

MODULES = {"firewalld": "ansible.posix.firewalld", "ufw": "community.general.ufw"}
"""The modules of other collections with which the role firewall changes a firewall."""


class ActionModule(ClusterAction):
    """Looks at every node."""

    ARGUMENTS: ClassVar[Arguments] = {
        "roles": {
            "type": "list",
            "elements": "str",
            "choices": ["python_env", "firewall", "node_env"],
            "default": [],
        }
    }

    def act(self, arguments: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
        """Return what the hosts that take part look like."""
        require_hosts(inventory.cluster)
        cluster = inventory.nodes(inventory.cluster)
        hosts = {host: inventory.variables(host) for host in inventory.taking_part}
        role_settings.require_valid(arguments["roles"], hosts, inventory.resolve)
        found = ask_setup_facts.inspect_cluster(cluster, inventory.taking_part)
        for host, node in found["nodes"].items() if not found["on_loopback"] else ():  # else no firewall is changed
            require_collections(host, node["firewalls"], inventory.value(host, "firewall_provider", "auto"))
        return {"changed": False, **found}


def require_collections(host: str, active: Sequence[str], provider: str) -> None:
    """Raise JobError if the role firewall would end halfway because a collection is missing.

    Args:
        host: inventory name.
        active: firewalls that run or are enabled there, of those in MODULES.
        provider: which the inventory wants.
    """
    for firewall in active:
        collection = MODULES[firewall].rpartition(".")[0]
        if provider in ("auto", firewall) and not module_loader.find_plugin(MODULES[firewall]):
            raise JobError(
                f"{host} has {firewall}, which needs the collection {collection}, and this machine does not have it; "
                f"run: ansible-galaxy collection install {collection} (the package ansible has it, ansible-core has "
                "not), or set firewall_provider in the inventory. Nothing was changed on any node"
            )
