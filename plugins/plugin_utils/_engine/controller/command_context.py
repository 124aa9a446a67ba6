# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the context of a command: its terminal, interrupts and nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines


@dataclass(frozen=True)
class CommandContext:
    """A command's surroundings.

    Attributes:
        terminal: shows text at once, as it is.
        interrupts: what the user did to the playbook meanwhile.
        cluster: the nodes that the command may ask.
        hosts: names of those that take part.
        members: names of all hosts of the cluster, in inventory order.
    """

    terminal: Callable[[str], None]
    interrupts: Interrupts
    cluster: NodeGroup
    hosts: Sequence[str]
    members: Sequence[str] = ()

    def say(self, text: str) -> None:
        """Show text at once; what nodes have put into it does not act upon the terminal."""
        self.terminal(escape_lines(text))

    @property
    def nodes(self) -> NodeGroup:
        """The nodes that take part."""
        return self.cluster.only(self.hosts)
