# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What every command that starts or follows a job works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import OpenChannel
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import shown_lines


@dataclass(frozen=True)
class Desk:
    """The command's surroundings.

    Attributes:
        terminal: shows text at once, as it is.
        interrupts: what the user did to the playbook meanwhile.
        cluster: settings of all hosts of the cluster, in inventory order.
        hosts: those that take part.
        open_channel: gives a new channel to a host.
        members: all hosts of the cluster, in inventory order.
    """

    terminal: Callable[[str], None]
    interrupts: Interrupts
    cluster: Sequence[NodeSettings]
    hosts: Sequence[str]
    open_channel: OpenChannel
    members: Sequence[str] = ()

    def say(self, text: str) -> None:
        """Show text at once; what nodes have put into it does not act upon the terminal."""
        self.terminal(shown_lines(text))

    @property
    def settings(self) -> list[NodeSettings]:
        """Of the hosts that take part."""
        hosts = set(self.hosts)
        return [one for one in self.cluster if one.host in hosts]
