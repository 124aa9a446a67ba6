# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Tell whether nftables itself filters, and not through iptables."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

SCRIPT = "/etc/thunderhead/nftables.sh"
TABLES_OF_IPTABLES = ("filter", "mangle", "security")


def filters(listing: str, by_iptables: Container[str]) -> bool:
    """Return whether a chain looks at incoming packets.

    Args:
        listing: what ``nft -j list chains`` prints.
        by_iptables: the families whose tables iptables-nft can list.
    """
    chains = [entry["chain"] for entry in json.loads(listing)["nftables"] if "chain" in entry]
    return any(
        (chain.get("type"), chain.get("hook")) == ("filter", "input")
        and chain["family"] in ("inet", "ip", "ip6")
        and not is_of_iptables(chain, by_iptables)
        for chain in chains
    )


def is_of_iptables(chain: dict[str, Any], by_iptables: Container[str]) -> bool:
    """Return whether iptables-nft takes a chain, an entry of ``nft -j``, for its own.

    It cannot list, nor change, one of that name whose rules were written with nft; then that is the administrator's.
    """
    return chain["family"] in by_iptables and chain["table"] in TABLES_OF_IPTABLES and chain["name"] == "INPUT"
