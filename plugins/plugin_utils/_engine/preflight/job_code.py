# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the nodes the code that a job would run, to try its imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import environment_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project import missing_files
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle

PROGRAM = Path(__file__).parents[1] / "project" / "on_node" / "try_imports.py"
SLOWEST = 100_000
"""Bytes a second that code is sent with at least, or the node counts as one that does not answer."""
_ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@dataclass(frozen=True)
class Code:
    """A project, and what is started of it.

    Attributes:
        project: folder on the controller.
        bundle: its files as they would lie on the nodes.
        script: path of the script in it.
        module: name of the module that the script is started as, or "".
        env: variables of the command line.
        launcher: which would start it.
    """

    project: Path
    bundle: Bundle
    script: str
    module: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: str = "python"

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.module or self.script

    def variables(self, node: NodeSettings, nodes: Sequence[NodeSettings]) -> dict[str, str]:
        """Return a job's variables on one of the nodes, as far as they are known before those are asked."""
        head = nodes[0]
        about = {
            "rank": nodes.index(node),
            "world_size": len(nodes),
            "master_addr": head.address or head.host,
            "master_port": head.master_port,
            "interface": "lo",
        }
        job = environment_variables.JobFacts("preflight", "/", self.bundle.described_commit)
        ranks = _ONE_RANK if self.launcher == "torchrun" else {}
        return {**ranks, **environment_variables.variables(about, {**node.env, **self.env}, job)}

    def explained(self, why: str) -> str:
        """Return a clause on a failed import that has its cause in the project, or ""."""
        return missing_files.explained(why, self.project, self.bundle.paths, self.script)


def trial(code: Code | None) -> dict[str, Any]:
    """Return what a node has to import; torch alone without code."""
    script, module = (code.script, code.module) if code else ("", "")
    return {"program": PROGRAM.read_text(encoding="utf-8"), "script": script, "module": module}
