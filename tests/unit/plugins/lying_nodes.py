# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that were broken into: whatever is asked of them, they reply what their new owner likes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import MARK
from requests_on_the_wire import request_in

if TYPE_CHECKING:  # a liar is started for every request, and Ansible takes its time to import
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel

JOB = "20261122-173005-train-1a2b"
LOG = b"hello\n"
CONTENT = b"a result"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Answer = tuple[Any, bytes]

SPEC = {
    **{"id": JOB, "user": "trainer", "start": "2026-11-22T17:30:05+01:00", "script": "train.py"},
    **{"launcher": "lightning", "bundle": "0" * 64, "python": "/opt/thunderhead/env/bin/python"},
    **{"args": ["--lr", "1"], "devices": None, "master_addr": "127.0.0.1", "master_port": 29500},
    **{"grace_seconds": 1, "node_timeout_seconds": 1, "world_size": 2, "rank": 0},
    "ranks": [
        {"rank": 0, "host": "node0", "address": "127.0.0.1"},
        {"rank": 1, "host": "node1", "address": "127.0.0.2"},
    ],
}
ENDED_ATTEMPT = {
    **{"attempt": 1, "roster": [0, 1], "cause": "rank 1 was killed", "checkpoint": "a.ckpt"},
    **{"seconds": 9.0, "repeated_seconds": 2.0, "down_seconds": 1.5},
}
ENDED = {
    **{"state": "failed", "pid": 7, "oom": 1, "exit_code": 1, "signal": None, "started": 1.0, "ended": 3.5},
    **{"stopping": 2.5, "because": "rank 1 (node1) exited with code 1", "error": ""},
}
USER = {"user": "trainer"}
TRIED = {
    **{"failed": {"wandb": "ModuleNotFoundError"}, "python": "3.11.2", "torch": "2.13.0+cpu"},
    **{"cuda": None, "nccl": None, "devices": 0, "usable": False},
}
OWNER = {**USER, "start": "2026-11-22T17:30:05+01:00"}
STACK = b"""\
==== process 7
Thread 7 (idle): "MainThread"
    init_process_group (torch/distributed/distributed_c10d.py:1800)
    main (train.py:1)
"""


def honest(request: Mapping[str, Any], rank: int = 0) -> Answer:
    """Return what the node of this rank replies whose job has failed, and left a log, a file and a checkpoint."""
    op = request["op"]
    address = request.get("address") or "127.0.0.1"
    place = {"address": address, "interface": "lo"}
    paths = {"python": "/x/env/bin/python", "job_dir": "/x/jobs/y", "start_file": "/x/jobs/y.start"}
    if op == "follow":
        data = LOG[request["offset"] :]
        ranks = [{"state": "failed", "met": True}] * 2
        gang = {
            "ranks": ranks,
            "roster": [0, 1],
            "attempt": 2,
            "ended_attempts": [ENDED_ATTEMPT],
            "ending": True,
            "notices": [[1.8e9, "nothing was printed for 60 s: rank 0 waits"]],
        }
        more = {"gang": gang, "gang_changed": 10**18, "has_stacks": True}
        return {**ENDED, "more": False, "offset": request["offset"] + len(data), **more}, data
    if op == "read_files":
        parts = [CONTENT[offset : offset + length] for _path, offset, length in request["parts"]]
        return {"parts": [[len(part), len(CONTENT), 10**18] for part in parts]}, b"".join(parts)
    spec = {**SPEC, "rank": rank}
    resources = {"clock": (1.5, 1.5), "shm": {"size": 2**30, "free": 2**30}}
    packages = {"python": "3.11", "installed": ["torch-2.13.0"]}
    answers: dict[str, Answer] = {
        "list_artifacts": ({"more": False, "cores": []}, b"result\0%d\0%d\0" % (len(CONTENT), 10**18)),
        "list_checkpoints": (
            {
                "found": [("last.ckpt", 5, len(CONTENT), 1.5)],
                "refused": [("a.ckpt", "is empty")],
                "others": [("/data/last.pt", "a file"), ("out/checkpoint-10", "a checkpoint")],
            },
            b"",
        ),
        "clean": ({"jobs": ["x"], "bundles": [], "envs": ["y"], "bytes": 5, "left": [("z", "a")], "more": False}, b""),
        "receive_code": ({}, b""),
        "discard": ({}, b""),
        "preflight_facts": (
            {
                **{
                    **resources,
                    "machine": ("a", "b", "net:[1]"),
                    "folder": "1:2",
                    "uid": 1,
                    "session": "",
                    "network_disks": [],
                    "free_port": 40001,
                },
                **{"address": place, "addresses": [("lo", address, True)], "hostname": "node", "resolved": [address]},
                **{"node_env": {"GLOO_SOCKET_IFNAME": "lo"}, "master": [address], "job": None, "cpus": 2},
                **{"master_port": None, "packages": {**packages, "locked": "torch==2.13.0\n"}, "infiniband": False},
                "environment": {"failed": {}} if request.get("imports") is None else TRIED,
                "gpus": {"count": 0, "fields": ["index"], "csv": "", "problem": ""},
                **{"memory": {"total": 2**34, "free": 2**33}, "disk": {"free": 2**36, "files": 10**6}},
                "limits": {"nofile": 1048576, "memlock": -1},
            },
            b"",
        ),
        "firewall_info": (
            {
                "provider": "ufw",
                "msg": "ufw, because it is active",
                "concerned": ["ufw", "firewalld", "nftables"],
                "firewalld": {"missing": [{"zone": "public", "rule": "rule accept"}], "stale": []},
                "ufw": {
                    "missing": [{"network": "198.18.0.1", "ports": "29500", "position": 1}],
                    "stale": [{"network": "198.18.0.2", "ports": "29500"}],
                },
            },
            b"",
        ),
        "setup_facts": (
            {
                **place,
                "addresses": [address],
                "port_range": (32768, 60999),
                "folder": "1",
                "firewalls": [],
                "session": "",
                "uid": 1,
                "network_disks": [],
                "job": {**OWNER, "id": JOB},
            },
            b"",
        ),
        "list_jobs": (
            {"jobs": [{"id": JOB, "spec": spec, "state": ENDED, "size": len(LOG), "last_line": "hello", **USER}]},
            b"",
        ),
        "describe_checkpoint": (
            {"top": "/data", "folder": False, "files": [("last.pt", len(CONTENT), 10**18, DIGEST)]},
            b"",
        ),
        "find_unreached": ({"unreached": []}, b""),
        "node_env_info": ({"has_user": True, "is_complete": False}, b""),
        "place_file": ({"placed": True}, b""),
        "prepare": (
            {
                **{
                    **place,
                    **paths,
                    **resources,
                    "packages": packages,
                    "node_env": None,
                    "limits": {"nofile": 1048576},
                },
                **{"gpus": 0, "has_bundle": True, "gang_port": 40000},
            },
            b"",
        ),
        "python_env_info": (
            {
                **{"python": "3.11", "executable": "/usr/bin/python3", "machine": "x86_64", "backend": "cpu"},
                **{"platform": "x86_64-manylinux_2_36", "wheel_platform": "manylinux2014_x86_64", "driver": ""},
                **{"uv": "0.13.9", "free": 2**40, "complete": True, "current": True, "tools_current": False},
                **{"target": "envs/0123456789abcdef", "tools": "tools/0123456789abcdef"},
            },
            b"",
        ),
        "try_connections": (
            {
                **{"failed": {"node1": "refused"}, "master": "no route", "taken": None},
                **{"trips": [100, {"node1": 200}], "mtu": 1500},
            },
            b"",
        ),
        "receive_code_piece": ({"has": 4096}, b""),
        "try_program": ({"messages": [{"step": "import", "seconds": 60}], "error": "", "late": False}, b""),
        "read_stacks": ({}, STACK),
        "start": ({}, b""),
        "stop": ({**ENDED, "left": []}, b""),
        "verify_checkpoint": ({"why": "", "bytes": len(CONTENT), "sha256": DIGEST}, b""),
    }
    reply, payload = answers[op]
    return json.loads(json.dumps(reply)), payload  # with lists for tuples, as it comes over the line


def written(reply: Any, payload: bytes) -> bytes:
    """Return a reply as it comes over the line."""
    text = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return b"%s %d %d\n" % (MARK.encode(), len(text), len(payload)) + text + payload


@dataclass
class LyingNode:
    """A node without a machine. `lie(request, reply, payload)` returns what it replies instead."""

    host: str = "node0"
    address: str = "127.0.0.1"
    lie: Callable[[Mapping[str, Any], Any, bytes], Answer] = lambda _request, reply, payload: (reply, payload)
    become: None = None
    asked: list[str] = field(default_factory=list)

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        if not in_data.partition(b"\n")[0].isdigit():  # the start message, which is put into a file
            return 0, b"", b""
        request = request_in(in_data)
        self.asked.append(request["op"])
        reply, payload = honest(request, int(self.host[4:]))
        return 0, written(*self.lie(request, {"ok": True, **reply}, payload)), b""

    def channel(self) -> "Channel":
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Channel

        return Channel(self.host, self, "python3", "/bin/sh")

    def settings(self) -> "NodeSettings":
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings

        return NodeSettings(self.host, self.address, "/opt/thunderhead", 29500, "", {})
