# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check group *software*: it is the same on every node, as setup installed it, and usable by the jobs' account."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names, pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import REBUILD, SETUP, Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.cluster_facts import (
    ClusterFacts,
    make_checks,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import (
    all_nodes,
    describe_hosts,
    hosts_by_value,
)

with contextlib.suppress(ImportError):  # ansible-core needs it too; its sanity tests do without
    from packaging.utils import canonicalize_name

CHECKS = {
    "software.environment": "the account that jobs run as can start the environment's Python and import torch",
    "software.versions": "Python, torch with its CUDA build, lightning and NCCL are the same on every node",
    "software.packages": "whatever else is installed is the same on every node",
    "software.lock": "what is installed is what the requirements were resolved into at setup, on every node the same",
    "software.imports": "what the script imports can be imported on every node (with `-e script=…` or `-e module=…`)",
}
OPTIONS: dict[str, dict[str, Any]] = {"import_timeout_seconds": {"type": "int", "default": 60}}
LIGHTNING = ("pytorch-lightning", "lightning")
NCCL = ("nvidia-nccl-cu11", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
DECISIVE = ("torch", *LIGHTNING, *NCCL)
"""Packages whose versions have to be the same on every node: they talk to each other."""
MOST_PACKAGES = 3
"""Of more packages that differ than this only the first are named."""
NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
_NOT_THERE = re.compile(r"ModuleNotFoundError|ImportError: No module named")
_PINNED = re.compile(r"(?m)^[ \t]*([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?[ \t]*==[ \t]*([^\s;#\\]+)[ \t]*(;[^#\n\\]*)?")


def checks(cluster: ClusterFacts) -> list[Verdict]:
    """Judge the software."""
    return make_checks(
        cluster,
        {
            "software.environment": environment,
            "software.versions": versions,
            "software.packages": packages,
            "software.lock": lock,
            "software.imports": imports,
        },
    )


def environment(cluster: ClusterFacts) -> Verdict:
    """See that a job would find a Python with torch."""
    wrong = {}
    for host, facts in cluster.facts.items():
        found = facts["environment"]
        if "problem" in found:
            wrong[host] = found["problem"]
        elif not found["torch"]:
            why = found["failed"].get("torch")
            never_there = why == NO_TORCH and "torch" not in installed(facts["packages"])
            remedy = f"add torch to the requirements (python_env_requirements), and {SETUP}" if never_there else REBUILD
            wrong[host] = f"cannot import torch: {why}; {remedy}"
    if wrong:
        return Verdict("software.environment", "failed", describe_hosts(wrong), {"hosts": list(wrong)})
    return Verdict("software.environment", "ok", f"torch can be imported on {all_nodes(cluster.facts)}")


def installed(packages: Mapping[str, Any]) -> Mapping[str, str]:
    """Return name to version of what is in an environment; names as PEP 503 normalizes them."""
    return _parsed(tuple(packages["installed"]))


@functools.lru_cache(maxsize=64)  # hundreds of nodes have the same
def _parsed(names: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [one.rpartition("-") for one in names]
    return {canonicalize_name(name): version for name, _dash, version in pairs}


def versions(cluster: ClusterFacts) -> Verdict:
    """Compare the versions of Python, torch, CUDA and NCCL, from the environments and from torch."""
    kinds: dict[str, dict[str, str]] = {}
    anywhere = {name for facts in cluster.facts.values() for name in installed(facts["packages"])}
    compared = [name for name in DECISIVE if name in anywhere]
    for host, facts in cluster.facts.items():
        packages, tried = installed(facts["packages"]), facts.get("environment", {})
        if not packages:
            continue  # no environment, which is software.environment's to say
        own = {
            "Python": facts["packages"]["python"],
            **{name: packages.get(name, "none") for name in compared},
            **({"torch's CUDA": tried["cuda"] or "none"} if tried.get("torch") else {}),
            **({"NCCL": tried["nccl"] or "none"} if tried.get("torch") else {}),
        }
        for kind, version in own.items():
            kinds.setdefault(kind, {})[host] = version
    differing = {kind: hosts_by_value(found) for kind, found in kinds.items() if len(set(found.values())) > 1}
    data = {"versions": kinds}
    if differing:
        text = "; ".join(f"{kind} is {found}" for kind, found in differing.items())
        sentence = (
            f"{text}, but nodes that train together need the same; on the odd ones remove envs in the cluster_dir, "
            f"and {SETUP}"
        )
        return Verdict("software.versions", "failed", sentence, data)
    same = [f"{kind} {next(iter(found.values()))}" for kind, found in kinds.items()]
    if not same:
        return Verdict("software.versions", "skipped", "no node has an environment")
    return Verdict("software.versions", "ok", f"{', '.join(same)} on {all_nodes(cluster.facts)}", data)


def packages(cluster: ClusterFacts) -> Verdict:
    """Compare what else is installed: of two setups, each may have had its own requirements."""
    found = {host: facts["packages"] for host, facts in cluster.facts.items() if facts["packages"]["installed"]}
    if not found:
        return Verdict("software.packages", "skipped", "no node has an environment")
    if len({tuple(one["installed"]) for one in found.values()}) < 2:
        return Verdict("software.packages", "ok", f"the same packages are installed on {all_nodes(found)}")
    kinds = {host: installed(one) for host, one in found.items()}
    everything = sorted({name for versions in kinds.values() for name in versions} - set(DECISIVE))
    held = {name: {host: versions.get(name, "none") for host, versions in kinds.items()} for name in everything}
    differing = [f"{name} is {hosts_by_value(has)}" for name, has in held.items() if len(set(has.values())) > 1]
    if not differing:  # it is software.versions' to say
        return Verdict("software.packages", "ok", f"the same further packages are installed on {all_nodes(found)}")
    more = len(differing) - MOST_PACKAGES
    text = "; ".join([*differing[:MOST_PACKAGES], *([f"and so on for {more} more"] if more > 0 else [])])
    sentence = f"the nodes' environments differ ({text}), as those of two setups with different requirements; {SETUP}"
    return Verdict("software.packages", "warning", sentence, {"packages": len(differing)})


def pinned(text: str) -> Iterable[tuple[str, str, bool]]:
    """Yield name, version, and whether it is only for some Pythons, of each package that a requirements file pins."""
    for found in _PINNED.finditer(text):
        yield canonicalize_name(found[1]), found[2], bool(found[3])


def lock(cluster: ClusterFacts) -> Verdict:
    """Compare what is installed with what should be."""
    wrong = {}
    texts = {}
    for host, facts in cluster.facts.items():
        packages, text = installed(facts["packages"]), facts["packages"]["locked"]
        if not packages:
            continue
        texts[host] = text
        off = []
        for name, version, conditional in pinned(text):
            have = packages.get(name)
            if have is None and not conditional:
                off.append(f"no {name} (should be {version})")
            elif have is not None and not _is_version(have, version):
                off.append(f"{name} {have} (should be {version})")
        if off:
            wrong[host] = f"has {join_names(off, 3)}"
    if not texts:
        return Verdict("software.lock", "skipped", "no node has an environment")
    if wrong:
        sentence = f"{describe_hosts(wrong)}: the environment was changed after setup; {REBUILD}"
        return Verdict("software.lock", "failed", sentence, {"hosts": list(wrong)})
    if len({_origin(text) for text in texts.values()}) > 1:
        kinds = {host: pluralize(len(list(pinned(text))), "pinned package") for host, text in texts.items()}
        sentence = f"the nodes were set up with different requirements: {hosts_by_value(kinds)}; {SETUP}"
        return Verdict("software.lock", "failed", sentence)
    return Verdict(
        "software.lock", "ok", f"what is installed on {all_nodes(texts)} is what the requirements were resolved into"
    )


def _origin(text: str) -> str:
    """Return what is the same on nodes of different kinds that were set up with the same requirements."""
    first = text.partition("\n")[0]
    return first if first.startswith("# requirements ") else text


def _is_version(have: str, wanted: str) -> bool:
    """Whether a version is the wanted one; one without a local label, as in 2.13.0, means any, as 2.13.0+cpu."""
    return have == wanted or ("+" not in wanted and have.partition("+")[0] == wanted) or wanted.endswith(".*")


def imports(cluster: ClusterFacts) -> Verdict:
    """See that what the script imports is there."""
    code = cluster.code
    if not code:
        return Verdict("software.imports", "skipped", "no script was named; name it with -e script=train.py")
    wrong: dict[str, str] = {}
    broken: dict[str, None] = {}
    is_missing = False
    tried = [host for host, facts in cluster.facts.items() if "problem" not in facts["environment"]]
    for host in tried:
        failed = dict(cluster.facts[host]["environment"]["failed"])
        failed.pop("torch", None)
        reasons = []
        for place, why in failed.items():
            hint = code.explained(why)
            reasons.append(f"what {place} asks for ({why}{f'; {hint}' if hint else ''})")
            if _NOT_THERE.match(why):
                is_missing = is_missing or not hint
            elif not hint:
                broken[place] = None
        if reasons:
            wrong[host] = f"cannot import {join_names(reasons, 3)}"
    if wrong:
        remedies = []
        if broken:
            remedies.append(f"look at {join_names(list(broken), 3)}, or move the import to where it is needed")
        if is_missing:
            remedies.append(f"add what is missing to what python_env_requirements names, and {SETUP}")
        sentence = "; ".join([describe_hosts(wrong), *remedies])
        return Verdict("software.imports", "failed", sentence, {"hosts": list(wrong)})
    if not tried:
        return Verdict("software.imports", "skipped", "no node's environment can be used")
    return Verdict("software.imports", "ok", f"what {code.name} imports is there on {all_nodes(tried)}")
