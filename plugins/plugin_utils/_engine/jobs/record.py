# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a job's record on the controller: runs/<id>/ with job.json, logs/ and artifacts/."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import Node
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog


def replace_file(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace a file as a whole; ``durable``: also if this machine goes down the next moment."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    for folder in (path.parent, path.parent.parent) if durable else ():  # which may have been made only now
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Record:
    """The folder of one job."""

    def __init__(self, runs: Path, job_id: str) -> None:
        self.path = runs / job_id
        self.data: dict[str, Any] = {"id": job_id}

    @classmethod
    def read(cls, runs: Path, job_id: str) -> Record | None:
        """Return the record that an earlier command left, or None: there is none, or its job.json is damaged."""
        record = cls(runs, job_id)
        try:
            data = json.loads((record.path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        record.data = data if isinstance(data, dict) else record.data
        return record

    def create(self, **data: Any) -> None:
        """Make the folder and write down what is known before the start; a folder that is there already is refused."""
        self.path.mkdir(parents=True, mode=0o700)
        self._make_folders()
        self.data.update(data)
        self._write(durable=False)  # the nodes wait for it

    def restore(self, **data: Any) -> None:
        """Make a record with what is known, in a new folder, or in one that is there."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_folders()
        self.update(**data)

    def update(self, **data: Any) -> None:
        """Change entries of job.json; the file is replaced as a whole."""
        self.data.update(data)
        self._write(durable=True)

    def _make_folders(self) -> None:
        for name in ("logs", "artifacts"):
            (self.path / name).mkdir(exist_ok=True)

    def _write(self, durable: bool) -> None:
        replace_file(self.path / "job.json", json.dumps(self.data, indent=2).encode() + b"\n", durable)

    def note(self, say: Callable[[str], None], **data: Any) -> None:
        """Update what is known of a started job: it goes on even if that cannot be written down."""
        try:
            self.update(**data)
        except OSError as error:
            say(f"the job's record cannot be written: {error}; free some space, or set job_runs_dir")

    def log_path(self, node: Node) -> Path:
        """Where a node's log lies."""
        return self.path / "logs" / f"{node.file_stem}.log"

    def open_logs(self, nodes: Iterable[Node]) -> dict[str, RankLog]:
        """Return the nodes' logs by host, each made if it is not there yet.

        Raises:
            OSError: one cannot be opened.
        """
        return {node.host: RankLog(self.log_path(node)) for node in nodes}

    def artifact_path(self, name: str) -> Path | None:
        """Where the file that a node calls ``name`` goes, or None for a name that would leave artifacts/."""
        if os.path.isabs(name) or any(part in ("", ".", "..") for part in name.split("/")):
            return None
        return self.path / "artifacts" / name


def merge_ranks(record: Record, ranks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what is known of these ranks, and what the record says of those whose nodes have the job no more."""
    taken = {rank["rank"] for rank in ranks}
    kept = [{**one, "rank": None} if one["rank"] in taken else one for one in record.data.get("ranks", [])]
    known = {rank["host"]: rank for rank in [*kept, *ranks]}  # what is kept may be of an earlier attempt
    return sorted(known.values(), key=lambda rank: (rank["rank"] is None, rank["rank"] or 0))


def command_result(record: Record) -> dict[str, Any]:
    """Return what a command says of its job."""
    names = ("nodes", "world_size", "state", "warning")
    return {"job": record.data["id"], "path": str(record.path), **{name: record.data.get(name) for name in names}}


def still_running_message(job_id: str) -> str:
    """Return that a job still runs, and the commands for it."""
    return (
        f"{job_id} still runs. Its output again: ansible-playbook logs.yml -e job={job_id} - all jobs: "
        f"ansible-playbook status.yml - to stop it: ansible-playbook stop.yml -e job={job_id}"
    )
