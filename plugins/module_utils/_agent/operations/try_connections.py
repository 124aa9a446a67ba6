# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Try to connect to all other nodes, while they do the same."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.connection_test import ConnectionTest


def try_connections(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Find out which other nodes this one can connect to, and which ones can connect to it.

    All nodes have to be asked at about the same time. Each listens, and connects to all others again and again until it
    succeeds or the time is over; both sides send their names. The one that connected then sends one packet as large as
    the connection takes, which no router may cut up: where those are lost, connections are made, and hang.

    Request: name (this node's), address and port (its own, to listen at), interface (that holds it), peers {host:
    [address, port]} (with or without this node), seconds, master (MASTER_PORT on the head, [address, port], to be tried
    too, or None) and head (the node that listens there for as long as this takes, or None where rank 0 does). Reply:

        failed   {host: "no answer", "refused", "no route", "only small packets", or what else went wrong}
        master   None if MASTER_PORT answers or was not asked for, else as in failed
        taken    why this node, the head, cannot listen at MASTER_PORT, or None
        trips    to a peer and back, in microseconds: the median, and {host: time} of the slowest
        mtu      the interface's, in bytes; None if that is not known
    """
    names = ("name", "address", "port", "interface", "peers", "seconds", "master", "head")
    test = ConnectionTest(job=request["job"]["id"], **{name: request[name] for name in names})
    return test.run(), b""
