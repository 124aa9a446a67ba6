# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what was given with ``-e``: Ansible ignores what no task reads, so a misspelt option would change what runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import COLLECTION, ROLES

STRAY = "_raw_params"
"""The name under which Ansible keeps what stood beside the ``name=value`` pairs."""
NAMES_OF_JOBS = ("job", "resume", "rerun")
NAMING = {
    **dict.fromkeys(NAMES_OF_JOBS, "a job's id (ansible-playbook status.yml lists them)"),
    "checkpoint": "the path of a file or a folder",
}
"""Options that name something; without one the latest is meant, or none, and with an empty one something else."""
SIMILAR, SIMILAR_IN_FULL = 0.7, 0.88
"""From 0 to 1, as difflib measures it: for a name of one word, and for one of several, many of which are alike."""


RENAMED = {"args": "script_args"}
"""Options that have another name because Ansible reserves theirs."""

_WITH_DEFAULT = re.compile(r"[({=]\s*(\w+)(?=\s*\|\s*default\()")
_LOOKED_UP = re.compile(r"thunderhead\.cluster\.options\b([^)]*)")
_ROLE = re.compile(r"(?:role|name): thunderhead\.cluster\.(\w+)")


def options_of(text: str) -> set[str]:
    """Return the names that a task's or a playbook's text reads and that need not be given."""
    looked_up = (name for names in _LOOKED_UP.findall(text) for name in re.findall(r"\w+", names))
    return {*_WITH_DEFAULT.findall(text), *looked_up}


def variables_of(playbook: Path) -> set[str]:
    """Return the names that a playbook of the collection reads, itself or in its roles."""
    import yaml

    text = playbook.read_text(encoding="utf-8")
    found = options_of(text)
    for role in set(_ROLE.findall(text)):
        specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text("utf-8"))
        for entry in specs["argument_specs"].values():
            found |= entry["options"].keys()
    return found


def variables_beside(path: str) -> tuple[set[str], set[str]]:
    """Return what the playbook at ``path`` reads, and what the others of the collection read.

    Both are empty for a playbook that is not the collection's: what its own files and roles read is not known.
    """
    playbooks = COLLECTION / "playbooks"
    if Path(path).resolve().parent != playbooks.resolve():
        return set(), set()
    read = {playbook.name: variables_of(playbook) for playbook in playbooks.glob("*.yml")}
    return read.get(Path(path).name, set()), set().union(*read.values())


def require_meant(given: Mapping[str, Any], read: Collection[str], others: Collection[str] = ()) -> None:
    """Check what was given with ``-e``.

    A variable whose name is like none of those that are read is the inventory's own affair.

    Args:
        given: every name, and STRAY.
        read: the names that the playbook reads.
        others: further ones that are no mistake: one file of options may serve several playbooks.

    Raises:
        JobError: a word belongs to no variable (of ``-e "script_args=--max-epochs 3"`` Ansible drops the 3), a job's
            id is empty or not read, an option has another name now, or a name that is not read is nearly one that is.
    """
    for name, now in RENAMED.items():
        if name in given and now in read:
            raise JobError(f"-e was given {name}, a name that Ansible reserves for itself; write {now}")
    if (stray := given.get(STRAY)) and "include" in given and "script_args" not in given:
        raise JobError(
            f"-e was given {stray!r}, which belongs to no variable; between the patterns of include write commas, as "
            "in -e include='*.bin,.env'"
        )
    if stray:
        raise JobError(
            f"-e was given {stray!r}, which belongs to no variable; quote a value with spaces once more, as in "
            '-e "script_args=\'--max-epochs 3\'", or give JSON: -e \'{"script_args": ["--max-epochs", "3"]}\''
        )
    for name, what in NAMING.items():
        if given.get(name) == "":
            raise JobError(f"{name} is empty; give {what}, or leave it out")
    naming = [name for name in NAMES_OF_JOBS if name in read]
    for name in NAMES_OF_JOBS:
        if naming and name in given and name not in read:  # it would act on another job
            raise JobError(
                f"-e was given {name}, which this playbook does not read; to name a job, write {' or '.join(naming)}"
            )
    unknown = [name for name in given if name not in read and name not in others]
    if not unknown:
        return
    import difflib  # most do not come here

    def likeness(name: str, meant: str) -> float:
        if sorted(name) == sorted(meant):
            return 1  # letters changed places
        return difflib.SequenceMatcher(None, _without_dashes(name), _without_dashes(meant)).ratio()

    for name in unknown:
        alike = {meant: likeness(name, meant) for meant in sorted(read)}
        enough = [meant for meant in alike if alike[meant] >= (SIMILAR_IN_FULL if "_" in meant else SIMILAR)]
        if enough:
            raise JobError(
                f"-e was given {name}, which this playbook does not read; write {max(enough, key=alike.__getitem__)}, "
                "or give a variable of the inventory's own another name"
            )


def _without_dashes(name: str) -> str:
    return name.replace("_", "").replace("-", "")
