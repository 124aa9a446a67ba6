# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a job of the user's options, as far as that is possible without the nodes."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    as_environment,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import (
    Identity,
    new_job_id,
    who,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import stored_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.job import RETRIES, Job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import RunOptions
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import EXAMPLE
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle, make_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import (
    CLI,
    PLAIN,
    TRAINER,
    Fit,
    fit,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.entry_point import (
    find_entry,
    search_path,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.mentions_checkpoint import (
    mentions_checkpoint,
)

AUTO = "auto"
"""The launcher that fits what the script uses."""


def split_args(args: Any) -> list[str]:
    """Return the script's arguments.

    Raises:
        JobError: unbalanced quotes, a null byte, half a character, or neither a string nor a list of scalars.
    """
    if isinstance(args, str):
        try:
            arguments = shlex.split(args)
        except ValueError as error:
            raise JobError(f"script_args has unbalanced quotes ({error}): {args}; close them, or give a list") from None
    elif isinstance(args, Sequence) and all(isinstance(argument, (str, int, float)) for argument in args):
        arguments = [str(argument) for argument in args]
    else:
        raise JobError(f"script_args is {args!r}; give a string such as '--max-epochs 3', or a list of arguments")
    if not all(map(_is_encodable, arguments)):
        raise JobError("script_args has an argument with half a character, which UTF-8 cannot hold; correct it")
    if any("\0" in argument for argument in arguments):
        raise JobError("script_args has an argument with a null byte, which no command line can hold; remove it")
    return arguments


def _is_encodable(argument: str) -> bool:
    """Return whether an argument can be handed to a program: text, or bytes of the command line that are no UTF-8."""
    try:
        return bool(argument.encode(errors="surrogateescape")) or not argument
    except UnicodeEncodeError:
        return False


def count_devices(devices: str) -> int | None:
    """Return how many ranks each node has, None for one for each GPU; raises JobError for what is no number."""
    if devices in ("", "auto"):
        return None
    if not devices.isdecimal() or int(devices) < 1:
        raise JobError(f"devices is {devices}; set auto, or the number of ranks on each node")
    return int(devices)


def count_torchrun_devices(devices: str, launcher: str, reason: str = "") -> int | None:
    """Return how many ranks torchrun starts per node, None for as many as there are GPUs.

    Args:
        devices: the user's value.
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


def take_code(
    project: Path,
    script: str,
    module: str,
    variables: Mapping[str, str],
    max_mb: int,
    include: Sequence[str],
    everything: bool,
) -> tuple[str, Bundle, Fit]:
    """Return the script that a job starts, the code as it is now, and how that script is started.

    Args:
        project: folder on the controller.
        script: path of the script in it, or "".
        module: name of a module in it, or "".
        variables: of the job's environment.
        max_mb: the most the code may have, MiB.
        include: patterns of files that are brought besides.
        everything: whether what git ignores comes along.

    Raises:
        JobError: there is no such script, or its code cannot be brought.
    """
    script = find_entry(project, script, module, variables)
    bundle = make_bundle(project, script, max_mb, include, everything)
    return script, bundle, fit(project, script, search_path(project, script, module, variables), bundle.paths)


def make_job(
    options: RunOptions, earlier: Mapping[str, Any], checkpoint: str, inherited: Mapping[str, str] | None = None
) -> Job:
    """Check all that can be checked without the nodes, snapshot the code, and return the job.

    Args:
        options: the user's.
        earlier: what job.json or spec.json say of the job to run again or to go on from, else empty.
        checkpoint: path of the checkpoint to go on from, relative to the working directory, or "".
        inherited: variables of the inventory's for its jobs, as the head has them.

    Raises:
        JobError: bad input.
    """
    args = split_args(options.script_args if options.script_args not in ("", None) else earlier.get("args", ""))
    env = as_environment(options.env, "env")
    module = options.module or ("" if options.script else earlier.get("module") or "")
    project = Path(earlier["project_dir"]) if earlier.get("project_dir") else None
    if missing := set(earlier.get("env_names", ())) - env.keys():
        raise JobError(
            f"job {options.rerun or options.resume} had environment variables whose values are not kept: "
            f'{", ".join(sorted(missing))}; give them again with -e \'{{"env": {{...}}}}\', or another value, or ""'
        )
    fit_goes_on: bool | None = None  # not known
    if options.rerun:
        script, bundle = earlier["script"], stored_bundle(options.follow.runs_dir, earlier)
        found = Fit(earlier.get("uses", PLAIN), script)
        fit_goes_on = earlier.get("fit_goes_on") if options.companion else None
    else:
        if options.resume and earlier and not (options.project_dir or project):
            raise JobError(
                f"which project job {options.resume} had is not known here, because it was started from elsewhere; "
                "give it with -e project_dir="
            )
        project = options.project_dir or project or EXAMPLE
        variables = {**(inherited or {}), **env}
        named = options.script or ("" if module else earlier.get("script", ""))
        include = options.include or earlier.get("include", [])
        everything = (options.project_files or earlier.get("project_files")) == "all"
        script, bundle, found = take_code(project, named, module, variables, options.bundle_max_mb, include, everything)
        if options.companion and found.kind == TRAINER:
            folders = search_path(project, script, module, variables)
            fit_goes_on = not mentions_checkpoint(project, script, folders, bundle.paths, args)
    wanted = options.launcher or earlier.get("launcher") or AUTO
    launcher, reason = (found.launcher, found.reason) if wanted == AUTO else (wanted, "")
    devices = count_torchrun_devices(options.devices, launcher, reason) if options.devices else earlier.get("devices")
    gang = earlier.get("gang", True) if options.gang is None else options.gang
    why_none = why_no_retries(options, found.kind, gang, fit_goes_on, [*args, *env, *(inherited or {})])
    if options.retries and why_none:
        raise JobError(f"retries is {options.retries}, but {why_none}; leave retries out")
    spares = (earlier.get("spares", 0) if options.rerun else 0) if options.spares is None else options.spares
    if spares and (why_none or options.retries == 0):
        given, remedy = f"spares is {spares}", "leave spares out"
        if options.spares is None:
            given, remedy = f"job {options.rerun} had {pluralize(spares, 'spare')}", "set -e spares=0"
        raise JobError(f"{given}, but {why_none or 'retries is 0'}; {remedy}")
    now = datetime.datetime.now(datetime.timezone.utc)
    return Job(
        identity=Identity(
            now.isoformat(timespec="seconds"), new_job_id(module.rpartition(".")[2] or script, now), who()
        ),
        bundle=bundle,
        script=script,
        args=args,
        env=env,
        node_timeout_seconds=options.follow.node_timeout_seconds,
        stall_timeout_seconds=options.stall_timeout_seconds,
        rendezvous_timeout_seconds=options.rendezvous_timeout_seconds,
        grace_seconds=options.follow.stop_grace_seconds,
        wait_seconds=options.wait,
        launcher=launcher,
        devices=devices,
        checkpoint=checkpoint,
        companion=options.companion,
        fit_goes_on=fit_goes_on,
        preflight=options.preflight,
        retries=0 if why_none else RETRIES if options.retries is None else options.retries,
        retry_on=options.retry_on,
        return_seconds=options.return_seconds,
        spares=spares,
        gang=gang,
        uses=found.kind,
        reason=reason,
        module=module,
        project=project,
    )


def why_no_retries(options: RunOptions, kind: str, gang: bool, fit_goes_on: bool | None, texts: Sequence[str]) -> str:
    """Return why a job cannot be started again by itself from its newest checkpoint, a clause; "" if it can.

    Args:
        options: the user's.
        kind: what the script uses, of choose_launcher.KINDS.
        gang: whether the nodes work together.
        fit_goes_on: whether a Trainer's first fit gets the checkpoint by itself; None if that is not known.
        texts: the script's arguments, and the names of the user's variables.
    """
    if kind not in (TRAINER, CLI):
        return "only a script that uses Lightning's Trainer or LightningCLI is started again by itself"
    if not gang or not options.companion:
        return f"with {'companion' if gang else 'gang'}=false no job is started again by itself"
    if kind == TRAINER and fit_goes_on is None:
        return f"what {options.rerun} does with a checkpoint is not known, because it was started without the companion"
    if any("ckpt_path" in one or (one.endswith("CKPT_PATH") and "$" not in one) for one in texts):
        return "the arguments or variables of the script say which checkpoint it begins from"
    if options.checkpoint and not fit_goes_on and kind == TRAINER:
        return "the script says itself what CKPT_PATH is for, which may be no more than the weights to begin with"
    return ""


def describe_job(job: Job, options: RunOptions) -> dict[str, Any]:
    """Return the fields of job.json: enough to run a job again, without the values of its environment."""
    return {
        "script": job.script,
        "module": job.module or None,
        "args": list(job.args),
        "launcher": job.launcher,
        "devices": job.devices,
        "gang": job.gang,
        "uses": job.uses,
        "checkpoint": job.checkpoint or None,
        "fit_goes_on": job.fit_goes_on,
        "retries": job.retries,
        "retry_on": job.retry_on,
        "spares": job.spares,
        "project_dir": str(job.project) if job.project else None,
        "include": list(job.bundle.include),
        "project_files": "all" if job.bundle.everything else "git",
        "env_names": sorted(job.env),  # names only: values may be secrets
        "user": job.identity.user,
        "started": job.identity.start,
        "resumed": options.resume or None,
        "rerun": options.rerun or None,
        "node_timeout_seconds": job.node_timeout_seconds,
        "grace_seconds": job.grace_seconds,
        "commit": job.bundle.commit,
        "dirty": job.bundle.dirty,
        "bundle": {
            "sha256": job.bundle.sha256,
            "bytes": job.bundle.size,
        },
    }
