# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the options of a job, and check what the user gave.

Each option stands once, in the argument specs below: the actions take them, the classes have a field for each, and
tests hold the playbooks and the documentation against them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.job import ANY, FAULT, LAUNCHERS
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import prepared_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import MOST_MB
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.project_files import CHOICES

Spec = Mapping[str, dict[str, Any]]
"""An argument spec of Ansible's."""

FOLLOW_OPTIONS: Spec = {
    "logs": {"type": "str", "choices": ["head", "all", "none"], "default": "head"},
    "collect": {"type": "str", "choices": ["head", "all", "none"], "default": "head"},
    "on_interrupt": {"type": "str", "choices": ["detach", "stop"], "default": "detach"},
    "keep": {"type": "int"},
    "runs_dir": {"type": "path", "default": "runs"},
    "node_timeout_seconds": {"type": "int", "default": 30},
    "stop_grace_seconds": {"type": "int", "default": 10},
}
"""Of every command that follows a job."""
PROJECT_OPTIONS: Spec = {
    "script": {"type": "str", "default": ""},
    "module": {"type": "str", "default": ""},
    "project_dir": {"type": "path"},
    "env": {"type": "raw", "default": {}},
    "include": {"type": "raw", "default": ""},
    "project_files": {"type": "str", "choices": list(CHOICES)},
    "bundle_max_mb": {"type": "int", "default": MOST_MB},
}
"""What code runs, with which variables; a preflight tries its imports."""
RUN_OPTIONS: Spec = {
    **PROJECT_OPTIONS,
    "script_args": {"type": "raw", "default": ""},
    "launcher": {"type": "str", "choices": ["auto", *LAUNCHERS]},
    "devices": {"type": "str", "default": ""},
    "gang": {"type": "bool"},
    "resume": {"type": "str", "default": ""},
    "checkpoint": {"type": "str", "default": ""},
    "companion": {"type": "bool", "default": True},
    "retries": {"type": "int"},
    "return_seconds": {"type": "int", "default": 300},
    "spares": {"type": "int"},
    "retry_on": {"type": "str", "choices": [FAULT, ANY], "default": FAULT},
    "rerun": {"type": "str", "default": ""},
    "detach": {"type": "bool", "default": False},
    "wait": {"type": "int", "default": 0},
    "stall_timeout_seconds": {"type": "int", "default": 0},
    "rendezvous_timeout_seconds": {"type": "int", "default": 120},
    "skip": {"type": "list", "elements": "str", "default": []},
    **prepared_nodes.OPTIONS,
    **FOLLOW_OPTIONS,
}
"""Of the command that starts a job."""


@dataclass(frozen=True)
class FollowOptions:
    """How a job is followed; a field for each of FOLLOW_OPTIONS.

    Attributes:
        logs: whose output is shown live: ``head``, ``all`` or ``none``.
        collect: whose artifacts are fetched: ``head``, ``all`` or ``none``.
        on_interrupt: what Ctrl-C does: ``detach`` or ``stop``.
        keep: how many ended jobs stay on the nodes; None means all.
        runs_dir: folder of the controller's records.
        node_timeout_seconds: a node silent for this long is lost.
        stop_grace_seconds: between TERM and KILL.
    """

    logs: str
    collect: str
    on_interrupt: str
    keep: int | None
    runs_dir: Path
    node_timeout_seconds: int
    stop_grace_seconds: int

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> FollowOptions:
        """Return the options in the arguments of an action; a relative path is one of the working directory.

        Raises:
            JobError: a number is out of its range.
        """
        given = {name: arguments[name] for name in FOLLOW_OPTIONS}
        for name, least in {"node_timeout_seconds": 1, "stop_grace_seconds": 0}.items():
            _require_at_least(f"job_{name}", given[name], least)
        _require_at_least("keep", given["keep"] or 0, 0)
        return cls(**{**given, "runs_dir": Path(os.path.abspath(given["runs_dir"]))})


@dataclass(frozen=True)
class RunOptions:
    """What job is started; a field for each of RUN_OPTIONS, None and "" meaning the default or the earlier job's.

    Attributes:
        script: path of the script in ``project_dir``.
        module: name of a module in ``project_dir``, to be started instead of a script.
        project_dir: folder on the controller.
        env: mapping of environment variables, or its text.
        include: patterns of files that are brought besides, as in a .gitignore.
        project_files: one of project_files.CHOICES.
        bundle_max_mb: the most the code may have, MiB.
        script_args: a string, split as a shell would, or a list; never given to a shell.
        launcher: one of job.LAUNCHERS, or ``auto``: the one that fits what the script uses.
        devices: ranks per node under torchrun, a number or ``auto``.
        gang: whether the nodes work together; else each runs the script for itself.
        resume: id of a job whose newest checkpoint this one goes on from.
        checkpoint: path of another checkpoint to go on from, of whatever library.
        companion: whether Lightning's Trainer is helped to find checkpoints, and to go on in the middle of an epoch.
        retries: how many attempts may follow the first; None for job.RETRIES, where that is possible.
        retry_on: after what, job.FAULT or job.ANY.
        return_seconds: how long another attempt waits for a node that is lost to be there again.
        spares: how many of the nodes wait until one of the others is lost: the last ones; None for none, or as many as
            the job had that is run again.
        rerun: id of a job to be run again with the same code.
        detach: return after the start.
        wait: how many seconds to wait for nodes that run another job.
        stall_timeout_seconds: without any output for this long, a message says what the ranks do; 0 means never.
        rendezvous_timeout_seconds: the same at the start, where a rendezvous that hangs ends the job; 0 means never.
        preflight: thresholds, and checks to be skipped; see preflight.prepared_nodes.
        follow: how it is followed.
    """

    script: str
    module: str
    project_dir: Path | None
    env: Any
    include: Sequence[str]
    project_files: str | None
    bundle_max_mb: int
    script_args: Any
    launcher: str | None
    devices: str
    gang: bool | None
    resume: str
    checkpoint: str
    companion: bool
    retries: int | None
    retry_on: str
    return_seconds: int
    spares: int | None
    rerun: str
    detach: bool
    wait: int
    stall_timeout_seconds: int
    rendezvous_timeout_seconds: int
    preflight: Mapping[str, Any]
    follow: FollowOptions

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> RunOptions:
        """Return the options in the arguments of an action; a relative path is one of the working directory.

        Raises:
            JobError: a number is out of its range, options exclude each other, or ``include`` is no list.
        """
        others = {*FOLLOW_OPTIONS, *prepared_nodes.DEFAULTS}
        given = {name: arguments[name] for name in RUN_OPTIONS if name not in others}
        for name in ("wait", "retries", "spares"):
            _require_at_least(name, given[name] or 0, 0)
        for name in ("stall_timeout_seconds", "rendezvous_timeout_seconds", "return_seconds"):
            _require_at_least(f"job_{name}", given[name], 0)
        folder = given["project_dir"]
        given["project_dir"] = Path(os.path.abspath(folder)) if folder else None
        given["include"] = split_patterns(given["include"])
        code = [given[name] for name in ("script", "module", "project_dir", "include", "project_files")]
        if given["rerun"] and (any(code) or given["script_args"] not in ("", None, [])):
            raise JobError(
                "rerun runs an earlier job's code with its arguments again, so script, module, script_args, "
                "project_dir, include and project_files cannot be given with it; leave them out, or leave out rerun"
            )
        preflight = {name: arguments[name] for name in prepared_nodes.DEFAULTS}
        return cls(**given, preflight=preflight, follow=FollowOptions.from_arguments(arguments))


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise JobError(f"{name} is {value}; set it to {least} or more")


def split_patterns(include: Any) -> list[str]:
    """Return patterns of files as a list; raises JobError for what is neither a string nor a list of strings."""
    if isinstance(include, str):
        lexer = shlex.shlex(include, posix=True, punctuation_chars=False)
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\n,", True, ""
        try:
            return list(lexer)
        except ValueError:
            include = None
    if isinstance(include, Sequence) and all(isinstance(pattern, str) for pattern in include):
        return list(include)
    raise JobError("include is no list of patterns; give them as in a .gitignore, with commas between: '*.bin,.env'")
