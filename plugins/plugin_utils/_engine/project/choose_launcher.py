# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the launcher that fits a script, by what it and the project's modules import; nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.imports import own_modules

CLI, TRAINER, FABRIC, FABRIC_LAUNCHED = "cli", "trainer", "fabric", "fabric-launched"
TRANSFORMERS, ACCELERATE, DEEPSPEED = "transformers", "accelerate", "deepspeed"
SPAWN, PER_NODE, DISTRIBUTED, RANK, PLAIN = "spawn", "per-node", "distributed", "rank", "plain"
KINDS: Mapping[str, tuple[str, str]] = {
    CLI: ("lightning", "LightningCLI"),
    TRAINER: ("lightning", "Lightning's Trainer"),
    FABRIC_LAUNCHED: ("torchrun", "Fabric"),
    FABRIC: ("torchrun", "Fabric"),
    TRANSFORMERS: ("torchrun", "the Trainer of Transformers"),
    ACCELERATE: ("torchrun", "Accelerate"),
    DEEPSPEED: ("torchrun", "DeepSpeed"),
    SPAWN: ("python", "torch.multiprocessing to start its processes itself"),
    PER_NODE: ("python", "torch.distributed with NODE_RANK for its rank"),
    DISTRIBUTED: ("torchrun", "torch.distributed"),
    RANK: ("torchrun", "torch and RANK"),
    PLAIN: ("python", ""),
}
"""What a script may use: the launcher that fits, and its name. Of several the first counts."""

_LIGHTNING = ("pytorch_lightning", "lightning")
# What a script also asks that runs alone.
_ASKS = ("is_available", "is_initialized", "get_rank", "get_world_size")
_OF_DISTRIBUTED = ("torch.distributed.", "torch.utils.data.distributed", "torch.nn.parallel.DistributedDataParallel")
_OF_TRANSFORMERS = {"transformers": ("Trainer", "TrainingArguments"), "trl": ("Trainer", "Config")}
_ENVIRONMENT = ("os.environ", "os.getenv", "os.environ.get")


@dataclass(frozen=True)
class Fit:
    """What a script uses.

    Attributes:
        kind: one of KINDS.
        file: where that was found, relative to the project; "" for PLAIN.
    """

    kind: str
    file: str = ""

    @property
    def launcher(self) -> str:
        """The launcher that fits."""
        return KINDS[self.kind][0]

    @property
    def reason(self) -> str:
        """Why that one, a clause: "train.py uses torch.distributed"."""
        if self.kind == PLAIN:
            return "the script uses no Trainer, no Fabric and no torch.distributed"
        return f"{self.file} uses {KINDS[self.kind][1]}"


def fit(project: Path, script: str, search_path: Sequence[Path] = (), files: Collection[str] | None = None) -> Fit:
    """Return what a script uses that has to be launched in a way of its own.

    Args:
        project: folder on the controller.
        script: path relative to it.
        search_path: folders of the project where it finds its modules; by default its own.
        files: paths of the files that belong to the job's code; None for all.
    """
    found: dict[str, str] = {}
    for path, _data, tree in own_modules(project, script, search_path, files):
        for kind in _kinds(tree):
            found.setdefault(kind, str(path.relative_to(project)))
        if CLI in found or TRAINER in found:
            break
    if DISTRIBUTED not in found or RANK in found:
        found.pop(PER_NODE, None)
    if DISTRIBUTED not in found:
        found.pop(SPAWN, None)
    return next((Fit(kind, found[kind]) for kind in KINDS if kind in found), Fit(PLAIN))


def _kinds(tree: ast.AST) -> Iterator[str]:
    """Yield what a module uses, of KINDS, some of it several times."""
    nodes = [*ast.walk(tree)]
    meant = dict(_meanings(nodes))
    used = [*meant.values(), *(_dotted(node, meant) for node in nodes if isinstance(node, (ast.Attribute, ast.Name)))]
    fabric = False
    for name in used:
        first, _dot, rest = name.partition(".")
        last = rest.rpartition(".")[2]
        if first in _LIGHTNING and last in ("Trainer", "LightningCLI"):
            yield TRAINER if last == "Trainer" else CLI
        elif first in ("lightning", "lightning_fabric") and last == "Fabric":
            fabric = True
            yield FABRIC
        elif last.endswith(_OF_TRANSFORMERS.get(first, ())):
            yield TRANSFORMERS
        elif first in (ACCELERATE, DEEPSPEED):
            yield first
        elif name.startswith("torch.multiprocessing.") and last in ("spawn", "start_processes"):
            yield SPAWN
        elif name.startswith(_OF_DISTRIBUTED) and last not in _ASKS:
            yield DISTRIBUTED
    if fabric and any(isinstance(node, ast.Attribute) and node.attr == "launch" for node in nodes):
        yield FABRIC_LAUNCHED
    read = {_variable(node, meant) for node in nodes}
    if read & {"RANK", "LOCAL_RANK"} and any(name.partition(".")[0] == "torch" for name in used):
        yield RANK
    if "NODE_RANK" in read:
        yield PER_NODE


def _meanings(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """Yield the names that a module's imports bind, each with what it stands for in full."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
                else:
                    yield alias.name.partition(".")[0], alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.AST, meant: Mapping[str, str]) -> str:
    """Return what a name such as ``dist.init_process_group`` stands for in full, "" for what is no imported name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in meant:
        return ""
    return ".".join([meant[node.id], *reversed(parts)])


def _variable(node: ast.AST, meant: Mapping[str, str]) -> object:
    """Return the name in ``os.environ["NAME"]``, ``os.environ.get("NAME", 0)`` or ``os.getenv("NAME")``, else None."""
    if isinstance(node, ast.Subscript):
        read, key = node.value, node.slice
    elif isinstance(node, ast.Call) and node.args:
        read, key = node.func, node.args[0]
    else:
        return None
    return key.value if isinstance(key, ast.Constant) and _dotted(read, meant) in _ENVIRONMENT else None
