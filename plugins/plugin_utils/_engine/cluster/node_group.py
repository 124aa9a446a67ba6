# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Group nodes' settings with the way to open channels to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel


@dataclass(frozen=True)
class NodeGroup:
    """Nodes that can be asked.

    Attributes:
        settings: of each node, in inventory order.
        open_channel: gives a new channel to a host, by its inventory name.
    """

    settings: Sequence[NodeSettings]
    open_channel: Callable[[str], Channel]

    @property
    def hosts(self) -> list[str]:
        """The nodes' inventory names."""
        return [one.host for one in self.settings]

    def only(self, hosts: Collection[str]) -> NodeGroup:
        """Return those of these nodes that have one of these names."""
        return NodeGroup([one for one in self.settings if one.host in hosts], self.open_channel)

    def of(self, settings: Sequence[NodeSettings]) -> NodeGroup:
        """Return other nodes that are reached the same way."""
        return NodeGroup(settings, self.open_channel)
