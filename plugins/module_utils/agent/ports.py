# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A port of this machine for others to connect to, and what to say where one is taken."""

from __future__ import annotations

import errno
import socket

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, said, suppress


def free_port(but: int | None = None) -> int:
    """Return an ephemeral port, other than ``but``, that nothing on this node has; 0 if there is none.

    It is the system's choice: none of the reserved ones, and one that outgoing connections take last.
    """
    for family, wildcard in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        with suppress(OSError), socket.socket(family) as first, socket.socket(family) as second:
            for probe in (first, second):  # while the first has the one, the second gets another
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind((wildcard, 0))
                if probe.getsockname()[1] != but:
                    return int(probe.getsockname()[1])
    return 0


def cannot_listen(address: str, port: int, error: OSError, but: int | None = None) -> Refusal:
    """Return why nobody can listen there; the fact ``taken`` is another port than ``but`` if one would do, else 0."""
    return Refusal(
        f"cannot listen at {address}, port {port}: {said(error)}",
        taken=free_port(but) if error.errno == errno.EADDRINUSE else 0,
    )
