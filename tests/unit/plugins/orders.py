"""Orders of a user whose project is one script."""

from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.action.job import as_order
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.order import Order


def order(tmp_path: Path, text: str | None = None, **changes: Any) -> Order:
    """Return an order as the action makes it of its arguments; ``text`` is that of train.py in the project."""
    given: dict[str, Any] = {"runs_dir": tmp_path / "runs", "node_timeout_seconds": 5, "stop_grace_seconds": 2}
    if text is not None:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        (project / "train.py").write_text(text)
        given |= {"script": "train.py", "project_dir": project}
    return as_order({**given, **changes})
