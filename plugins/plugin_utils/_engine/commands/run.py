# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start a job on all nodes and follow it to its end."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import pluralize
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.command_context import (
    CommandContext,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import Interrupted
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.job_warnings import world_size
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.history import earlier_job, store_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import RunOptions
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.plan_job import describe_job, make_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import (
    Record,
    command_result,
    still_running_message,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.script_variables import require_known

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Topology
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.resume_point import ResumePoint
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog

LEAST_TRAINING = 2
"""How many nodes have to train in a job with spares: the first one is never replaced."""
FIRST_CHECK_SECONDS = 0.15
"""Until the nodes are asked how the job goes: a script has hardly begun by then. Where 16 nodes share two cores, to be
asked at once held the last script up by 0.12 s (14 rounds by turns, against a pause of 0.3 s)."""


def plan(options: RunOptions, context: CommandContext) -> tuple[Launch, ResumePoint | None]:
    """Check what the user asked for, and return what is to be launched, and what it is to go on from.

    Raises:
        JobError: bad input, or nothing to go on from.
    """
    earlier = earlier_job(options.rerun, options.follow.runs_dir, context.hosts)
    origin = None
    if options.resume or options.checkpoint:
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.resume_point import (
            find_resume_point,
        )

        origin = find_resume_point(options.resume, options.checkpoint, options.follow.runs_dir, context)
        earlier = earlier or origin.about
    job = make_job(options, earlier, origin.path if origin else "", context.nodes.settings[0].env)
    count, spares = len(context.nodes.settings), job.spares
    if spares and count - spares < LEAST_TRAINING:
        raise JobError(
            f"spares is {spares} of {pluralize(count, 'node')}, but at least {LEAST_TRAINING} have to train, because a "
            "spare cannot replace the first; set a lower -e spares, or add machines to the inventory"
        )
    require_known(job.args, job.env, {one.host: one.env for one in context.nodes.settings}, job.checkpoint)
    return Launch(job, context.nodes, context.members), origin


def check(options: RunOptions, context: CommandContext) -> str:
    """Check whether the job could start now, show the notes, and start nothing; return a sentence that says so."""
    launch, _origin = plan(options, context)
    topology = launch.prepare(dry=True)
    for note in launch.notes:
        context.say(note)
    return f"would start {launch.job.module or launch.job.script} on {_describe_nodes(topology)}"


def _describe_nodes(topology: Topology) -> str:
    """Return ``4 nodes``, or ``4 nodes and 1 spare``."""
    spares = len(topology.nodes) - topology.world_size
    return pluralize(topology.world_size, "node") + (f" and {pluralize(spares, 'spare')}" if spares else "")


def run(options: RunOptions, context: CommandContext) -> dict[str, Any]:
    """Start a job everywhere, follow it to its end, and fetch what it left.

    Returns:
        The job's id, its folder, world size and state.

    Raises:
        JobError: the job did not start, or did not end well on every rank. Its record is complete all the same.
        Interrupted: the user gave up before it was started; nothing was.
    """
    launch, origin = plan(options, context)
    record = Record(options.follow.runs_dir, launch.gang.job_id)

    def check_interrupt() -> None:
        if context.interrupts.came:  # ansible-playbook was killed meanwhile, which raises nothing here
            raise Interrupted

    with context.interrupts.raising():
        if origin:  # before any node is held: it may take long
            files = origin.fetch(options.follow.runs_dir)
        topology = launch.prepare(say=context.say, check_interrupt=check_interrupt)
        with launch.undo_on_failure(context.say):
            check_interrupt()
            try:
                about = describe_job(launch.job, options)
                about |= {"checkpoint_step": origin.step} if origin else {}
                record.create(state="prepared", **about)
                logs = record.open_logs(topology.nodes)
                if origin:
                    launch.notes += origin.distribute(launch.gang, files)
            except OSError as error:
                sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
                raise JobError(sentence) from None
    for note in launch.notes:
        context.say(note)
    gang, head = launch.gang, topology.head
    context.say(
        f"{gang.job_id}: {launch.job.module or launch.job.script} on {_describe_nodes(topology)}, "
        f"MASTER_ADDR {head.address}, MASTER_PORT {head.settings.master_port}, {launch.launch_method}"
    )
    try:
        launch.start(context.say)
    except JobError as error:
        record.note(context.say, state="failed", cause=str(error))
        raise
    try:
        return _go_on(options, context, launch, record, logs)
    except JobError:
        raise
    except Exception:  # a defect, or files of Thunderhead that were changed since
        context.say(
            f"{gang.job_id} was started, and goes on by itself if it has not ended; follow it: "
            f"ansible-playbook logs.yml -e job={gang.job_id}"
        )
        raise


def _go_on(
    options: RunOptions, context: CommandContext, launch: Launch, record: Record, logs: dict[str, RankLog]
) -> dict[str, Any]:
    """Note that the job was started, and follow it to its end unless it is detached; return as ``run`` does."""
    gang, topology = launch.gang, launch.gang.topology
    record.note(
        context.say,
        state="running",
        versions={"ansible": ansible_version, "python": platform.python_version()},
        nodes=topology.world_size,
        world_size=world_size(topology.world_size, launch.job.gang, None),
        master_addr=topology.head.address,
        master_port=topology.head.settings.master_port,
        ranks=topology.ranks,
        hosts=[node.host for node in topology.nodes],
    )
    try:
        store_bundle(options.follow.runs_dir, launch.job.bundle)
    except OSError as error:
        context.say(f"the job's code cannot be kept here for a rerun: {error}; free some space, or set job_runs_dir")
    if options.detach:
        context.say(still_running_message(gang.job_id))
        return command_result(record)
    # Only now: Ansible's loader compiles what it imports, and these modules would hold the start up by 50 ms.
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.follow_job import (
        follow_job,
    )

    time.sleep(FIRST_CHECK_SECONDS)
    return follow_job(options.follow, context, gang, record, logs, {})
