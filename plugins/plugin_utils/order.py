# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the user asked for, checked as far as it can be without the nodes, and made into a job."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils.bundle import MOST_MB, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.entry_point import find_entry, search_path
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.environment import as_environment
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.frameworks import PLAIN, Fit, fit
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.gang import Identity
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.history import stored_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.launch import Job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.project_files import CHOICES
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import new_job_id, who

EXAMPLE = Path(__file__).parents[2] / "train"
"""The project of those who name none."""
PROJECT_FILES: dict[str, dict[str, Any]] = {
    "include": {"type": "raw", "default": ""},
    "project_files": {"type": "str", "choices": list(CHOICES)},
    "bundle_max_mb": {"type": "int", "default": MOST_MB},
}
"""Which files of the project are copied to the nodes, as an argument spec."""
AUTO = "auto"
"""The launcher that fits what the script uses."""


@dataclass(frozen=True)
class Order:
    """What the user asked for, as it stands on the command line; None and "" mean the default or the earlier job's.

    Attributes:
        script: path of the script in ``project``.
        module: name of a module in ``project``, to be started instead of a script.
        include: patterns of files that are brought besides, as in a .gitignore.
        project_files: one of project_files.CHOICES; None means the default or the earlier job's.
        args: a string, split as a shell would, or a list; never given to a shell.
        project: folder on the controller.
        env: mapping of environment variables, or its text.
        runs: folder of the controller's records.
        logs: whose output is shown live: ``head``, ``all`` or ``none``.
        launcher: one of launch.LAUNCHERS, or ``auto``: the one that fits what the script uses.
        devices: ranks per node under torchrun, a number or ``auto``.
        resume: id of a job whose newest checkpoint this one goes on from.
        checkpoint: path of another checkpoint to go on from, of whatever library.
        rerun: id of a job to be run again with the same code.
        detach: return after the start.
        on_interrupt: what Ctrl-C does: ``detach`` or ``stop``.
        wait_seconds: how long to wait for nodes that run another job.
        collect: whose artifacts are brought home: ``head``, ``all`` or ``none``.
        keep: how many ended jobs stay on the nodes; None means all.
        bundle_max_mb: the most the code may have, MiB.
        node_timeout_seconds: a node silent for this long is lost.
        stall_timeout_seconds: without any output for this long, what every rank does is looked at; 0 means never.
        rendezvous_timeout_seconds: the same at the start, where a rendezvous that hangs ends the job; 0 means never.
        grace_seconds: between TERM and KILL.
        preflight: thresholds, and checks to be skipped; see preflight.brief.
        gang: whether the nodes work together; else each runs the script for itself.
    """

    script: str
    args: Any
    project: Path | None
    env: Any
    runs: Path
    logs: str
    launcher: str
    devices: str
    resume: str
    checkpoint: str
    rerun: str
    detach: bool
    on_interrupt: str
    wait_seconds: int
    collect: str
    keep: int | None
    bundle_max_mb: int
    node_timeout_seconds: int
    stall_timeout_seconds: int
    rendezvous_timeout_seconds: int
    grace_seconds: int
    preflight: Mapping[str, Any] = field(default_factory=dict)
    gang: bool | None = None
    module: str = ""
    include: Sequence[str] = ()
    project_files: str | None = None

    def check(self) -> None:
        """Raise JobError for a number out of its range, or options that exclude each other."""
        for name, value, least in (
            ("job_node_timeout_seconds", self.node_timeout_seconds, 1),
            ("job_stop_grace_seconds", self.grace_seconds, 0),
            ("job_stall_timeout_seconds", self.stall_timeout_seconds, 0),
            ("job_rendezvous_timeout_seconds", self.rendezvous_timeout_seconds, 0),
            ("wait", self.wait_seconds, 0),
            ("keep", self.keep or 0, 0),
        ):
            if value < least:
                raise JobError(f"{name} is {value}; set it to {least} or more")
        code = (self.script, self.module, self.project, self.include, self.project_files)
        if self.rerun and (any(code) or self.args not in ("", None, [])):
            raise JobError(
                "rerun runs an earlier job's code with its arguments again, so script, module, script_args, "
                "project_dir, include and project_files cannot be given with it; leave them out, or leave out rerun"
            )


def split_args(args: Any) -> list[str]:
    """Return the script's arguments.

    Raises:
        JobError: unbalanced quotes, a null byte, or neither a string nor a list of scalars.
    """
    if isinstance(args, str):
        try:
            words = shlex.split(args)
        except ValueError as error:
            raise JobError(f"script_args has unbalanced quotes ({error}): {args}; close them, or give a list") from None
    elif isinstance(args, Sequence) and all(isinstance(word, (str, int, float)) for word in args):
        words = [str(word) for word in args]
    else:
        raise JobError(f"script_args is {args!r}; give a string such as '--max-epochs 3', or a list of words")
    if any("\0" in word for word in words):
        raise JobError("script_args has a word with a null byte, which no command line can hold; remove it")
    return words


def split_patterns(include: Any) -> list[str]:
    """Return patterns of files as a list; raises JobError for what is neither a string nor a list of strings."""
    if isinstance(include, str):
        words = shlex.shlex(include, posix=True, punctuation_chars=False)
        words.whitespace, words.whitespace_split, words.commenters = " \t\n,", True, ""
        try:
            return list(words)
        except ValueError:
            include = None
    if isinstance(include, Sequence) and all(isinstance(pattern, str) for pattern in include):
        return list(include)
    raise JobError("include is no list of patterns; give them as in a .gitignore, with commas between: '*.bin,.env'")


def count_devices(devices: str) -> int | None:
    """Return how many ranks each node has, None for one for each GPU; raises JobError for what is no number."""
    if devices in ("", "auto"):
        return None
    if not devices.isdecimal() or int(devices) < 1:
        raise JobError(f"devices is {devices}; set auto, or the number of ranks on each node")
    return int(devices)


def count_started(devices: str, launcher: str, reason: str = "") -> int | None:
    """Return how many ranks torchrun starts per node, None for as many as there are GPUs.

    Args:
        devices: the user's word.
        launcher: which starts the script.
        reason: why that one was chosen; "" if the user named it.

    Raises:
        JobError: no number, or a number for a launcher that starts the script once per node.
    """
    if launcher != "torchrun" and devices not in ("", "auto"):
        why = f" ({reason})" if reason else ""
        decides = "the script's Trainer(devices=...) decides" if launcher == "lightning" else "there is one per node"
        raise JobError(
            f"devices is {devices}, but only launcher=torchrun takes it; with launcher={launcher}{why} {decides}"
        )
    return count_devices(devices)


def make_job(
    order: Order, earlier: Mapping[str, Any], checkpoint: str, inherited: Mapping[str, str] | None = None
) -> Job:
    """Check all that can be checked without the nodes, snapshot the code, and return the job.

    Args:
        order: the user's.
        earlier: what job.json or spec.json say of the job to run again or to go on from, else empty.
        checkpoint: path of the checkpoint to go on from, relative to the working directory, or "".
        inherited: variables of the inventory's for its jobs, as the head has them.

    Raises:
        JobError: bad input.
    """
    args = split_args(order.args if order.args not in ("", None) else earlier.get("args", ""))
    env = as_environment(order.env, "env")
    module = order.module or ("" if order.script else earlier.get("module") or "")
    project = Path(earlier["project_dir"]) if earlier.get("project_dir") else None
    if missing := set(earlier.get("env_names", ())) - env.keys():
        raise JobError(
            f"job {order.rerun or order.resume} had environment variables whose values are not kept: "
            f'{", ".join(sorted(missing))}; give them again with -e \'{{"env": {{...}}}}\', or another value, or ""'
        )
    if order.rerun:
        script, bundle = earlier["script"], stored_bundle(order.runs, earlier)
        found = Fit(earlier.get("uses", PLAIN), script)
    else:
        if order.resume and earlier and not (order.project or project):
            raise JobError(
                f"which project job {order.resume} had is not known here, for it was started from elsewhere; give it "
                "with -e project_dir="
            )
        project = order.project or project or EXAMPLE
        variables = {**(inherited or {}), **env}
        named = order.script or ("" if module else earlier.get("script", ""))
        script = find_entry(project, named, module, variables)
        include = order.include or earlier.get("include", [])
        everything = (order.project_files or earlier.get("project_files")) == "all"
        bundle = make_bundle(project, script, order.bundle_max_mb, include, everything)
        found = fit(project, script, search_path(project, script, module, variables), bundle.paths)
    wanted = order.launcher or earlier.get("launcher") or AUTO
    launcher, reason = (found.launcher, found.reason) if wanted == AUTO else (wanted, "")
    devices = count_started(order.devices, launcher, reason) if order.devices else earlier.get("devices")
    now = datetime.datetime.now(datetime.timezone.utc)
    return Job(
        identity=Identity(
            now.isoformat(timespec="seconds"), new_job_id(module.rpartition(".")[2] or script, now), who()
        ),
        bundle=bundle,
        script=script,
        args=args,
        env=env,
        node_timeout_seconds=order.node_timeout_seconds,
        grace_seconds=order.grace_seconds,
        wait_seconds=order.wait_seconds,
        launcher=launcher,
        devices=devices,
        checkpoint=checkpoint,
        preflight=order.preflight,
        gang=earlier.get("gang", True) if order.gang is None else order.gang,
        uses=found.kind,
        reason=reason,
        module=module,
        project=project,
    )


def described(job: Job, order: Order) -> dict[str, Any]:
    """Return what job.json says of a job: enough to run it again but for the values of its environment."""
    return {
        "script": job.script,
        "module": job.module or None,
        "args": list(job.args),
        "launcher": job.launcher,
        "devices": job.devices,
        "gang": job.gang,
        "uses": job.uses,
        "checkpoint": job.checkpoint or None,
        "project_dir": str(job.project) if job.project else None,
        "include": list(job.bundle.include),
        "project_files": "all" if job.bundle.everything else "git",
        "env_names": sorted(job.env),  # names only: values may be secrets
        "user": job.identity.user,
        "started": job.identity.start,
        "resumed": order.resume or None,
        "rerun": order.rerun or None,
        "node_timeout_seconds": job.node_timeout_seconds,
        "grace_seconds": job.grace_seconds,
        "commit": job.bundle.commit,
        "dirty": job.bundle.dirty,
        "bundle": {
            "sha256": job.bundle.sha256,
            "bytes": job.bundle.size,
        },
    }
