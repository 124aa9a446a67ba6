# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job's environment: what a user may add, and templates/node.env.j2, which writes it all."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError

TEMPLATE = Path(__file__).parents[2] / "templates" / "node.env.j2"

OURS = frozenset(["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "NUM_NODES", "JOB_ID", "JOB_DIR"])
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
        return str(value)
    raise JobError(f"{subject} gives {name} a value that is neither text nor a number; give it a string")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))  # as ansible.builtin.quote
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(node: Mapping[str, Any], variables: Mapping[str, str], job: Mapping[str, Any] | None = None) -> str:
    """Return the text of one node's node.env, NAME=value lines quoted for a shell.

    Args:
        node: rank, world_size, master_addr, master_port, interface.
        variables: the user's, merged last.
        job: for a job's own file: id, dir, checkpoint (path or ""), commit (of its code, or ""), gang (whether its
            nodes work together) and framework (what a framework that the script uses takes from the environment
            besides).
    """
    return _template().render(
        node_env_node=node, **({"node_env_job": job} if job else {}), node_env_variables=variables
    )


def parse(text: str) -> dict[str, str]:
    """Return the mapping in a node.env, as a shell would read it: the last of several values counts."""
    pairs = [word.partition("=") for word in shlex.split(text, comments=True)]
    return {name: value for name, _equals, value in pairs}
