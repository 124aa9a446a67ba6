# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What three healthy nodes say of themselves, to be made ill."""

import copy
import dataclasses
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import EXAMPLE
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import run_checks
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.job_code import Code
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import make_bundle

HOSTS = ("node0", "node1", "node2")
OPTIONS: dict[str, Any] = {
    **{name: about["default"] for name, about in run_checks.OPTIONS.items()},
    "devices": None,
}
SMI_FIELDS = [
    *("index", "name", "driver_version", "memory.total", "memory.used"),
    *("ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "remapped_rows.pending"),
    *("clocks_event_reasons.hw_thermal_slowdown", "clocks_event_reasons.sw_thermal_slowdown"),
    "clocks_event_reasons.hw_power_brake_slowdown",
]
A100 = "{index}, NVIDIA A100-SXM4-80GB, 550.54.15, 81920, 4, 0, [N/A], No, Not Active, Not Active, Not Active\n"
RTX = "{index}, NVIDIA GeForce RTX 3090, 550.54.15, 24576, 1, [N/A], [N/A], [N/A], Not Active, Not Active, Not Active\n"
PACKAGES = ["lightning_utilities-0.15.3", "pytorch_lightning-2.6.6", "torch-2.13.0+cpu", "typing_extensions-4.16.0"]
LOCK = """\
# pinned
pytorch-lightning==2.6.6
torch==2.13.0
Lightning.Utilities==0.15.3   # another spelling
typing-extensions == 4.16.0 \\
    --hash=sha256:00
async-timeout==5.0.1; python_version < "3.11"
"""


def facts(number: int) -> dict[str, Any]:
    """Return what a healthy node says."""
    address = f"198.18.0.1{number}"
    return {
        "clock": (-0.2, 0.3),
        "machine": ("0123", "boot", f"net:[{number}]"),
        "folder": f"boot 1:{number} ",
        "uid": 999,
        "session": "",
        "network_disks": [],
        "address": {"address": address, "interface": "eth0"},
        "addresses": [("lo", "127.0.0.1", True), ("eth0", address, False)],
        "free_port": 40001,
        "hostname": HOSTS[number],
        "resolved": [address],
        "node_env": {
            "MASTER_ADDR": "198.18.0.10",
            "MASTER_PORT": "29500",
            "NODE_RANK": str(number),
            "WORLD_SIZE": "3",
            "GLOO_SOCKET_IFNAME": "eth0",
            "NCCL_SOCKET_IFNAME": "=eth0",
        },
        "master": ["198.18.0.10"],
        "master_port": None,
        "job": None,
        "packages": {"python": "3.11", "installed": [*PACKAGES], "locked": LOCK},
        "environment": {
            **{"python": "3.11.2", "torch": "2.13.0+cpu", "cuda": None, "nccl": None},
            **{"devices": 0, "usable": False, "failed": {}},
        },
        "gpus": {"count": 0, "fields": SMI_FIELDS, "csv": "", "problem": ""},
        "cpus": 16,
        "memory": {"total": 64 * 10**9, "free": 60 * 10**9},
        "disk": {"free": 10**12, "files": 10**7},
        "shm": {"size": 32 * 10**9, "free": 32 * 10**9},
        "infiniband": False,
        "limits": {"nofile": 1048576, "memlock": -1},
    }


def healthy() -> ClusterFacts:
    """Return three healthy nodes without GPUs; each call gives new ones, which may be changed."""
    settings = [
        NodeSettings(host, f"198.18.0.1{number}", "/opt/thunderhead", 29500, "thunderhead", env={})
        for number, host in enumerate(HOSTS)
    ]
    return ClusterFacts(settings, {host: facts(number) for number, host in enumerate(HOSTS)}, HOSTS, dict(OPTIONS))


def with_gpus(count: int = 2, row: str = A100) -> ClusterFacts:
    """Return three healthy nodes with GPUs."""
    cluster = healthy()
    for host in HOSTS:
        say(cluster, host, gpus={"count": count, "csv": "".join(row.format(index=index) for index in range(count))})
        tried = {"torch": "2.13.0+cu128", "cuda": "12.8", "nccl": "2.27.3", "devices": count, "usable": True}
        say(cluster, host, environment=tried)
        packages = [name.replace("torch-2.13.0+cpu", "torch-2.13.0+cu128") for name in PACKAGES]
        say(cluster, host, packages={"installed": [*packages, "nvidia_nccl_cu12-2.27.3"]})
    return cluster


def say(cluster: ClusterFacts, host: str, **changes: Any) -> ClusterFacts:
    """Have a node say something else; a mapping is merged into what it said."""
    known: Any = cluster.facts[host]
    for name, value in changes.items():
        known[name] = {**known[name], **value} if isinstance(value, dict) and known[name] else copy.deepcopy(value)
    return cluster


def asked(cluster: ClusterFacts, **options: Any) -> ClusterFacts:
    """Return the cluster under other options."""
    return dataclasses.replace(cluster, options={**cluster.options, **options})


def running(cluster: ClusterFacts) -> ClusterFacts:
    """Return the cluster, asked to try what the example imports."""
    return dataclasses.replace(cluster, code=Code(EXAMPLE, make_bundle(EXAMPLE, "train.py", 1), "train.py"))


def judge(cluster: ClusterFacts) -> dict[str, Verdict]:
    """Return the verdicts of all checks that need only what the nodes said."""
    return {verdict.check: verdict for group in run_checks.LOOKING for verdict in group.checks(cluster)}
