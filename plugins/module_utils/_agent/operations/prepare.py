# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Prepare a job: check the node, lock it, unpack the code, and leave a supervisor that waits for the start."""

from __future__ import annotations

import os
import socket
import time

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.files import write_file
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.find_cluster_directory import require_ours
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_paths import (
    bundle_path,
    companion_path,
    job_directory,
    start_file_path,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.machine import (
    check_space,
    count_gpus,
    locate_address,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_facts import (
    packages,
    place_at_setup,
    raise_limits,
    shared_memory,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.node_lock import (
    lock_node,
    require_unlocked,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import end_leftovers
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.undo_prepare import (
    undo_earlier_try,
    undo_prepare,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.unpack import (
    decompress_bundle,
    store_bundle,
    unpack_bundle,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Reply, Request
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.fork_supervisor import (
    fork_supervisor,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import NodeFacts, Plan


def prepare(request: Request, payload: bytes) -> tuple[Reply, bytes]:
    """Check that the job can start here, hold the node for it, and lay out its directory.

    ``payload`` is the bundle, compressed, or nothing.

    Request: directory, user, job {id, user, start}, host (its name in the inventory: a hold for the same job and host
    is the request's own, whose reply was lost), address (or None), master_port (on the head, else None), plan (see
    ``Plan``; of a dry one None), bundle (its SHA-256), size (bytes, unpacked), dry (look only). Reply: address,
    interface, gpus, python, job_dir, start_file (starts the job when it appears), gang_port (0 on the only node),
    clock, packages, node_env (of it what ``place_at_setup`` returns), shm and limits (nofile) as in
    ``preflight_facts``, stale (a job that held the node until it crashed; absent if none) and has_bundle: if not, a
    ``receive_code`` must follow.
    """
    directory = request["directory"]
    python = os.path.join(directory, "env", "bin", "python")
    try:
        for path in (python, os.path.join(directory, "jobs", "")):
            os.stat(path)
    except PermissionError:
        raise Refusal(
            f"cannot be used by the account that Ansible works as there: {path} or a folder above it is closed to it; "
            "chmod it"
        ) from None
    except OSError:
        raise Refusal(
            f"is not set up: there is no {python if os.path.isdir(directory) else directory}; "
            "run: ansible-playbook setup.yml"
        ) from None
    require_ours(directory)
    user = User(request["user"])
    address, interface = locate_address(request["address"])
    if request["master_port"]:
        from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import check_port_range

        check_port_range(request["master_port"])
    check_space(directory, 2 * request["size"] + 2**24)
    reply = {
        "address": address,
        "interface": interface,
        "python": os.path.join(os.path.realpath(os.path.join(directory, "env")), "bin", "python"),
        "job_dir": job_directory(request),
        "start_file": start_file_path(request),
        "gpus": count_gpus(),
        "packages": packages(directory),
        "node_env": place_at_setup(directory),
        "shm": shared_memory(),
        "limits": {"nofile": raise_limits()},  # the supervisor inherits them
        "clock": (time.time(),) * 2,
        "has_bundle": False,
        "gang_port": 0,
    }
    if request["dry"]:
        require_unlocked(directory)
        check_master_port(request, user)
        return reply, b""
    is_new = bool(payload) and not os.path.exists(bundle_path(request))
    archive = decompress_bundle(request, payload) if is_new else b""  # a request that broke off undoes nothing
    undo_earlier_try(request)
    stale = lock_node(request)
    try:
        if stale:
            reply["stale"] = stale
            end_leftovers({**request, "job": stale})
        check_master_port(request, user)  # now that no job of ours can have it
        os.mkdir(job_directory(request), 0o700)
        if os.geteuid() == 0:
            os.chown(job_directory(request), user.uid, user.gid)
        if archive:
            store_bundle(request, archive)
        reply["has_bundle"] = os.path.exists(bundle_path(request))  # from now on nobody cleans it away
        if reply["has_bundle"]:
            unpack_bundle(request, user)
        plan = Plan(**request["plan"])
        write_companion(plan, job_directory(request), user)
        listener = listen(address) if plan.world_size > 1 else None
        if listener:
            reply["gang_port"] = listener.getsockname()[1]
        facts = NodeFacts(job_directory(request), str(reply["python"]), interface, count_gpus())
        fork_supervisor(request, user, listener, plan, facts)
    except BaseException:
        undo_prepare(request)
        raise
    return reply, b""


def write_companion(plan: Plan, job_dir: str, user: User) -> None:
    """Write what the job's own Python is to find."""
    with user.acting():
        for name, text in plan.companion.items():
            path = os.path.join(companion_path(job_dir), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, text.encode(), 0o644)


def check_master_port(request: Request, user: User) -> None:
    """Refuse to be the head where MASTER_PORT is taken."""
    if request["master_port"]:
        from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import check_port_free

        check_port_free(request["master_port"], user.uid)


def listen(address: str) -> socket.socket:
    """Return a socket at which the other nodes' supervisors find this one's, on a port of the system's choice."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(1024)
    return listener
