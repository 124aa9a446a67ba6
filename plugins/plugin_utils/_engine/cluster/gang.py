# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask and stop all nodes of one job together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel, NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.fan_out import fan_out

STOP_SECONDS = 15
"""What a stop may take besides the grace."""
DISCARD_SECONDS = 10
"""After this long without an answer a node counts as not released."""
UNDO_TRIES = 3
"""How often a node is asked to undo something before that has failed."""
UNDO_PAUSE_SECONDS = 1

Replies = dict[str, tuple[dict[str, Any], bytes]]


class Gang:
    """The nodes of one job, reachable."""

    def __init__(self, identity: Identity, nodes: NodeGroup, topology: Topology | None = None) -> None:
        """Keep what is needed; no node is reached yet.

        Args:
            identity: which job.
            nodes: those that take part, in rank order.
            topology: the nodes with their ranks and addresses; None as long as that is not known.
        """
        self.identity = identity
        self.settings = {one.host: one for one in nodes.settings}
        self.nodes = nodes
        self._topology = topology

    def ranked(self, topology: Topology) -> Gang:
        """Return the same nodes, with their ranks and addresses."""
        return Gang(self.identity, self.nodes, topology)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.identity.id

    @property
    def topology(self) -> Topology:
        """The nodes in rank order, known once the job is prepared."""
        if self._topology is None:
            raise RuntimeError("the job is not prepared yet")
        return self._topology

    def open(self, host: str) -> Channel:
        """Return a new channel to a host."""
        return self.nodes.open_channel(host)

    def request(self, op: str, receiver: str, /, **more: Any) -> dict[str, Any]:
        """Return a request to a host's agent with the fields that all of this job's requests have."""
        one = self.settings[receiver]
        return {"op": op, "directory": one.directory, "user": one.user, "job": asdict(self.identity), **more}

    def ask(
        self, op: str, timeout_seconds: float, hosts: Iterable[str] | None = None, payload: bytes = b"", **more: Any
    ) -> tuple[Replies, dict[str, NodeError]]:
        """Send a request to several nodes at once.

        Args:
            op: the operation.
            timeout_seconds: a node without an answer after this long counts as unreachable.
            hosts: which nodes; None means all.
            payload: what comes with the request.
            **more: further fields; a callable is called with the host.

        Returns:
            Replies with their payloads, and errors, by host in rank order.
        """

        def call(host: str) -> tuple[dict[str, Any], bytes]:
            fields = {name: value(host) if callable(value) else value for name, value in more.items()}
            return self.open(host).call(self.request(op, host, **fields), payload)

        chosen = self.settings if hosts is None else hosts
        return fan_out({host: host for host in chosen}, call, timeout_seconds)

    def discard(self, hosts: Iterable[str]) -> dict[str, NodeError]:
        """Undo the job's preparation where it has not started; return an error for each node that may still be held."""
        return self._until_done(lambda left: self.ask("discard", DISCARD_SECONDS, left)[1], hosts)

    def stop(
        self, grace_seconds: int, because: str = "", hosts: Iterable[str] | None = None
    ) -> tuple[Replies, dict[str, NodeError]]:
        """TERM on all nodes at the same moment, a grace, KILL; a rank that has ended already stays as it is.

        Args:
            grace_seconds: between TERM and KILL.
            because: why, for the nodes' records; "" for a stop on request.
            hosts: which nodes; None means all.

        Returns:
            Replies of the nodes where nothing of the job is left, and errors of the others: with ``left``, the ids of
            processes that cannot be ended, where that is why.
        """
        seconds = grace_seconds + STOP_SECONDS
        replies, errors = self.ask("stop", seconds, hosts, grace_seconds=grace_seconds, because=because)
        for host, (reply, _payload) in list(replies.items()):
            if reply["left"]:
                pids = ", ".join(map(str, reply["left"]))
                state = f"still runs processes of the job that cannot be ended: {pids}"
                errors[host] = NodeError(host, state, left=reply["left"])
                del replies[host]
        return replies, errors

    def end(self, grace_seconds: int, because: str = "") -> tuple[Replies, dict[str, NodeError]]:
        """Stop the job as ``stop`` does, and try again on a node that has the job and could not stop it."""
        done: Replies = {}

        def stop_once(hosts: Iterable[str]) -> dict[str, NodeError]:
            replies, errors = self.stop(grace_seconds, because, hosts)
            done.update(replies)
            return {host: error for host, error in errors.items() if not error.facts.get("gone")}

        errors = self._until_done(stop_once, self.settings)
        return {host: done[host] for host in self.settings if host in done}, errors

    def _until_done(
        self, send: Callable[[Iterable[str]], dict[str, NodeError]], hosts: Iterable[str]
    ) -> dict[str, NodeError]:
        """Send nodes a request, again to those where it failed; return the errors of those where it never succeeded."""
        for number in range(UNDO_TRIES):
            if number:
                time.sleep(UNDO_PAUSE_SECONDS)
            errors = send(hosts)
            hosts = [host for host in self.settings if host in errors]
            if not hosts:
                break
        return {host: errors[host] for host in hosts}
