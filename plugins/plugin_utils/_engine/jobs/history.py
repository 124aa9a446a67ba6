# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep what is needed to run an earlier job again, or to go on from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import check_job_id
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.job import LAUNCHERS
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.record import Record, replace_file
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.bundle import Bundle
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import KINDS
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import is_address

BUNDLES = ".bundles"
"""The folder of runs/ that keeps jobs' code."""


def earlier_job(job: str, runs: Path, hosts: Sequence[str]) -> Mapping[str, Any]:
    """Return job.json of the job to run again; empty if that is none ("").

    Args:
        job: its id, or "".
        runs: folder of the controller's records.
        hosts: which take part now, in inventory order.

    Raises:
        JobError: it is not known here, was started from elsewhere, or ran on other nodes.
    """
    if not job:
        return {}
    check_job_id(job)
    record = Record.read(runs, job)
    if record is None:
        if (runs / job).is_dir():
            raise JobError(f"the job.json of job {job} in {runs} is damaged; run its script again, without rerun")
        raise JobError(f"job {job} is not in {runs}; name one that is, or set job_runs_dir")
    if "ranks" not in record.data:
        raise JobError(f"job {job} was never started, so it cannot be run again; run its script without rerun")
    if record.data.get("env_names") is None:
        raise JobError(
            f"job {job} was started from elsewhere, or its record was damaged, and only its logs were fetched here; "
            "run it again from where it was started, or run its script again, without rerun"
        )
    # A spare may have changed the order of the ranks.
    ranks = record.data.get("hosts") or [rank["host"] for rank in record.data["ranks"]]
    if ranks != list(hosts):
        raise JobError(
            f"job {job} ran on {', '.join(ranks)}, in this order, not on {', '.join(hosts)}; "
            f"add --limit {','.join(ranks)}, or run its script again, without rerun"
        )
    return record.data


def store_bundle(runs: Path, bundle: Bundle) -> None:
    """Keep a job's code on the controller, once for all jobs with the same."""
    path = runs / BUNDLES / bundle.sha256
    if bundle.content and not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(path, bundle.content)


def stored_bundle(runs: Path, about: Mapping[str, Any]) -> Bundle:
    """Return the code of an earlier job of which ``about`` is the record, with what is kept of it here, if anything."""
    described = about["bundle"]
    path = runs / BUNDLES / described["sha256"]
    return Bundle(
        sha256=described["sha256"],
        content=path.read_bytes() if path.exists() else b"",
        size=described["bytes"],
        commit=about.get("commit"),
        dirty=about.get("dirty"),
    )


def described_by_nodes(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job that was started from elsewhere as ``plan_job.describe_job`` does, from its spec.json.

    The job's user can write that file: what cannot be is left out. It never says which folder here is sent to nodes.
    """
    kinds: dict[str, Callable[[Any], bool]] = {
        "script": lambda value: isinstance(value, str),
        "module": lambda value: isinstance(value, str),
        "args": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "launcher": lambda value: value in LAUNCHERS,
        "devices": lambda value: (
            value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
        ),
        "gang": lambda value: isinstance(value, bool),
        "uses": lambda value: value in KINDS,
        "user": lambda value: isinstance(value, str),
        "node_timeout_seconds": lambda value: isinstance(value, (int, float)),
        "grace_seconds": lambda value: isinstance(value, (int, float)),
        "master_addr": is_address,
        "master_port": lambda value: isinstance(value, int),
    }
    known = {name: spec[name] for name, fits in kinds.items() if name in spec and fits(spec[name])}
    return {**known, **({"started": spec["start"]} if "start" in spec else {})}
