# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
r"""Answer the controller's requests on a node.

The agent is never installed. With every request the controller sends the modules that this request needs
(``plugin_utils/_engine/transport/payload.py``), so it is never out of date; only the standard library of Python 3.9 or
newer is needed. One request, one reply:

    standard input   a line with the number of bytes of ``bootstrap``, and its text; a line with the number of bytes of
                     the modules and of the request; the modules (JSON, names to source texts, compressed by zlib); the
                     request (JSON); the payload
    standard output  a line ``MARK <bytes> <bytes>``; the reply (JSON) and its payload, of so many bytes

Each module of ``operations`` answers the requests of its name with its function of that name. ``contract`` is what both
sides share, ``base`` what the operations have in common.

``prepare`` leaves one process behind, the supervisor (``supervisor``): it locks the node for the job, waits for the
start, is the parent of the job's processes until the last has ended, and decides with the other nodes' supervisors when
the job ends (docs/gang.md). It is a fork of the agent, so nothing is written to the node and no second interpreter has
to start.
"""
