# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the GPUs, for group *hardware*: what nvidia-smi and torch report."""

from __future__ import annotations

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.nvidia_smi import (
    Gpu,
    as_version,
    oldest_driver,
    parse,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import (
    all_nodes,
    describe_hosts,
    hosts_by_value,
)

NO_GPUS = "no node has an NVIDIA GPU: jobs run on the CPUs"


def _seen(cluster: ClusterFacts) -> dict[str, list[Gpu]]:
    return {host: parse(facts["gpus"]) for host, facts in cluster.facts.items()}


def has_gpus(cluster: ClusterFacts) -> bool:
    """Whether any node has a GPU, as far as kernel, driver or torch know."""
    return any(
        facts["gpus"]["count"] or facts["gpus"]["csv"] or facts["environment"].get("devices")
        for facts in cluster.facts.values()
    )


def alike(cluster: ClusterFacts) -> Verdict:
    """Compare the GPUs: every node starts as many ranks, and waits for the slowest model."""
    if not has_gpus(cluster):
        return Verdict("hardware.gpus", "ok", NO_GPUS)
    devices = cluster.options["devices"]
    wrong: dict[str, str] = {}
    have: dict[str, str] = {}
    counts: dict[str, int] = {}
    for host, found in _seen(cluster).items():
        facts = cluster.facts[host]
        by_driver = max(facts["gpus"]["count"], len(found))
        by_torch = facts["environment"].get("devices") if facts["environment"].get("cuda") else None
        if facts["gpus"]["problem"]:
            wrong[host] = f"cannot list its GPUs: {facts['gpus']['problem']}; check the NVIDIA driver there"
        elif by_torch is not None and by_torch != by_driver:
            wrong[host] = (
                f"has {pluralize(by_driver, 'GPU')} by its driver, but torch sees {by_torch}; look at `nvidia-smi -L` "
                "and CUDA_VISIBLE_DEVICES in job_env"
            )
        counts[host] = by_driver
        models = join_names(sorted({gpu.model for gpu in found})) or "GPU"
        have[host] = f"{by_driver} x {models}"
    short = [host for host, count in counts.items() if devices and count < devices]
    data = {"gpus": have}
    if wrong:
        return Verdict("hardware.gpus", "failed", describe_hosts(wrong), data)
    if short:
        sentence = (
            f"devices is {devices}, but {hosts_by_value({host: have[host] for host in short})}; lower -e devices="
        )
        return Verdict("hardware.gpus", "failed", f"{sentence}, or leave nodes out with --limit", data)
    if len(set(counts.values())) > 1 and not devices:
        sentence = (
            f"the nodes have {hosts_by_value(have)}, and every node must start as many ranks; set devices to what all "
            "have (-e devices=N, and in the script's Trainer), or leave nodes out with --limit"
        )
        return Verdict("hardware.gpus", "failed", sentence, data)
    kinds = {host: found.partition(" x ")[2] for host, found in have.items()}
    if len(set(kinds.values())) > 1:
        sentence = f"the nodes have different GPUs ({hosts_by_value(kinds)}), and each step waits for the slowest; "
        return Verdict("hardware.gpus", "warning", f"{sentence}group them with --limit where that matters", data)
    return Verdict("hardware.gpus", "ok", f"{next(iter(have.values()))} on {all_nodes(have)}", data)


def driver(cluster: ClusterFacts) -> Verdict:
    """See that the driver can run what was installed."""
    if not has_gpus(cluster):
        return Verdict("hardware.driver", "skipped", NO_GPUS)
    wrong: dict[str, str] = {}
    have = {}
    for host, found in _seen(cluster).items():
        tried = cluster.facts[host]["environment"]
        if not found or not tried.get("torch"):
            continue
        have[host] = found[0].driver
        cuda = tried["cuda"]
        oldest = oldest_driver(cuda) if cuda else None
        if not cuda:
            wrong[host] = (
                f"has GPUs, but a torch without CUDA ({tried['torch']}); set python_env_torch_backend to auto in the "
                "inventory, and run: ansible-playbook setup.yml"
            )
        elif oldest and as_version(found[0].driver) < oldest:
            needed = ".".join(map(str, oldest))
            wrong[host] = (
                f"has driver {found[0].driver}, but torch {tried['torch']} is built for CUDA {cuda}, which needs "
                f"{needed} or newer; update the driver there, or set python_env_torch_backend to an older CUDA"
            )
        elif not tried["usable"]:
            wrong[host] = (
                "has GPUs that torch cannot use (torch.cuda.is_available() is False); look at `nvidia-smi` and "
                "`dmesg` there"
            )
    if wrong:
        return Verdict("hardware.driver", "failed", describe_hosts(wrong), {"drivers": have})
    if not have:
        return Verdict("hardware.driver", "skipped", "what the drivers are could not be found out")
    return Verdict("hardware.driver", "ok", f"driver {hosts_by_value(have)}", {"drivers": have})


def health(cluster: ClusterFacts) -> Verdict:
    """Look for GPUs that compute wrongly or slowly."""
    if not has_gpus(cluster):
        return Verdict("hardware.gpu_health", "skipped", NO_GPUS)
    broken: dict[str, str] = {}
    slow: dict[str, str] = {}
    for host, found in _seen(cluster).items():
        ill = [f"GPU {gpu.index}: {gpu.ecc_errors} uncorrected memory errors" for gpu in found if gpu.ecc_errors]
        ill += [f"GPU {gpu.index}: memory that waits to be taken out of use" for gpu in found if gpu.pages_pending]
        if ill:
            broken[host] = f"has {join_names(ill)}"
        if hot := [f"GPU {gpu.index}: {', '.join(gpu.slowdowns)}" for gpu in found if gpu.slowdowns]:
            slow[host] = f"is slowed down ({join_names(hot)})"
    if broken:
        remedy = "reset the GPUs there (nvidia-smi --gpu-reset, or reboot), and replace those that err again"
        sentence = f"{describe_hosts(broken)}; {remedy}"
        return Verdict("hardware.gpu_health", "failed", sentence)
    if slow:
        remedy = "look at cooling and power there: nvidia-smi -q -d PERFORMANCE"
        sentence = f"{describe_hosts(slow)}, and every step waits for it; {remedy}"
        return Verdict("hardware.gpu_health", "warning", sentence)
    return Verdict("hardware.gpu_health", "ok", "no memory errors, nothing slows them down")


def memory(cluster: ClusterFacts) -> Verdict:
    """Look for memory in use where no job of ours runs."""
    if not has_gpus(cluster):
        return Verdict("hardware.gpu_memory", "skipped", NO_GPUS)
    limit = cluster.options["gpu_memory_max_mb"]
    taken = {}
    for host, found in _seen(cluster).items():
        full = [f"GPU {gpu.index}: {gpu.used_mb} of {gpu.total_mb} MiB" for gpu in found if (gpu.used_mb or 0) > limit]
        if full and not cluster.facts[host]["job"]:
            taken[host] = f"has GPU memory in use though no job runs ({join_names(full)})"
    if taken:
        sentence = f"{describe_hosts(taken)}; find the program with `nvidia-smi` there, and end it"
        return Verdict("hardware.gpu_memory", "warning", sentence)
    return Verdict("hardware.gpu_memory", "ok", "no other process uses the GPUs")
