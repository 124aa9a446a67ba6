# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the variables that the script's arguments name; each node puts its own values in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import join_names
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster import environment_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError

ACCOUNT = ("HOME", "LANG", "LOGNAME", "PATH", "PYTHONUNBUFFERED", "SHELL", "USER")
"""Variables of every job besides those of node.env; ``job_environment`` of the agent sets them."""
_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)([^A-Za-z0-9_.]))")
_NODE = {"rank": 0, "world_size": 1, "master_addr": "", "master_port": 0, "interface": ""}


def variables_of(given: Mapping[str, str], checkpoint: str) -> set[str]:
    """Return the names of all variables of a job.

    Args:
        given: the user's, of the inventory and of the command line.
        checkpoint: path of the one that the job goes on from, or "".
    """
    about = environment_variables.JobFacts("", "", "")
    names = {*ACCOUNT, *environment_variables.variables(_NODE, given, about)}
    return names | {"CKPT_PATH"} if checkpoint else names


def require_known(
    args: Sequence[str], env: Mapping[str, str], inherited: Mapping[str, Mapping[str, str]], checkpoint: str
) -> None:
    """Check that every variable that the arguments name has a value on every node.

    Args:
        args: the script's.
        env: variables of the command line.
        inherited: those of the inventory, by host.
        checkpoint: path of the one that the job goes on from, or "".

    Raises:
        JobError: one has no value, or is written as only a shell reads it.
    """
    named = [found for argument in args for found in _VARIABLE.finditer(argument)]
    if not named:
        return
    known = {host: variables_of({**variables, **env}, checkpoint) for host, variables in inherited.items()}
    for found in named:
        name = found[1] or found[2]
        if not name:
            continue
        without = [host for host, names in known.items() if name not in names]
        if found[2] and found[3] != "}":
            if len(without) == len(known):
                continue  # no variable of the job's: a script may read it, as Hydra does ${now:%Y}
            raise JobError(
                f"script_args has ${{{name}{found[3]}…, but of what a shell knows only $NAME and ${{NAME}} are "
                f"replaced; write ${{{name}}}, or $${{{name}{found[3]}… if the script is to see it as it is"
            )
        if name == "CKPT_PATH" and without:
            raise JobError(
                "script_args names $CKPT_PATH, but this job goes on from no checkpoint; leave it out, or name the job "
                "to go on from with -e resume=ID"
            )
        if without:
            where = "" if len(without) == len(known) else f" on {join_names(without)}"
            others = sorted(set.intersection(*known.values()) - {*ACCOUNT} | {"HOME", "USER"})
            raise JobError(
                f"script_args names ${name}, but the job has no variable of that name{where}; set it with env or "
                f"job_env, write $${name} for a dollar as it is, or name one of {', '.join(others)}"
            )
