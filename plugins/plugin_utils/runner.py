# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""A job is started everywhere and followed to its end.

What only some jobs need, or only those that have started, is imported where it is used: nothing on the way to the start
waits for it.
"""

from __future__ import annotations

import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from ansible.release import __version__ as ansible_version
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.command_line import without_values
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.desk import Desk
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.history import earlier_job, store_bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.noticed import world_size
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order, described, make_job
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.record import Record
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.script_variables import require_known
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.words import counted

if TYPE_CHECKING:
    from ansible_collections.thunderhead.cluster.plugins.plugin_utils.resume import Origin

FIRST_LOOK_SECONDS = 0.15
"""Until the nodes are asked how the job goes: a script has hardly begun by then. Where 16 nodes share two cores, to be
asked at once held the last script up by 0.12 s (14 rounds by turns, against a pause of 0.3 s)."""


def plan(order: Order, desk: Desk) -> tuple[Launch, Origin | None]:
    """Check what the user asked for, and return what is to be launched, and what it is to go on from.

    Raises:
        JobError: bad input, or nothing to go on from.
    """
    order.check()
    earlier = earlier_job(order.rerun, order.runs, desk.hosts)
    origin = None
    if order.resume or order.checkpoint:
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils.resume import find_origin

        origin = find_origin(order.resume, order.checkpoint, order.runs, desk)
        earlier = earlier or origin.about
    job = make_job(order, earlier, origin.path if origin else "", desk.settings[0].env)
    require_known(job.args, job.env, {one.host: one.env for one in desk.settings}, job.checkpoint)
    return Launch(job, desk.settings, desk.open_channel, desk.members), origin


def check(order: Order, desk: Desk) -> int:
    """Look whether the job could start now, say what there is to know, and start nothing; return the world size."""
    launch, _origin = plan(order, desk)
    topology = launch.prepare(dry=True)
    for note in launch.notes:
        desk.say(note)
    return topology.world_size


def run(order: Order, desk: Desk) -> dict[str, Any]:
    """Start a job everywhere, follow it to its end, and bring home what it left.

    Returns:
        The job's id, its folder, world size and state.

    Raises:
        JobError: the job did not start, or did not end well on every rank. Its record is complete all the same.
        Interrupted: the user gave up before it was started; nothing was.
    """
    launch, origin = plan(order, desk)
    gang = launch.gang
    record = Record(order.runs, gang.job_id)

    def look_up() -> None:
        if desk.interrupts.came:  # ansible-playbook was killed meanwhile, which raises nothing here
            raise Interrupted

    with desk.interrupts.raising():
        if origin:  # before any node is held: it may take long
            files = origin.fetch(order.runs)
        topology = launch.prepare(say=desk.say, look_up=look_up)
        with launch.undoing(desk.say):
            look_up()
            try:
                about = described(launch.job, order)
                about |= {"checkpoint_step": origin.step} if origin else {}
                record.create(state="prepared", command=without_values(sys.argv), **about)
                logs = record.open_logs(topology.nodes)
                if origin:
                    launch.notes += origin.distribute(gang, files)
            except OSError as error:
                sentence = f"the job's record cannot be written: {error}; free some space, or set job_runs_dir"
                raise JobError(sentence) from None
    for note in launch.notes:
        desk.say(note)
    head = topology.head
    desk.say(
        f"{gang.job_id}: {launch.job.module or launch.job.script} on {counted(topology.world_size, 'node')}, "
        f"MASTER_ADDR {head.address}, MASTER_PORT {head.settings.master_port}, {launch.how}"
    )
    try:
        launch.start()
    except JobError as error:
        record.note(desk.say, state="failed", cause=str(error))
        raise
    record.note(
        desk.say,
        state="running",
        versions={"ansible": ansible_version, "python": platform.python_version()},
        nodes=topology.world_size,
        world_size=world_size(topology.world_size, launch.job.gang, None),
        master_addr=head.address,
        master_port=head.settings.master_port,
        ranks=gang.topology.ranks,
    )
    try:
        store_bundle(order.runs, launch.job.bundle)
    except OSError as error:
        desk.say(f"the job's code cannot be kept here for a rerun: {error}; free some space, or set job_runs_dir")
    try:
        from ansible_collections.thunderhead.cluster.plugins.plugin_utils.attend import come_back, result, see_through
    except ImportError as error:
        raise JobError(
            f"{gang.job_id} runs, but Thunderhead's files here were changed since this command began ({error}); follow "
            f"the job anew: ansible-playbook logs.yml -e job={gang.job_id}"
        ) from None
    if order.detach:
        desk.say(come_back(gang.job_id))
        return result(record)
    time.sleep(FIRST_LOOK_SECONDS)
    return see_through(order, desk, gang, record, logs, {})
