# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each check of the preflight that judges what the nodes said: a healthy cluster, and one defect at a time."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import (
    clocks,
    inventory,
    prepared_nodes,
    run_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import ClusterFacts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.software import NO_TORCH
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import (
    NodeError,
    Unreachable,
)
from preflight_clusters import A100, HOSTS, PACKAGES, RTX, asked, healthy, judge, running, say, with_gpus

ROOT = Path(__file__).parents[3]
CRASH = "was killed by SIGSEGV"
NO_WANDB = "ModuleNotFoundError: No module named 'wandb'"

Defect = Callable[[], ClusterFacts]
LOOKED_AT = {name for group in run_checks.LOOKING for name in group.CHECKS}


def said(host: str, **changes: Any) -> Defect:
    return lambda: say(healthy(), host, **changes)


def said_with_gpus(host: str, **changes: Any) -> Defect:
    return lambda: say(with_gpus(), host, **changes)


def by_design(cluster: ClusterFacts) -> ClusterFacts:
    """All nodes on one machine, in folders of their own, as in inventory/local."""
    for number, host in enumerate(HOSTS):
        address = f"127.0.0.{number + 1}"
        say(cluster, host, machine=("id", "boot", "net:[1]"), address={"address": address, "interface": "lo"})
        say(cluster, host, resolved=["127.0.0.1"], addresses=[("lo", "127.0.0.1", True)], master=["127.0.0.1"])
        say(cluster, host, node_env={"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"})
    settings = [
        dataclasses.replace(one, address=f"127.0.0.{number + 1}", directory=f"/home/me/{one.host}")
        for number, one in enumerate(cluster.settings)
    ]
    return dataclasses.replace(cluster, settings=settings)


HEALTHY: dict[str, Defect] = {
    "cpu": healthy,
    "gpu": with_gpus,
    "consumer-gpu": lambda: with_gpus(1, RTX),
    "local": lambda: by_design(healthy()),
    "never-pinned-but-resolves": said("node1", node_env={"GLOO_SOCKET_IFNAME": ""}),
    "no-own-name-but-pinned": said("node1", resolved=[]),
    "nccl-prefix": said("node1", node_env={"NCCL_SOCKET_IFNAME": "ib,eth"}),
    "nccl-exclusion": said("node1", node_env={"NCCL_SOCKET_IFNAME": "^docker,lo"}),
    "another-network": said(
        "node1",
        addresses=[("eth0", "198.18.0.11", False), ("ib0", "198.19.0.11", False)],
        node_env={"NCCL_SOCKET_IFNAME": "=ib0", "GLOO_SOCKET_IFNAME": "ib0"},
    ),
    "far-away": said("node1", clock=(-1.9, 4.0)),
    "slow-to-answer": said("node2", clock=(-9.0, 9.0)),
    "script": lambda: running(healthy()),
    "fewer-devices": lambda: asked(
        say(with_gpus(), "node1", gpus={"count": 1, "csv": A100.format(index=0)}, environment={"devices": 1}), devices=1
    ),
    "job-on-the-gpus": said_with_gpus(
        "node0",
        gpus={"csv": A100.replace(", 4,", ", 70000,").format(index=0) * 2},
        job={"id": "j", "user": "u", "start": "s"},
    ),
    "job-on-master-port": said(
        "node0",
        job={"id": "20261122-173000-train-9f3a", "user": "me", "start": "2026-11-22T17:30:00+01:00"},
        master_port={"problem": "cannot be the head: …", "by_job": True},
    ),
    "limited": lambda: dataclasses.replace(
        healthy(),
        settings=healthy().settings[:2],
        facts={host: facts for host, facts in healthy().facts.items() if host != "node2"},
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm(name: str) -> None:
    verdicts = judge(HEALTHY[name]())
    assert [verdict for verdict in verdicts.values() if verdict.status in ("failed", "warning")] == []
    assert set(verdicts) | {"inventory.group", "inventory.reachable"} == LOOKED_AT


DEFECTS: dict[str, tuple[Defect, str, str, str]] = {
    "same-address": (
        lambda: dataclasses.replace(
            healthy(), settings=[dataclasses.replace(one, address="198.18.0.10") for one in healthy().settings]
        ),
        *("inventory.duplicates", "failed"),
        "node0, node1, node2 have the same address 198.18.0.10, but every node needs its own; fix ansible_host or "
        "cluster_address in the inventory, or remove one of them",
    ),
    "two-names": (
        said("node2", machine=("0123", "boot", "net:[1]"), folder="boot 1:1 "),
        *("inventory.machines", "failed"),
        "node1, node2 are the same machine under several names; remove all but one from the inventory; if "
        "several nodes "
        "on one machine are meant, give each its own cluster_address and cluster_dir",
    ),
    "shared-folder": (
        said("node2", folder="boot 1:1 "),
        *("inventory.machines", "failed"),
        "node1, node2 have the same cluster_dir, on a disk that they share, and a node's holds one job at a time; set "
        "cluster_dir in the inventory to a folder on a local disk, or to one per host that ends with /{{ "
        "inventory_hostname }}",
    ),
    "other-uid": (
        lambda: say(
            say(healthy(), "node0", uid=1001, network_disks=["nfs4 nas:/home"]),
            "node2",
            network_disks=["nfs4 nas:/home"],
        ),
        *("inventory.accounts", "warning"),
        "the account that jobs run as has uid 1001 (node0), 999 (node2), and these nodes share a disk (nfs4 nas:/home"
        "): what one of them writes there, the others may not change; give it the same uid everywhere (usermod --uid), "
        "or set job_user in the inventory to an account that has one",
    ),
    "session-ends": (
        said("node1", session="ends every process of me with its last SSH session; ask"),
        *("inventory.sessions", "warning"),
        "node1 ends every process of me with its last SSH session; ask",
    ),
    "foreign-address": (
        lambda: foreign_address(),
        *("inventory.address", "failed"),
        "node1 does not hold the address 198.18.0.99 on any interface (it has: 198.18.0.11 (eth0)); set "
        "cluster_address",
    ),
    "loopback": (
        said("node0", address={"address": "127.0.0.1", "interface": "lo"}),
        *("inventory.address", "failed"),
        "node0 has a loopback address, which other machines cannot reach; set cluster_address in the "
        "inventory to the one",
    ),
    "stale-ranks": (
        said("node2", node_env={"NODE_RANK": "1", "WORLD_SIZE": "2"}),
        *("inventory.ranks", "failed"),
        "node2 was set up as rank 1 of 2, but the inventory has 3 hosts now, or in another order: node.env and the "
        "firewalls are of an earlier one; run: ansible-playbook setup.yml",
    ),
    "port-taken": (
        said(
            "node0",
            master_port={
                "problem": "cannot be the head: MASTER_PORT 29500 is taken by nginx (process 7); end it",
                "by_job": False,
            },
        ),
        *("inventory.master_port", "failed"),
        "node0 cannot be the head: MASTER_PORT 29500 is taken by nginx (process 7); end it",
    ),
    "hostname": (
        said("node1", resolved=["127.0.1.1"], node_env={"GLOO_SOCKET_IFNAME": ""}),
        *("names.hostname", "failed"),
        "node1 resolves its own name to 127.0.1.1, so that gloo announces no address that its peers can "
        "reach, and hangs; "
        "pin the interface in node.env (run: ansible-playbook setup.yml), or take the name off the 127.0.x.x line",
    ),
    "hostname-never-set-up": (
        lambda: without_node_env("node1", resolved=[]),
        *("names.hostname", "failed"),
        "node1 finds no address for its own name, so that gloo",
    ),
    "hostname-pinned": (
        lambda: say(say(healthy(), "node1", resolved=["127.0.1.1"]), "node2", resolved=["127.0.1.1", "198.18.0.12"]),
        *("names.hostname", "warning"),
        "each of node1, node2 resolves its own name to 127.0.1.1; jobs are safe from it, because "
        "GLOO_SOCKET_IFNAME pins the "
        "interface, but a script started by hand would hang; take the name off the 127.0.x.x line of /etc/hosts there",
    ),
    "wrong-interface": (
        said("node1", node_env={"NCCL_SOCKET_IFNAME": "=ib0"}),
        *("names.interface", "failed"),
        "node1 has NCCL_SOCKET_IFNAME==ib0, but no such interface with an address; correct job_env in the inventory",
    ),
    "master-elsewhere": (
        said("node2", master=["203.0.113.5"]),
        *("names.master", "failed"),
        "MASTER_ADDR leads to 198.18.0.10 (node0, node1), 203.0.113.5 (node2); it should be 198.18.0.10, the head's, "
        "everywhere: node.env is of an earlier inventory; run: ansible-playbook setup.yml",
    ),
    "mixed-families": (
        said("node2", address={"address": "2001:2::1", "interface": "eth0"}),
        *("names.family", "failed"),
        "the nodes' addresses are IPv4 (node0, node1), IPv6 (node2), and gloo does not mix them; set "
        "cluster_address of "
        "node2 in the inventory to one of the others' kind",
    ),
    "unreadable": (
        lambda: replaced("node1", environment={"problem": "has an environment that … may not use; chmod it"}),
        *("software.environment", "failed"),
        "node1 has an environment that … may not use; chmod it",
    ),
    "broken-torch": (
        said("node1", environment={"torch": None, "failed": {"torch": "OSError: libgomp.so.1: cannot open"}}),
        *("software.environment", "failed"),
        "node1 cannot import torch: OSError: libgomp.so.1: cannot open; remove envs in the cluster_dir there, and "
        "run: ansible-playbook setup.yml",
    ),
    "vanished-torch": (
        said("node1", environment={"torch": None, "failed": {"torch": NO_TORCH}}),
        *("software.environment", "failed"),
        f"node1 cannot import torch: {NO_TORCH}; remove envs in the cluster_dir there, and run: "
        "ansible-playbook setup.yml",
    ),
    "never-torch": (
        said(
            "node1",
            environment={"torch": None, "failed": {"torch": NO_TORCH}},
            packages={"installed": ["numpy-2.4.0"]},
        ),
        *("software.environment", "failed"),
        f"node1 cannot import torch: {NO_TORCH}; add torch to the requirements (python_env_requirements), and run: "
        "ansible-playbook setup.yml",
    ),
    "other-torch": (
        said("node2", packages={"installed": ["torch-2.12.1+cpu", "pytorch_lightning-2.6.6"]}),
        *("software.versions", "failed"),
        "torch is 2.13.0+cpu (node0, node1), 2.12.1+cpu (node2), but nodes that train together need the "
        "same; on the odd "
        "ones remove envs in the cluster_dir, and run: ansible-playbook setup.yml",
    ),
    "other-python": (
        said("node0", packages={"python": "3.12"}),
        *("software.versions", "failed"),
        "Python is 3.11 (node1, node2), 3.12 (node0), but",
    ),
    "other-cuda": (
        said_with_gpus("node0", environment={"cuda": "12.6"}),
        *("software.versions", "failed"),
        "torch's CUDA is 12.8 (node1, node2), 12.6 (node0), but",
    ),
    "other-nccl": (
        said_with_gpus("node0", packages={"installed": ["torch-2.13.0+cu128", "nvidia_nccl_cu12-2.26.2"]}),
        *("software.versions", "failed"),
        "pytorch-lightning is 2.6.6 (node1, node2), none (node0); nvidia-nccl-cu12 is 2.27.3 (node1, node2), "
        "2.26.2 (node0)",
    ),
    "other-packages": (
        said("node1", packages={"installed": [*PACKAGES[:-1], "typing_extensions-4.15.0", "wandb-0.22.0"]}),
        *("software.packages", "warning"),
        "the nodes' environments differ (typing-extensions is 4.16.0 (node0, node2), 4.15.0 (node1); wandb is none "
        "(node0, node2), 0.22.0 (node1)), as those of two setups with different requirements; run: ansible-playbook "
        "setup.yml",
    ),
    "many-other-packages": (
        said("node1", packages={"installed": [*PACKAGES, *(f"package{number}-1" for number in range(9))]}),
        *("software.packages", "warning"),
        "the nodes' environments differ (package0 is none (node0, node2), 1 (node1); package1 is none (node0, node2), "
        "1 (node1); package2 is none (node0, node2), 1 (node1); and so on for 6 more), as those of two setups",
    ),
    "not-as-locked": (
        said("node1", packages={"installed": ["torch-2.13.0+cpu", "pytorch_lightning-2.6.1"]}),
        *("software.lock", "failed"),
        "node1 has pytorch-lightning 2.6.1 (should be 2.6.6), no lightning-utilities (should be 0.15.3), "
        "no typing-extensions (should be 4.16.0): the environment was changed after setup; remove envs in the "
        "cluster_dir there, and run: ansible-playbook setup.yml",
    ),
    "other-lock": (
        said("node1", packages={"locked": "torch==2.13.0\n"}),
        *("software.lock", "failed"),
        "the nodes were set up with different requirements: 5 pinned packages (node0, node2), 1 pinned package (node1)",
    ),
    "missing-import": (
        lambda: running(say(healthy(), "node2", environment={"failed": {"model.py, line 3": NO_WANDB}})),
        *("software.imports", "failed"),
        "node2 cannot import what model.py, line 3 asks for (ModuleNotFoundError: No module named 'wandb'); add what "
        "is missing to what python_env_requirements names, and run: ansible-playbook setup.yml",
    ),
    "crashing-import": (
        lambda: running(say(healthy(), "node2", environment={"failed": {"train.py, line 9": CRASH}})),
        *("software.imports", "failed"),
        "node2 cannot import what train.py, line 9 asks for (was killed by SIGSEGV); look at train.py, line 9, or move "
        "the import to where it is needed",
    ),
    "missing-and-crashing-imports": (
        lambda: running(say(healthy(), "node2", environment={"failed": {"a.py": NO_WANDB, "b.py": CRASH}})),
        *("software.imports", "failed"),
        "node2 cannot import what a.py asks for (ModuleNotFoundError: No module named 'wandb'), what b.py asks for "
        "(was killed by SIGSEGV); look at b.py, or move the import to where it is needed; add what is missing to "
        "what python_env_requirements names, and run: ansible-playbook setup.yml",
    ),
    "import-from-elsewhere-in-the-project": (
        lambda: running(say(healthy(), "node2", environment={"failed": {"a.py": "No module named 'train'"}})),
        *("software.imports", "failed"),
        "node2 cannot import what a.py asks for (No module named 'train'; train.py lies in the project, where Python "
        'does not look for it; add -e \'{"env": {"PYTHONPATH": "."}}\')',
    ),
    "fewer-gpus": (
        said_with_gpus("node1", gpus={"count": 1, "csv": A100.format(index=0)}, environment={"devices": 1}),
        *("hardware.gpus", "failed"),
        "the nodes have 2 x NVIDIA A100-SXM4-80GB (node0, node2), 1 x NVIDIA A100-SXM4-80GB (node1), and "
        "every node must "
        "start as many ranks; set devices to what all have",
    ),
    "too-many-devices": (
        lambda: asked(with_gpus(), devices=4),
        *("hardware.gpus", "failed"),
        "devices is 4, but 2 x NVIDIA A100-SXM4-80GB (node0, node1, node2); lower -e devices=",
    ),
    "hidden-gpus": (
        said_with_gpus("node1", environment={"devices": 1}),
        *("hardware.gpus", "failed"),
        "node1 has 2 GPUs by its driver, but torch sees 1; look at `nvidia-smi -L` and CUDA_VISIBLE_DEVICES in job_env",
    ),
    "dead-driver": (
        said_with_gpus("node1", gpus={"csv": "", "problem": "nvidia-smi fails: No devices were found"}),
        *("hardware.gpus", "failed"),
        "node1 cannot list its GPUs: nvidia-smi fails: No devices were found; check the NVIDIA driver there",
    ),
    "other-model": (
        said_with_gpus("node1", gpus={"csv": "".join(RTX.format(index=index) for index in range(2))}),
        *("hardware.gpus", "warning"),
        "the nodes have different GPUs (NVIDIA A100-SXM4-80GB (node0, node2), NVIDIA GeForce RTX 3090 "
        "(node1)), and each "
        "step waits for the slowest",
    ),
    "old-driver": (
        said_with_gpus("node1", gpus={"csv": A100.replace("550.54.15", "470.82.01").format(index=0) * 2}),
        *("hardware.driver", "failed"),
        "node1 has driver 470.82.01, but torch 2.13.0+cu128 is built for CUDA 12.8, which needs 525.60.13 or "
        "newer; update",
    ),
    "cpu-build": (
        said_with_gpus("node1", environment={"torch": "2.13.0+cpu", "cuda": None}),
        *("hardware.driver", "failed"),
        "node1 has GPUs, but a torch without CUDA (2.13.0+cpu); set python_env_torch_backend to auto",
    ),
    "unusable-gpus": (
        said_with_gpus("node1", environment={"usable": False}),
        *("hardware.driver", "failed"),
        "node1 has GPUs that torch cannot use (torch.cuda.is_available() is False); look at `nvidia-smi`",
    ),
    "ecc": (
        said_with_gpus(
            "node1", gpus={"csv": A100.format(index=0) + A100.replace(" 0, [N/A]", " 3, [N/A]").format(index=1)}
        ),
        *("hardware.gpu_health", "failed"),
        "node1 has GPU 1: 3 uncorrected memory errors; reset the GPUs there",
    ),
    "remapped": (
        said_with_gpus("node1", gpus={"csv": A100.replace(" No,", " Yes,").format(index=0) * 2}),
        *("hardware.gpu_health", "failed"),
        "node1 has GPU 0: memory that waits to be taken out of use",
    ),
    "hot": (
        said_with_gpus("node1", gpus={"csv": A100.replace(" Not Active", " Active", 1).format(index=0) * 2}),
        *("hardware.gpu_health", "warning"),
        "node1 is slowed down (GPU 0: hw_thermal_slowdown",
    ),
    "gpu-in-use": (
        said_with_gpus("node1", gpus={"csv": A100.replace(", 4,", ", 70000,").format(index=0) * 2}),
        *("hardware.gpu_memory", "warning"),
        "node1 has GPU memory in use though no job runs (GPU 0: 70000 of 81920 MiB",
    ),
    "few-cpus": (
        said("node1", cpus=4),
        *("hardware.cpus", "warning"),
        "node1 has 4 CPUs, another 16 CPUs, and every step waits for the slowest",
    ),
    "no-memory": (
        said("node1", memory={"free": 10**8}),
        *("hardware.memory", "failed"),
        "node1 has 100 MB of memory free, and with less than 1.0 GB (preflight_memory_min_mb) a job is "
        "likely to be killed",
    ),
    "less-memory": (
        said("node1", memory={"total": 16 * 10**9, "free": 15 * 10**9}),
        *("hardware.memory", "warning"),
        "node1 has 16.0 GB of memory, another 64.0 GB of memory, and the same batch has to fit everywhere",
    ),
    "full-disk": (
        said("node1", disk={"free": 12 * 10**6}),
        *("hardware.disk", "failed"),
        "node1 has 12.0 MB free in /opt/thunderhead; checkpoints and logs need 2.0 GB (preflight_disk_min_mb): run "
        "ansible-playbook clean.yml to remove old jobs, free some space there, or move cluster_dir to a larger disk",
    ),
    "no-inodes": (
        said("node1", disk={"files": 0}),
        *("hardware.disk", "failed"),
        "node1 has no free inodes in /opt/thunderhead",
    ),
    "shm": (
        said("node1", shm={"size": 64 * 2**20, "free": 64 * 2**20}),
        *("hardware.shm", "failed"),
        "node1 has 67.1 MB of /dev/shm; DataLoader workers die of too little ('bus error'), 256 MB is the least "
        "(preflight_shm_min_mb); enlarge it: docker run --shm-size=8g for containers, else mount -o remount",
    ),
    "nofile": (
        said("node1", limits={"nofile": 256}),
        *("hardware.nofile", "failed"),
        "node1 lets a job open 256 files; sockets and data loader workers need 4096 (preflight_nofile_min); "
        "raise nofile",
    ),
    "memlock": (
        said_with_gpus("node1", limits={"memlock": 65536}),
        *("hardware.memlock", "warning"),
        "node1 lets a job lock 65.5 kB of memory, but NCCL pins more (over InfiniBand it fails without); set memlock",
    ),
    "clock-ahead": (
        said("node1", clock=(3599.0, 3601.0)),
        *("time.clocks", "failed"),
        "node1 has a clock that is 60 min ahead of the others, but 2 s are allowed; start a time service there (chrony",
    ),
    "clock-behind": (
        said("node0", clock=(-86400.0, -86399.0)),
        *("time.clocks", "failed"),
        "node0 has a clock that is 24.0 h behind the others, but 2 s are allowed",
    ),
}


def foreign_address() -> ClusterFacts:
    held = "(it has: 198.18.0.11 (eth0)); set cluster_address for it in the inventory to the address its peers reach"
    return replaced("node1", address={"problem": f"does not hold the address 198.18.0.99 on any interface {held}"})


def replaced(host: str, **changes: Any) -> ClusterFacts:
    cluster = healthy()
    cluster.facts[host].update(changes)  # type: ignore[attr-defined]  # a dict, made for this test
    return cluster


def without_node_env(host: str, **changes: Any) -> ClusterFacts:
    return say(replaced(host, node_env=None, master=[]), host, **changes)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_name(name: str) -> None:
    make, check, status, sentence = DEFECTS[name]
    verdict = judge(make())[check]
    assert verdict.status == status
    assert verdict.sentence.startswith(sentence)


ALONE = (
    "two-names",
    "stale-ranks",
    "full-disk",
    "shm",
    "nofile",
    "clock-ahead",
    "unreadable",
    "hostname",
    "port-taken",
)


@pytest.mark.parametrize("name", ALONE)
def test_a_defect_is_found_once(name: str) -> None:
    make, check, _status, _sentence = DEFECTS[name]
    assert [one.check for one in judge(make()).values() if one.status in ("failed", "warning")] == [check]


def test_every_check_has_a_defect_that_it_finds() -> None:
    found = {check for _make, check, _status, _sentence in DEFECTS.values()}
    asked_for = {"inventory.group", "inventory.reachable", "inventory.jobs"}
    assert found | asked_for == LOOKED_AT


def test_a_job_that_runs_is_named() -> None:
    verdicts = judge(HEALTHY["job-on-master-port"]())
    assert verdicts["inventory.jobs"].sentence == (
        "node0 runs job 20261122-173000-train-9f3a of me since 2026-11-22T17:30:00+01:00; what is in use may be its"
    )
    assert verdicts["inventory.master_port"].sentence == "port 29500 on node0 is job 20261122-173000-train-9f3a's"


def test_nodes_that_do_not_answer() -> None:
    errors = {
        "node1": Unreachable("node1", "is unreachable: no route"),
        "node2": NodeError("node2", "has no usable Python"),
    }
    verdict = inventory.reachable(errors, 3)
    assert verdict.status == "failed"
    assert verdict.sentence.startswith("node1 is unreachable: no route, node2 has no usable Python; see that `ansible")
    assert inventory.reachable({}, 1).sentence == "1 host answered"


def test_of_two_clocks_the_one_that_differs_from_the_controllers_is_wrong() -> None:
    cluster = dataclasses.replace(
        say(healthy(), "node1", clock=(3600.0, 3600.1)), facts={host: healthy().facts[host] for host in HOSTS[:2]}
    )
    say(cluster, "node1", clock=(3600.0, 3600.1))
    assert clocks.clocks(cluster).sentence.startswith("node1 has a clock that is 60 min ahead")


def test_a_clock_is_never_judged_by_what_asking_took() -> None:
    assert clocks.ahead(100.0, (103.0, 104.0), 104.5) == (-0.5, 3.0)


@pytest.mark.parametrize("skipped", [["names", "hardware.shm"], ["time", "software", "hardware", "inventory"]])
def test_what_is_skipped_is_not_made(skipped: list[str]) -> None:
    made = judge(dataclasses.replace(healthy(), skipped=skipped))
    assert not any(check in skipped or check.partition(".")[0] in skipped for check in made)
    assert "names.family" in made or "names" in skipped


def test_an_unknown_name_to_skip_is_refused() -> None:
    assert run_checks.names_to_skip(["names", " hardware.shm", ""]) == ["names", "hardware.shm"]
    with pytest.raises(JobError) as caught:
        run_checks.names_to_skip(["hardware.shn"])
    message = str(caught.value)
    assert message.startswith("skip has hardware.shn, which is no check; the groups are inventory, names, reach,")
    assert all(check in message for check in run_checks.CHECKS)


def test_an_inventory_that_cannot_be_used() -> None:
    def read() -> Any:
        raise JobError("no host is in group cluster; list your machines")

    verdicts = run_checks.run_checks(read, [], {"skip": ["time"]})
    assert [one.check for one in verdicts] == list(run_checks.CHECKS)
    assert (verdicts[0].status, verdicts[0].sentence) == ("failed", "no host is in group cluster; list your machines")
    assert {one.status for one in verdicts[1:]} == {"skipped"}
    assert verdicts[-1].sentence == "on request"


def test_the_documentation_has_every_check_and_threshold_and_no_other() -> None:
    text = (ROOT / "docs" / "preflight.md").read_text()
    assert dict(re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (.+) \|$", text, re.MULTILINE)) == run_checks.CHECKS
    thresholds = {
        f"preflight_{name}": f"{option['default']:g}"
        for name, option in run_checks.OPTIONS.items()
        if name != "devices"  # an option of run.yml too
    }
    assert dict(re.findall(r"^\| `(preflight_\w+)` \| (\S+) \|", text, re.MULTILINE)) == thresholds


# ----------------------------------------------------------------------------------------------------------- short form


def prepared(cluster: ClusterFacts) -> dict[str, Any]:
    """What ``prepare`` tells of all that."""
    return {
        host: {name: facts[name] for name in ("clock", "packages", "node_env", "shm", "limits")}
        for host, facts in cluster.facts.items()
    }


def test_the_short_form_has_nothing_to_say_of_healthy_nodes() -> None:
    assert prepared_nodes.check_prepared_nodes(healthy().settings, prepared(healthy()), {}) == []


def test_the_short_form_warns_with_the_same_sentences() -> None:
    cluster = say(say(healthy(), "node1", shm={"size": 64 * 2**20}), "node2", clock=(3600.0, 3600.5))
    full = judge(cluster)
    assert prepared_nodes.check_prepared_nodes(cluster.settings, prepared(cluster), {}) == [
        f"{check}: {full[check].sentence}" for check in ("hardware.shm", "time.clocks")
    ]
    assert (
        prepared_nodes.check_prepared_nodes(cluster.settings, prepared(cluster), {"skip": ["time"], "shm_min_mb": 60})
        == []
    )


def test_the_short_form_is_as_fast_for_hundreds_of_nodes() -> None:
    one = prepared(healthy())["node0"]
    one["packages"] = {"python": "3.11", "installed": [f"package-{number}" for number in range(200)]}

    def seconds(count: int) -> float:
        settings = [dataclasses.replace(healthy().settings[0], host=f"node{number}") for number in range(count)]
        took = []
        for _round in range(3):
            began = time.process_time()
            assert prepared_nodes.check_prepared_nodes(settings, {node.host: one for node in settings}, {}) == []
            took.append(time.process_time() - began)
        return min(took)

    # Of ten times as many nodes there are a hundred times as many pairs.
    assert seconds(600) < 30 * seconds(60)


def test_the_short_form_shows_nothing_that_acts_upon_a_terminal() -> None:
    cluster = say(healthy(), "node2", packages={"installed": ["torch-\x1b[2J"]})
    with pytest.raises(JobError) as caught:
        prepared_nodes.check_prepared_nodes(cluster.settings, prepared(cluster), {})
    assert r"\x1b[2J (node2)" in str(caught.value)


def test_the_short_form_refuses_what_cannot_train_together() -> None:
    cluster = DEFECTS["other-torch"][0]()
    with pytest.raises(JobError) as caught:
        prepared_nodes.check_prepared_nodes(cluster.settings, prepared(cluster), {})
    assert str(caught.value) == f"{judge(cluster)['software.versions'].sentence}. Nothing was started on any node."
    assert prepared_nodes.check_prepared_nodes(cluster.settings, prepared(cluster), {"skip": ["software"]}) == []
