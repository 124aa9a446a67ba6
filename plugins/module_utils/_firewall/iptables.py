# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read what iptables lists, and tell what becomes of a packet that no rule names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.opening import Span, multiports
from ansible_collections.thunderhead.cluster.plugins.module_utils._firewall.run_program import ask, find

Chains = dict[str, list[str]]
"""Each chain's rules as `iptables -S` writes them after `-A CHAIN`, a built-in chain's policy as its last."""
CHAIN = "THUNDERHEAD"
JUMP = f"-j {CHAIN}"
SCRIPT = "/etc/thunderhead/iptables.sh"
TABLE_NAMES = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}

# A rule for everything, or for all of an interface, of TCP or of what is new: not one about some sender or port.
_FOR_ALL = re.compile(
    r"""(?:(?:![ ])?-i[ ]\S+[ ]|-p[ ]tcp[ ]
    |-m[ ]tcp[ ]--tcp-flags[ ]FIN,SYN,RST,ACK[ ]SYN[ ]
    |-m[ ](?:conntrack[ ]--ct|state[ ]--)state[ ](?:\w+,)*NEW(?:,\w+)*[ ]
    |-m[ ]comment[ ]--comment[ ](?:"(?:[^"\\]|\\.)*"|\S+)[ ]
    )*-(?:j|g)[ ](\S+)(?:[ ]--reject-with[ ]\S+)?""",
    re.VERBOSE,
)


def programs() -> list[str]:
    """Return the programs that show a set of rules of their own, IPv4 before IPv6.

    iptables is either iptables-nft or iptables-legacy under another name; both sets can be in force at once. The legacy
    programs are asked only where legacy tables exist, because asking makes them.
    """
    found = []
    for name, table_names in TABLE_NAMES.items():
        variants = [variant for variant in (f"{name}-nft", f"{name}-legacy") if find(variant)]
        if f"{name}-legacy" in variants and "filter" not in legacy_tables(table_names):
            variants.remove(f"{name}-legacy")
        found += variants or [name] * bool(find(name))
    return found


def legacy_tables(path: str) -> list[str]:
    """Return the legacy tables that exist; see ip_tables in the kernel's net/ipv4/netfilter."""
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def rule_sets() -> dict[str, Chains]:
    """Return each program's chains; one that cannot be asked (no IPv6, no rights) is left out."""
    listings = {program: ask(program, "--wait", "-S") for program in programs()}
    return {program: parse_chains(listing) for program, listing in listings.items() if listing is not None}


def nft_families(programs: Iterable[str]) -> set[str]:
    """Return the families, "ip" and "ip6", of which these programs show what iptables-nft holds, and can change it."""
    return {"ip6" if name.startswith("ip6") else "ip" for name in programs if not name.endswith("-legacy")}


def parse_chains(listing: str) -> Chains:
    """Return the chains of ``iptables -S`` and their rules, a built-in chain's policy as its last rule."""
    chains: Chains = {}
    policies = {}
    for line in listing.splitlines():
        option, chain, *rest = line.split(" ", 2)
        if option in ("-P", "-N"):
            chains.setdefault(chain, [])
        if option == "-P":
            policies[chain] = f"-j {rest[0]}"
        elif option == "-A":
            chains.setdefault(chain, []).extend(rest)
    for chain, policy in policies.items():
        chains[chain].append(policy)
    return chains


def drops(chains: Chains) -> bool:
    """Return whether a packet that no rule names is dropped or rejected on its way in."""
    return _fate(chains, (CHAIN, "INPUT")) in ("DROP", "REJECT")  # whatever is in the cluster's own chain


def _fate(chains: Chains, path: tuple[str, ...]) -> str:
    """Return the target at which the last chain of the path ends such a packet, or "" where it goes back."""
    for rule in chains.get(path[-1], []):
        match = _FOR_ALL.fullmatch(rule)
        target = match[1] if match else ""
        if target == "RETURN":
            return ""
        if target in chains and target not in path:
            target = _fate(chains, (*path, target))
        if target in ("DROP", "REJECT") or (target == "ACCEPT" and "-i " not in rule and "-p " not in rule):
            return target
    return ""


def rules(program: str, networks: Iterable[str], ports: Sequence[Span]) -> list[str]:
    """Return the rules of the cluster's chain as the program lists them, those of its own family."""
    is_six = program.startswith("ip6")
    return [
        f"-s {network if '/' in network else f'{network}/{128 if is_six else 32}'} -p tcp -m multiport "
        f"--dports {group} -j ACCEPT"
        for network in networks
        if (":" in network) is is_six
        for group in multiports(ports)
    ]
