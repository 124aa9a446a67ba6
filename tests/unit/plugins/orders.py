"""Orders of a user whose project is one script, and who does nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ansible_collections.thunderhead.cluster.plugins.action.job import as_order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.interrupts import Interrupted, Interrupts
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order


def order(tmp_path: Path, text: str | None = None, **changes: Any) -> Order:
    """Return an order as the action makes it of its arguments; ``text`` is that of train.py in the project."""
    given: dict[str, Any] = {"runs_dir": tmp_path / "runs", "node_timeout_seconds": 5, "stop_grace_seconds": 2}
    given |= {"gang": False}  # most of these scripts know nothing of each other
    if text is not None:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        (project / "train.py").write_text(text)
        given |= {"script": "train.py", "project_dir": project}
    return as_order({**given, **changes})


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
