# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell which firewall of this machine has to let the peers in, and which of the cluster's rules it has."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.active_firewalls import runs_firewalld
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall import firewalld, iptables, nftables, ufw
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import Span
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.run_program import ask, find

PROGRAMS = {"firewalld": "firewall-cmd", "ufw": "ufw", "iptables": "iptables", "nftables": "nft"}
RESTORING = {"iptables": iptables.SCRIPT, "nftables": nftables.SCRIPT}
IDLE = {
    "firewalld": "does not run",
    "ufw": "is inactive",
    "iptables": "drops nothing by default",
    "nftables": "filters nothing",
}
ACTIVE = {"firewalld": "it runs", "ufw": "it is active", "iptables": "it drops by default", "nftables": "it filters"}


class Firewalls:
    """The firewalls of this machine, asked only when somebody wants to know."""

    def __init__(self) -> None:
        self.is_active = functools.cache(self._is_active)
        self._rule_sets = functools.cache(iptables.rule_sets)
        self.restored = [name for name, path in RESTORING.items() if os.path.exists(path)]

    def has(self, name: str) -> bool:
        """Return whether a firewall is installed."""
        return find(PROGRAMS[name]) is not None

    def _is_active(self, name: str) -> bool:
        """Return whether a firewall filters incoming packets now."""
        if name == "firewalld":
            return runs_firewalld() and ask("firewall-cmd", "--state") is not None
        if name == "ufw":
            is_loaded = any(ufw.CHAIN in chains for chains in self._rule_sets().values())
            return is_loaded and "Status: active" in (ask("ufw", "status") or "")
        if name == "iptables":
            return any(map(iptables.drops, self._rule_sets().values()))
        chains = ask("nft", "-j", "list", "chains")
        return chains is not None and nftables.filters(chains, iptables.nft_families(self._rule_sets()))

    def choose(self) -> tuple[str, str]:
        """Return the firewall to use, or "none", and why."""
        passed: list[str] = []
        for name in PROGRAMS:
            if self.has(name) and self.is_active(name):
                return name, f"{name}, because {ACTIVE[name]}{passed_over(passed)}"
            if self.has(name):
                passed.append(f"{name} {IDLE[name]}")
        # Its rules may only be out of force for the moment, and come back.
        if self.restored:
            return self.restored[0], f"{self.restored[0]}, because it was active before{passed_over(passed)}"
        return "none", f"none, because nothing filters incoming packets{passed_over(passed)}"

    def in_firewalld(self, is_chosen: bool, rules: Sequence[str]) -> firewalld.Differences:
        """Return what firewalld lacks and what it has too much."""
        if is_chosen or (self.has("firewalld") and self.is_active("firewalld")):
            return firewalld.compare(
                firewalld.parse_zones(ask("firewall-cmd", "--list-all-zones") or ""),
                firewalld.parse_zones(ask("firewall-cmd", "--permanent", "--list-all-zones") or ""),
                (ask("firewall-cmd", "--get-default-zone") or "").strip(),
                rules if is_chosen else [],
            )
        zones = ask("firewall-offline-cmd", "--list-all-zones") if firewalld.is_named_in_files() else None
        return firewalld.compare({}, firewalld.parse_zones(zones or ""), "", [])

    def in_ufw(self, sources: Sequence[str], ports: Sequence[Span]) -> ufw.Differences:
        """Return what ufw lacks and what it has too much."""
        numbered = (ask("ufw", "status", "numbered") or "") if sources else ""
        added = ask("ufw", "show", "added") if sources or ufw.is_named_in_files() else None
        return ufw.compare(added or "", numbered, sources, ports)

    def has_ipv6(self) -> bool:
        """Return whether ufw takes IPv6 rules."""
        defaults = Path(ufw.DEFAULTS)
        return ufw.has_ipv6(defaults.read_text("utf-8", "replace") if defaults.exists() else "")


def passed_over(reasons: list[str]) -> str:
    """Return why others were not chosen, in brackets."""
    return f" ({', '.join(reasons)})" if reasons else ""


def inspect_firewall(provider: str, sources: Sequence[str], ports: Sequence[Span]) -> dict[str, Any]:
    """Return which firewall lets the peers in, and which of the cluster's rules are missing or stale; change nothing.

    Args:
        provider: the firewall that is to let the peers in, or "auto", or "none".
        sources: networks that are to be let in.
        ports: to these ports.

    Returns:
        What modules/firewall_info describes as ``nodes``.

    Raises:
        Refusal: this account may not look, or the firewall does not run.
    """
    nothing: dict[str, list[Any]] = {"missing": [], "stale": []}
    if os.geteuid():
        if provider != "none":
            raise Refusal(
                "is used as an account that is not root, and only root may look at a firewall and change it; set "
                "ansible_become to true for it in the inventory, or firewall_provider to none and see to it yourself "
                "that its peers can connect"
            )
        return {"provider": "none", "msg": "no rules are wanted", "concerned": [], "firewalld": nothing, "ufw": nothing}
    here = Firewalls()
    is_auto = provider == "auto"
    if is_auto:
        provider, why = here.choose()
    else:
        why = f"{provider}, as firewall_provider says"
        if provider in ("firewalld", "ufw") and not here.is_active(provider):
            raise Refusal(
                f"has firewall_provider {provider}, but {provider} "
                f"{IDLE[provider] if here.has(provider) else 'is not installed'} there; start it, or set "
                "firewall_provider to auto in the inventory"
            )
    rules = firewalld.rules(sources, ports)
    if provider == "ufw" and not here.has_ipv6() and any(":" in source for source in sources):
        sources = [source for source in sources if ":" not in source]
        why += f"; IPv6 addresses are left out, because {ufw.DEFAULTS} has IPV6=no"
    found = {
        "firewalld": here.in_firewalld(provider == "firewalld", rules),
        "ufw": here.in_ufw(sources if provider == "ufw" else [], ports),
    }
    if is_auto and provider == "none":
        # It may have been stopped for a moment only.
        if resting := [name for name, differences in found.items() if differences["stale"]]:
            why += f"; the cluster's rules in {' and '.join(resting)} stay"
        found = dict.fromkeys(found, nothing)
    # The chosen one opens before the others close: a change of provider cuts no connection off. Those that have modules
    # of ours see for themselves whether there is something to do.
    differ = {name for name, differences in found.items() if differences["missing"] or differences["stale"]}
    to_see = differ | {*here.restored} | ({provider} & RESTORING.keys())
    concerned = [name for name in dict.fromkeys([provider, *PROGRAMS]) if name in to_see]
    return {"provider": provider, "msg": why, "concerned": concerned, **found}
