# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that have ended, as they lie on nodes; and checkpoints, as torch.save writes them, made without torch."""

import contextlib
import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.gang import Gang
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import rank_nodes
from local_nodes import LocalNode, opener

LIGHTNING = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "loops": {}, "optimizer_states": []}


def job_id(number: int) -> str:
    """Return the id of the job with that number; later jobs have higher numbers."""
    return f"20261122-1730{number:02d}-train-0a0a"


def leave(
    node: LocalNode,
    job: str = "job-1",
    files: Mapping[str, bytes] | None = None,
    spec: Mapping[str, Any] | None = None,
    state: str = "succeeded",
) -> Path:
    """Leave a job's folder on a node; return its working directory."""
    folder = node.job_dir(job)
    work = folder / "work"
    work.mkdir(parents=True)
    for name, content in (files or {}).items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    if spec is not None:
        (folder / "spec.json").write_text(json.dumps(spec))
    if state:
        ended = {} if state == "running" else {"ended": 2.0}
        (folder / "state.json").write_text(json.dumps({"state": state, "pid": 1, "started": 1.0, **ended}))
    return work


@contextlib.contextmanager
def nested(folder: Path, levels: int) -> Iterator[None]:
    """Make folders in one another, with a file at the bottom; pytest could not remove them."""
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _level in range(levels):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").write_text("x")
        os.chdir(here)
        yield
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", folder / "d"], check=True)


def gang_on(nodes: Sequence[LocalNode], job: str = "job-1") -> Gang:
    """Return the nodes of a job."""
    settings = [node.settings() for node in nodes]
    located = {node.host: {"address": node.address, "interface": "lo"} for node in nodes}
    identity = Identity("2026-11-22T17:30:00+01:00", job, "trainer")
    return Gang(identity, NodeGroup(settings, opener(nodes)), rank_nodes(settings, located))


def checkpoint(
    path: Path, step: Any = 1, seed: int = 0, parts: int = 4, content: Mapping[str, Any] | None = None
) -> bytes:
    """Write a checkpoint with that step; return its bytes."""
    data = {"epoch": 1, "global_step": step, **LIGHTNING} if content is None else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("last/data.pkl", pickle.dumps(data, protocol=2))
        archive.writestr("last/byteorder", "little")
        for number in range(parts):
            archive.writestr(f"last/data/{number}", (seed + number).to_bytes(4, "little") * 5000)
        archive.writestr("last/version", "3\n")
    os.utime(path, (2_000_000_000, 2_000_000_000))
    return path.read_bytes()
