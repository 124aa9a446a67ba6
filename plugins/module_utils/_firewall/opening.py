# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Describe who may connect to which ports: the one list that each firewall gets in its own format."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Union

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Span = tuple[int, int]

ARGUMENTS: dict[str, dict[str, object]] = {
    "peers": {"type": "list", "elements": "str"},
    "ports": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
"""The arguments of the modules that let peers in; described in plugins/doc_fragments/peers.py."""
REQUIRED_IF = [("state", "present", ["peers", "ports"])]
NAME = "thunderhead"
MULTIPORT = 15
"""A rule of iptables, and so of ufw, names no more ports; a range counts twice."""


def addresses(peers: Iterable[str]) -> list[Address]:
    """Return the peers once each, IPv4 before IPv6, in ascending order.

    Raises ValueError, in one sentence, for what is no address.
    """
    found = set()
    for peer in peers:
        try:
            found.add(ipaddress.ip_address(peer.replace("%", " ")))  # no zones: no firewall takes one
        except ValueError:
            raise ValueError(
                f"{peer!r} in peers is not an IPv4 or IPv6 address; name every peer by its address, without a prefix "
                "length or a zone (the role firewall takes them from firewall_peers)."
            ) from None
    return sorted(found, key=lambda address: (address.version, int(address)))


def networks(peers: Iterable[str]) -> list[str]:
    """Return the fewest networks that hold these peers and nobody else, a single address without a prefix length.

    Hundreds of nodes with neighbouring addresses come to a handful of rules. Raises what ``addresses`` does.
    """
    known = addresses(peers)
    four = [ipaddress.IPv4Network(address) for address in known if isinstance(address, ipaddress.IPv4Address)]
    six = [ipaddress.IPv6Network(address) for address in known if isinstance(address, ipaddress.IPv6Address)]
    covers: list[Network] = [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]
    return [str(cover.network_address if cover.num_addresses == 1 else cover) for cover in covers]


def spans(ports: Iterable[str]) -> list[Span]:
    """Return the first and the last port of each range in ascending order; ranges that overlap or touch become one.

    Raises ValueError, in one sentence, for what is neither a port nor a range of ports.
    """
    merged: list[Span] = []
    for low, high in sorted(map(port_range, ports)):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def port_range(port: str) -> Span:
    """Return the first and the last port of "29500" or "32768-60999"; raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", port)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 65535:
        raise ValueError(
            f"{port!r} in ports is neither a port nor an ascending range within 1-65535; write 29500 or 32768-60999 "
            "(the role firewall takes them from firewall_ports)."
        )
    return low, high


def required_spans(peers: Sequence[str], ports: Iterable[str]) -> list[Span]:
    """Return the ports; raises ValueError, in one sentence, where there are peers but no port."""
    found = spans(ports)
    if peers and not found:
        raise ValueError("ports is empty although there are peers; name the ports to open (firewall_ports).")
    return found


def written(span: Span, dash: str) -> str:
    """Return a port or a range as a firewall writes it."""
    low, high = span
    return str(low) if low == high else f"{low}{dash}{high}"


def multiports(ports: Iterable[Span]) -> list[str]:
    """Return lists of ports as iptables and ufw write them ("29500,32768:60999"), none longer than they take."""
    lists: list[list[Span]] = []
    room = 0
    for low, high in ports:
        size = 1 if low == high else 2
        if size > room:
            lists.append([])
            room = MULTIPORT
        lists[-1].append((low, high))
        room -= size
    return [",".join(written(span, ":") for span in group) for group in lists]
