# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up what the roles need to know of this machine before they change it."""

from __future__ import annotations

import os
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.active_firewalls import managed_firewalls
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.cluster_directory import (
    require_open_to,
    require_usable,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import refuse_root, uid_of
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.machine import (
    locate_address,
    network_addresses,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.network_disks import (
    identity,
    network_disks,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import (
    EXIT_SECONDS,
    POLL_SECONDS,
    read_state,
    running_job,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import (
    check_port_range,
    ephemeral_ports,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import end_of_session
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import MOST_ADDRESSES, Reply, Request


def setup_facts(request: Request, _payload: bytes) -> tuple[Reply, bytes]:
    """Look, and change nothing; refuse a directory that setup has not made and may not have.

    Request: directory, user, address (or None), master_port (on the head, else None). Reply: address, interface,
    addresses (that one and what else a peer may see: the interface's others), port_range (first and last ephemeral
    port), folder (what two names of the directory have in common, on two nodes too), firewalls (those of firewalld and
    ufw that are active), session (see ``end_of_session``), uid and network_disks (as in ``preflight_facts``), job (id,
    user and start of the job that holds the node; None if none does).
    """
    refuse_root(request["user"], None)
    path = require_usable(request["directory"])
    if request["user"] and os.geteuid() == 0:
        require_open_to(path, request["user"])
    address, interface = locate_address(request["address"])
    if request["master_port"]:
        check_port_range(request["master_port"])
    others = [other for name, other, is_loopback in network_addresses() if name == interface and not is_loopback]
    addresses = list(dict.fromkeys([address, *others]))
    if len(addresses) > MOST_ADDRESSES:
        raise Refusal(
            f"has {len(addresses)} addresses on {interface}, and its peers' firewalls let in {MOST_ADDRESSES} at most; "
            "set cluster_address for it in the inventory to an address on an interface with fewer"
        )
    return {
        "address": address,
        "interface": interface,
        "addresses": addresses,
        "port_range": ephemeral_ports(),
        "folder": identity(path),
        "firewalls": managed_firewalls(),
        "session": end_of_session(),
        "uid": uid_of(request["user"]),
        "network_disks": network_disks(),
        "job": lasting_job(request["directory"]),
    }, b""


def lasting_job(directory: str) -> dict[str, str] | None:
    """Return the job that holds the node; of one that has ended, the supervisor gets time to exit.

    Raises:
        Refusal: this account may not read the jobs.
    """
    folder = os.path.join(directory, "jobs")
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise Refusal(
            f"cannot tell whether a job runs there: {folder} cannot be read ({why}); make it readable for the account "
            "that Ansible uses there"
        ) from None
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        job = running_job(directory)
        if not job or "ended" not in read_state(folder, job["id"]):
            return job
        if time.monotonic() > deadline:
            return job
        time.sleep(POLL_SECONDS)
