# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *hardware*: the machines are alike, work, and have room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import format_bytes, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import gpus
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import (
    all_nodes,
    describe_hosts,
    hosts_by_value,
)

CHECKS = {
    "hardware.gpus": "driver and torch see the same GPUs, as many of one model on every node (or `devices` of them)",
    "hardware.driver": "NVIDIA's driver is new enough for torch's build, and torch can use the GPUs",
    "hardware.gpu_health": "no GPU has uncorrected memory errors, or is slowed down by heat or its power supply",
    "hardware.gpu_memory": "no other program holds the GPUs' memory",
    "hardware.cpus": "no node has less than half as many CPUs as another",
    "hardware.memory": "there is memory free (`preflight_memory_min_mb`), and no node has less than half of another's",
    "hardware.disk": "`cluster_dir` has room (`preflight_disk_min_mb`) and free inodes",
    "hardware.shm": "/dev/shm, by which data loader workers hand over batches, is large (`preflight_shm_min_mb`)",
    "hardware.nofile": "a job may open enough files (`preflight_nofile_min`)",
    "hardware.memlock": "with GPUs or InfiniBand: a job may lock memory without limit, as NCCL does",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "devices": {"type": "str", "default": "auto"},
    "gpu_memory_max_mb": {"type": "int", "default": 1024},
    "memory_min_mb": {"type": "int", "default": 1024},
    "disk_min_mb": {"type": "int", "default": 2048},
    "shm_min_mb": {"type": "int", "default": 256},
    "nofile_min": {"type": "int", "default": 4096},
}
MEGABYTE = 10**6


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Judge the machines."""
    return make_checks(
        cluster,
        {
            "hardware.gpus": gpus.alike,
            "hardware.driver": gpus.driver,
            "hardware.gpu_health": gpus.health,
            "hardware.gpu_memory": gpus.memory,
            "hardware.cpus": cpus,
            "hardware.memory": memory,
            "hardware.disk": disk,
            "hardware.shm": shm,
            "hardware.nofile": nofile,
            "hardware.memlock": memlock,
        },
    )


def _verdict(check: str, wrong: Mapping[str, str], remedy: str, fine: str, data: Mapping[str, Any]) -> Verdict:
    """Return "node1 has X; remedy", or that all is fine."""
    if wrong:
        return Verdict(check, "failed", f"{describe_hosts(wrong)}; {remedy}", data)
    return Verdict(check, "ok", fine, data)


def _uneven(found: Mapping[str, int], describe: Callable[[int], str]) -> dict[str, str]:
    """Return the hosts that have less than half of what the best has."""
    most = max(found.values(), default=0)
    return {
        host: f"has {describe(count)}, another {describe(most)}" for host, count in found.items() if 2 * count < most
    }


def cpus(cluster: ClusterFacts) -> Verdict:
    """Compare the CPUs."""
    found = {host: facts["cpus"] for host, facts in cluster.facts.items()}
    few = _uneven(found, lambda count: pluralize(count, "CPU"))
    if few:
        sentence = (
            f"{describe_hosts(few)}, and every step waits for the slowest; give it more, or leave it out with --limit"
        )
        return Verdict("hardware.cpus", "warning", sentence, {"cpus": found})
    texts = {host: pluralize(count, "CPU") for host, count in found.items()}
    return Verdict("hardware.cpus", "ok", hosts_by_value(texts), {"cpus": found})


def memory(cluster: ClusterFacts) -> Verdict:
    """See that there is memory, and compare it."""
    totals = {host: facts["memory"]["total"] for host, facts in cluster.facts.items()}
    least = cluster.options["memory_min_mb"] * MEGABYTE
    short = {
        host: f"has {format_bytes(facts['memory']['free'])} of memory free"
        for host, facts in cluster.facts.items()
        if facts["memory"]["free"] < least and not facts["job"]
    }
    data = {"bytes": totals}
    if short:
        sentence = (
            f"{describe_hosts(short)}, and with less than {format_bytes(least)} (preflight_memory_min_mb) a job is "
            "likely to be killed because memory runs out; end other programs there"
        )
        return Verdict("hardware.memory", "failed", sentence, data)
    few = _uneven(totals, lambda count: f"{format_bytes(count)} of memory")
    if few:
        sentence = (
            f"{describe_hosts(few)}, and the same batch has to fit everywhere; choose it for the smallest, or use "
            "--limit"
        )
        return Verdict("hardware.memory", "warning", sentence, data)
    return Verdict(
        "hardware.memory", "ok", f"{format_bytes(min(totals.values()))} or more on {all_nodes(totals)}", data
    )


def disk(cluster: ClusterFacts) -> Verdict:
    """See that there is room for code, checkpoints and logs."""
    least = cluster.options["disk_min_mb"] * MEGABYTE
    free = {host: facts["disk"]["free"] for host, facts in cluster.facts.items()}
    wrong = {}
    for one in cluster.settings:
        if one.host not in cluster.facts:
            continue
        room = cluster.facts[one.host]["disk"]
        if room["free"] < least:
            wrong[one.host] = f"has {format_bytes(room['free'])} free in {one.directory}"
        elif room["files"] == 0:
            wrong[one.host] = f"has no free inodes in {one.directory}"
    return _verdict(
        "hardware.disk",
        wrong,
        f"checkpoints and logs need {format_bytes(least)} (preflight_disk_min_mb): run ansible-playbook clean.yml to "
        "remove old jobs, free some space there, or move cluster_dir to a larger disk",
        f"{format_bytes(min(free.values(), default=0))} or more free in cluster_dir on {all_nodes(cluster.facts)}",
        {"bytes_free": free},
    )


def shm(cluster: ClusterFacts) -> Verdict:
    """See that data loader workers have room for their batches."""
    least = cluster.options["shm_min_mb"] * MEGABYTE
    sizes = {host: facts["shm"]["size"] for host, facts in cluster.facts.items()}
    return _verdict(
        "hardware.shm",
        {host: f"has {format_bytes(size)} of /dev/shm" for host, size in sizes.items() if size < least},
        f"DataLoader workers die of too little ('bus error'), {format_bytes(least)} is the least "
        "(preflight_shm_min_mb); enlarge it: docker run --shm-size=8g for containers, else mount -o remount,size=50% "
        "/dev/shm",
        f"{format_bytes(min(sizes.values()))} or more of /dev/shm on {all_nodes(sizes)}",
        {"bytes": sizes},
    )


def nofile(cluster: ClusterFacts) -> Verdict:
    """See that a job may have enough connections and data loader workers."""
    least = cluster.options["nofile_min"]
    limits = {host: facts["limits"]["nofile"] for host, facts in cluster.facts.items()}
    return _verdict(
        "hardware.nofile",
        {host: f"lets a job open {limit} files" for host, limit in limits.items() if 0 <= limit < least},
        f"sockets and data loader workers need {least} (preflight_nofile_min); raise nofile for the account in "
        "/etc/security/limits.d/, or LimitNOFILE of the SSH service, and log in again",
        f"jobs may open enough files on {all_nodes(limits)}",
        {"nofile": limits},
    )


def memlock(cluster: ClusterFacts) -> Verdict:
    """See that NCCL may pin memory."""
    if not gpus.has_gpus(cluster) and not any(facts["infiniband"] for facts in cluster.facts.values()):
        return Verdict("hardware.memlock", "ok", "no GPU and no InfiniBand: nothing locks memory")
    limits = {host: facts["limits"]["memlock"] for host, facts in cluster.facts.items()}
    low = {host: f"lets a job lock {format_bytes(limit)} of memory" for host, limit in limits.items() if limit >= 0}
    if low:
        sentence = (
            f"{describe_hosts(low)}, but NCCL pins more (over InfiniBand it fails without); set memlock to unlimited "
            "for the account in /etc/security/limits.d/, or let Ansible become root, which raises it by itself"
        )
        return Verdict("hardware.memlock", "warning", sentence, {"memlock": limits})
    return Verdict("hardware.memlock", "ok", f"no limit on {all_nodes(limits)}", {"memlock": limits})
