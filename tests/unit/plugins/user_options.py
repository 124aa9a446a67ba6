# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a user whose project is one script, and who does nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.interrupts import (
    Interrupted,
    Interrupts,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.options import RUN_OPTIONS, RunOptions


def run_options(tmp_path: Path, text: str | None = None, **changes: Any) -> RunOptions:
    """Return the options as the action makes it of its arguments; ``text`` is that of train.py in the project."""
    given: dict[str, Any] = {"runs_dir": tmp_path / "runs", "node_timeout_seconds": 5, "stop_grace_seconds": 2}
    given |= {"gang": False}  # most of these scripts know nothing of each other
    if text is not None:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        (project / "train.py").write_text(text)
        given |= {"script": "train.py", "project_dir": project}
    defaults = {name: about.get("default") for name, about in RUN_OPTIONS.items()}
    return RunOptions.from_arguments({**defaults, **given, **changes})


class Undisturbed(Interrupts):
    """Of a user who does nothing to ansible-playbook, unless a test says so."""

    def __init__(self) -> None:
        self.what: Literal["", "signal", "gone"] = ""
        self.twice = False
        self.said: list[str] = []

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        if self.what:
            raise Interrupted
        yield

    @property
    def came(self) -> Literal["", "signal", "gone"]:
        return self.what

    def again(self) -> bool:
        return self.twice

    def say(self, text: str) -> None:
        self.said.append(text)
