# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Whether somebody filters with nftables itself, and not through iptables."""

from __future__ import annotations

import json

SCRIPT = "/etc/thunderhead/nftables.sh"


def filters(listing: str, iptables: bool) -> bool:
    """Return whether a chain looks at incoming packets.

    Args:
        listing: what ``nft -j list chains`` prints.
        iptables: whether that program is installed; it takes a table with a chain INPUT for its own.
    """
    chains = [entry["chain"] for entry in json.loads(listing)["nftables"] if "chain" in entry]
    return any(
        (chain.get("type"), chain.get("hook")) == ("filter", "input")
        and chain["family"] in ("inet", "ip", "ip6")
        and not (iptables and chain["name"] == "INPUT" and chain["family"] != "inet")
        for chain in chains
    )
