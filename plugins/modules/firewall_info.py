# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
# ruff: noqa: E402 (in a module the documentation comes first)
"""Which firewall of a node is to let the peers in, and what the firewalls have of the cluster's rules."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_info
short_description: Finds the firewall that is active on a node, and what it has and lacks of the cluster's rules
version_added: 0.1.0
description:
  - Reads, and changes nothing.
  - Active is what filters incoming packets now; what is installed and does not run is not. Of several, the one that
    manages the others is chosen, firewalld before ufw before iptables before nftables.
  - A firewall that is not chosen should have no rule of the cluster; any that it has is stale. Only where V(auto) finds
    none active they stay as they are, for it may have been stopped for a moment.
options:
  provider:
    description: The firewall that is to let the peers in. V(auto) chooses it; V(none) makes every rule stale.
    type: str
    choices: [auto, firewalld, ufw, iptables, nftables, none]
    default: auto
  peers:
    description: IPv4 and IPv6 addresses that may connect.
    type: list
    elements: str
    required: true
  ports:
    description: TCP ports (V(29500)) and ranges (V(32768-60999)) they may connect to.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
author: The Thunderhead developers
"""

EXAMPLES = r"""
- name: Look which firewall is active
  thunderhead.cluster.firewall_info:
    peers: [192.0.2.11, 2001:db8::11]
    ports: ["29500", "32768-60999"]
  register: firewall
"""

RETURN = r"""
provider:
  description: The firewall that is to let the peers in, or C(none).
  returned: success
  type: str
  sample: ufw
msg:
  description: What was chosen, and why.
  returned: success
  type: str
  sample: "ufw, for it is active (firewalld does not run)"
firewalld:
  description: The rich rules that are C(missing) and C(stale), each with its C(zone) and C(rule).
  returned: success
  type: dict
ufw:
  description:
    - The rules that are C(missing) and C(stale), each with its C(network) and C(ports).
    - What is missing has the C(position) at which it belongs, none where there is no other rule of its family.
  returned: success
  type: dict
restored:
  description: Those of iptables and nftables for which a file of the cluster restores rules.
  returned: success
  type: list
  elements: str
"""

import functools
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.firewalls import runs_firewalld
from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall import files as restoring
from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall import firewalld, iptables, nftables, ufw
from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall.opening import networks, required_spans
from ansible_collections.thunderhead.cluster.plugins.module_utils.firewall.programs import ask

PROGRAMS = {"firewalld": "firewall-cmd", "ufw": "ufw", "iptables": "iptables", "nftables": "nft"}
RESTORING = {"iptables": iptables.SCRIPT, "nftables": nftables.SCRIPT}
IDLE = {
    "firewalld": "does not run",
    "ufw": "is inactive",
    "iptables": "drops nothing by default",
    "nftables": "filters nothing",
}
ACTIVE = {"firewalld": "it runs", "ufw": "it is active", "iptables": "it drops by default", "nftables": "it filters"}


class Node:
    """The firewalls of this machine, asked only when somebody wants to know."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self.ask = functools.partial(ask, module)
        self.is_active = functools.cache(self._is_active)
        self._rule_sets = functools.cache(lambda: iptables.rule_sets(self.ask, module.get_bin_path))
        self.restored = [name for name, path in RESTORING.items() if os.path.exists(path)]

    def has(self, name: str) -> bool:
        """Return whether a firewall is installed."""
        return self._module.get_bin_path(PROGRAMS[name]) is not None

    def _is_active(self, name: str) -> bool:
        """Return whether a firewall filters incoming packets now."""
        if name == "firewalld":
            return runs_firewalld() and self.ask("firewall-cmd", "--state") is not None
        if name == "ufw":
            return "Status: active" in (self.ask("ufw", "status") or "")
        if name == "iptables":
            return any(map(iptables.drops, self._rule_sets().values()))
        chains = self.ask("nft", "-j", "list", "chains")
        return chains is not None and nftables.filters(chains, iptables.nft_families(self._rule_sets()))

    def choose(self) -> tuple[str, str]:
        """Return the firewall to speak to, or "none", and why."""
        passed: list[str] = []
        for name in PROGRAMS:
            if self.has(name) and self.is_active(name):
                return name, f"{name}, for {ACTIVE[name]}{passed_over(passed)}"
            if self.has(name):
                passed.append(f"{name} {IDLE[name]}")
        # Its rules may only be out of force for the moment, and come back.
        if self.restored:
            return self.restored[0], f"{self.restored[0]}, for it was active before{passed_over(passed)}"
        return "none", f"none, for nothing filters incoming packets{passed_over(passed)}"

    def in_firewalld(self, is_chosen: bool, rules: list[str]) -> firewalld.Differences:
        """Return what firewalld lacks and what it has too much."""
        if is_chosen or (self.has("firewalld") and self.is_active("firewalld")):
            return firewalld.compare(
                firewalld.parse_zones(self.ask("firewall-cmd", "--list-all-zones") or ""),
                firewalld.parse_zones(self.ask("firewall-cmd", "--permanent", "--list-all-zones") or ""),
                (self.ask("firewall-cmd", "--get-default-zone") or "").strip(),
                rules if is_chosen else [],
            )
        zones = self.ask("firewall-offline-cmd", "--list-all-zones") if firewalld.is_named_in_files() else None
        return firewalld.compare({}, firewalld.parse_zones(zones or ""), "", [])

    def in_ufw(self, sources: list[str], ports: list[tuple[int, int]]) -> ufw.Differences:
        """Return what ufw lacks and what it has too much."""
        numbered = (self.ask("ufw", "status", "numbered") or "") if sources else ""
        return ufw.compare(self.ask("ufw", "show", "added") or "", numbered, sources, ports)

    def speaks_ipv6(self) -> bool:
        """Return whether ufw takes IPv6 rules."""
        return ufw.speaks_ipv6(restoring.read([ufw.DEFAULTS])[ufw.DEFAULTS] or "")


def passed_over(reasons: list[str]) -> str:
    """Return why others were not chosen, in brackets."""
    return f" ({', '.join(reasons)})" if reasons else ""


def main() -> None:
    """Choose, compare, and say so."""
    module = AnsibleModule(
        argument_spec={
            "provider": {
                "type": "str",
                "choices": ["auto", "firewalld", "ufw", "iptables", "nftables", "none"],
                "default": "auto",
            },
            "peers": {"type": "list", "elements": "str", "required": True},
            "ports": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    provider = module.params["provider"]
    try:
        sources = networks(module.params["peers"])
        spans = required_spans(sources, module.params["ports"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    node = Node(module)
    nothing: dict[str, list[Any]] = {"missing": [], "stale": []}
    if os.geteuid():
        if provider != "none":
            module.fail_json(
                msg="The firewall can be seen and changed only as root; set ansible_become to true for this host in "
                "the inventory, or firewall_provider to none and see to it yourself that its peers can connect."
            )
        module.exit_json(provider="none", msg="no rules are wanted", firewalld=nothing, ufw=nothing, restored=[])
    is_auto = provider == "auto"
    if is_auto:
        provider, why = node.choose()
    else:
        why = f"{provider}, as firewall_provider says"
        if provider in ("firewalld", "ufw") and not node.is_active(provider):
            module.fail_json(
                msg=f"firewall_provider is {provider} for this host, but {provider} "
                f"{IDLE[provider] if node.has(provider) else 'is not installed'} there; start it, or set "
                "firewall_provider to auto in the inventory."
            )
    rules = firewalld.rules(sources, spans)
    if provider == "ufw" and not node.speaks_ipv6() and any(":" in source for source in sources):
        sources = [source for source in sources if ":" not in source]
        why += f"; IPv6 addresses are left out, for {ufw.DEFAULTS} has IPV6=no"
    found = {
        "firewalld": node.in_firewalld(provider == "firewalld", rules),
        "ufw": node.in_ufw(sources if provider == "ufw" else [], spans),
    }
    if is_auto and provider == "none":
        # It may have been stopped for a moment only.
        if resting := [name for name, differences in found.items() if differences["stale"]]:
            why += f"; the cluster's rules in {' and '.join(resting)} stay"
        found = dict.fromkeys(found, nothing)
    module.exit_json(provider=provider, msg=why, restored=node.restored, **found)


if __name__ == "__main__":
    main()
