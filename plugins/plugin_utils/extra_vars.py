# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What was given with ``-e``: Ansible passes over what nobody reads, and a misspelt option would change what runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError

STRAY = "_raw_params"
"""The name under which Ansible keeps what stood beside the ``name=value`` pairs."""
IDS = ("job", "resume", "rerun")
"""Options that name a job; without one the latest is meant, or none, and with an empty one something else."""
SIMILAR, SIMILAR_IN_FULL = 0.7, 0.88
"""From 0 to 1, as difflib measures it: for a name of one word, and for one of several, many of which are alike."""


def options_of(task: Any) -> set[str]:
    """Return the names for which a task has a default; ``task`` is what its YAML came to."""
    return set(re.findall(r"[({]\s*(\w+)(?=\s*\|\s*default\()", str(task)))


def require_meant(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Check what was given with ``-e``.

    A variable whose name is like none of the known ones is the inventory's own affair.

    Args:
        given: every name, and STRAY.
        known: the names that are read.

    Raises:
        JobError: a word belongs to no variable (of ``-e "args=--max-epochs 3"`` Ansible drops the 3), a job's id is
            empty, or a name that is not read is nearly one that is.
    """
    if stray := given.get(STRAY):
        raise JobError(
            f"-e was given {stray!r}, which belongs to no variable; quote a value with spaces once more, "
            'as in -e "args=\'--max-epochs 3\'", or give JSON: -e \'{"args": ["--max-epochs", "3"]}\''
        )
    for name in IDS:
        if given.get(name) == "":
            raise JobError(
                f"{name} is empty; give a job's id (ansible-playbook status.yml lists them), or leave it out"
            )
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    import difflib  # most do not come here

    for name in unknown:
        for meant in sorted(known):
            needed = SIMILAR_IN_FULL if "_" in meant else SIMILAR
            if difflib.SequenceMatcher(None, _without_dashes(name), _without_dashes(meant)).ratio() >= needed:
                raise JobError(
                    f"-e was given {name}, which this playbook does not read; write {meant}, or give a variable of "
                    "the inventory's own another name"
                )


def _without_dashes(name: str) -> str:
    return name.replace("_", "").replace("-", "")
