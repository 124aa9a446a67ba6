# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Name the files and folders of a job."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Request


def job_directory(request: Request) -> str:
    """Return the folder of the request's job."""
    return os.path.join(request["directory"], "jobs", request["job"]["id"])


def start_file_path(request: Request) -> str:
    """Return the file whose appearance starts the request's prepared job; only the agent's own user can write it."""
    return job_directory(request) + ".start"


def reason_path(job_dir: str) -> str:
    """Return the file beside a job's folder with the reason for its stop: written as root, read by its supervisor."""
    return job_dir + ".because"


def gang_state_path(job_dir: str) -> str:
    """Return the file in a job's folder in which the head of its gang keeps what it knows of all nodes."""
    return os.path.join(job_dir, "gang.json")


def stacks_path(job_dir: str) -> str:
    """Return the file in a job's folder with what its processes on this node were doing when it last stood still."""
    return os.path.join(job_dir, "stacks.txt")


def companion_path(job_dir: str) -> str:
    """Return the folder in a job's folder with what the job's own Python imports."""
    return os.path.join(job_dir, "companion")


def checkpoints_path(job_dir: str) -> str:
    """Return the file in which a job's own Python notes the checkpoints that its Trainer has saved, a path a line."""
    return os.path.join(companion_path(job_dir), "checkpoints")


def no_retry_path(job_dir: str) -> str:
    """Return the file in which a job's own Python says why it must not be tried again, a clause."""
    return os.path.join(companion_path(job_dir), "no_retry")


def started_path(job_dir: str) -> str:
    """Return the file beside a job's folder with the user who started it; unlike what is in it, not the job's own."""
    return job_dir + ".started"


def started_by(job_dir: str) -> str | None:
    """Return who started a job, "" if that is not known; None for one that was never started."""
    try:
        with open(started_path(job_dir), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def log_path(job_dir: str) -> str:
    """Return the second name of a job's log, out of the job's reach: whatever it does to the first, the log is there.

    A file system without such names has none, and neither has a job that an older Thunderhead has started.
    """
    return job_dir + ".log"


def bundle_path(request: Request) -> str:
    """Return where the request's bundle lies once this node has it."""
    return os.path.join(request["directory"], "bundles", request["bundle"])
