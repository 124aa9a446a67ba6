# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the environment variables of a node and of a job there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import is_encodable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

OURS = frozenset(
    ["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "JOB_ID", "JOB_DIR", "JOB_ATTEMPT"]
)
"""Written from the inventory; a second opinion about them is how ranks come to disagree."""
NEVER = re.compile(r"(LOCAL_RANK|RANK|GROUP_RANK|TORCHELASTIC_.*|SLURM_.*)\Z")
"""Each of these makes Lightning believe that someone else starts the ranks: it then starts none, and hangs."""


def as_environment(value: Any, subject: str) -> dict[str, str]:
    """Return a user's mapping of environment variables, checked; strings stay byte for byte.

    Args:
        value: a mapping, or its JSON or YAML text (``-e key=value`` on the command line gives text).
        subject: what to call it in an error, such as ``env``.

    Raises:
        JobError: not a mapping, a name that is no identifier or not the user's to set, or a value that is no scalar.
    """
    if isinstance(value, str):
        try:
            value = _parse(value) if value.strip() else {}
        except yaml.YAMLError:
            value = None
    if not isinstance(value, Mapping):
        example = json.dumps({subject.rpartition(" ")[2]: {"NAME": "value"}})
        raise JobError(f"{subject} is no mapping of names to values; give it as -e '{example}'")
    return {str(name): _value(name, item, subject) for name, item in value.items()}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # not all JSON is YAML: tabs between its words, characters as pairs of \u escapes
        return yaml.safe_load(text)


def _value(name: Any, value: Any, subject: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name), re.ASCII):
        raise JobError(
            f"{subject} has the name {str(name)!r}, which is no environment variable; "
            "use letters, digits and underscores, and no digit first"
        )
    if name in OURS:
        raise JobError(
            f"{subject} sets {name}, which follows from the inventory; "
            "set cluster_address, cluster_master_port or the order of hosts there instead"
        )
    if NEVER.match(str(name)):
        raise JobError(f"{subject} sets {name}, which makes Lightning start no ranks and hang; remove it")
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (str, int, float)):
        if "\0" in str(value):
            raise JobError(f"{subject} gives {name} a value with a null byte, which no environment can hold")
        if not is_encodable(str(value)):
            raise JobError(f"{subject} gives {name} a value with half a character, which UTF-8 cannot hold; correct it")
        return str(value)
    raise JobError(f"{subject} gives {name} a value that is neither text nor a number; give it a string")


class JobFacts(NamedTuple):
    """What the variables of a job say of it.

    Attributes:
        id: the job's.
        dir: its folder on the node.
        commit: of its code, or "".
        gang: whether its nodes work together.
        framework: what a framework that the script uses takes from the environment besides.
        attempt: which attempt it is, a number, or what the node puts one in for.
    """

    id: str
    dir: str
    commit: str
    gang: bool = True
    framework: Mapping[str, str | int] = MappingProxyType({})
    attempt: int | str = 1


def variables(node: Mapping[str, Any], given: Mapping[str, str], job: JobFacts | None = None) -> dict[str, str]:
    """Return the environment of one node, or of a job there; a checkpoint's are the node's to add.

    Args:
        node: rank, world_size, master_addr, master_port, interface.
        given: the user's, which win.
        job: of which these are the variables; None for those of the node itself.
    """
    ours = {
        "MASTER_ADDR": node["master_addr"],
        "MASTER_PORT": node["master_port"],
        "WORLD_SIZE": node["world_size"],
        "NODE_RANK": node["rank"],
        "NUM_NODES": node["world_size"],
    }
    if job is None or job.gang:
        ours |= dict.fromkeys(("PL_TRAINER_NUM_NODES", "LT_NUM_NODES"), node["world_size"])
    ours |= {"GLOO_SOCKET_IFNAME": node["interface"], "NCCL_SOCKET_IFNAME": f"={node['interface']}"}
    if job:
        ours |= {"JOB_ID": job.id, "JOB_DIR": job.dir, "JOB_ATTEMPT": job.attempt}
        ours |= {"JOB_GIT_COMMIT": job.commit, **job.framework}
    return {name: str(value) for name, value in {**ours, **dict(sorted(given.items()))}.items()}
