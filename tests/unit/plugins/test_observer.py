# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.observer import JobObserver
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import Screen, ShownLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import format_moment
from left_jobs import gang_on
from local_nodes import LocalNode, code, until

AT = 1_800_000_000.5


class Scene:
    """An observer of a job on two nodes."""

    def __init__(self, nodes: list[LocalNode], folder: Path) -> None:
        self.said: list[str] = []
        self.stacks = folder / "stacks"
        self.screen = Screen(self.said.append, 2)
        about = {"launcher": "python", "uses": "plain", "master_port": 29500, "resumed": "J", "checkpoint_step": 7}
        self.observer = JobObserver(gang_on(nodes), {}, self.screen, self.stacks, about)


@pytest.fixture
def scene(nodes: list[LocalNode], tmp_path: Path) -> Iterator[Scene]:
    one = Scene(nodes, tmp_path)
    yield one
    one.screen.close(2)


def test_output_is_shown(nodes: list[LocalNode], tmp_path: Path) -> None:
    log, said = RankLog(tmp_path / "log"), list[str]()
    screen = Screen(said.append, 2, [ShownLog(1, "node1", log, 0)])
    observer = JobObserver(gang_on(nodes), {}, screen, tmp_path / "stacks", {})
    log.write(b"hello\n", 0)
    observer.output(SimpleNamespace(rank=1, host="node1"))  # type: ignore[arg-type]
    until(lambda: said == ["[1 node1] hello"])
    screen.close(5)


def states_reported(one: Any, *states: dict[str, Any]) -> list[str]:
    """Return what is said of these states that is new."""
    for rank, state in enumerate(states):
        one.observer.update_state(SimpleNamespace(rank=rank, host=f"node{rank}"), state)
    known = len(one.said)
    one.observer.report_state()
    one.observer.report_state()
    time.sleep(0.2)
    return one.said[known:]


def test_ranks_that_have_not_met_and_then_have(scene: Scene) -> None:
    """Said once all nodes have looked long enough, and taken back."""
    one = scene
    assert states_reported(one, {"state": "running"}, {"state": "running"}) == []
    assert states_reported(one, {"met": False}, {"state": "running"}) == []
    (said,) = states_reported(one, {"met": False}, {"met": False})
    assert said.startswith("the ranks have not met yet: no process of the job listened at MASTER_PORT 29500 on node0")
    assert states_reported(one, {"met": True}, {"met": True}) == ["the ranks have met now"]


def test_a_checkpoint_that_was_not_read(scene: Scene) -> None:
    assert states_reported(scene, {"met": True, "checkpoint_read": False}, {"met": True}) == [
        "the script has not read CKPT_PATH yet; load what CKPT_PATH names"
    ]


def test_ranks_that_met_are_no_news(scene: Scene) -> None:
    assert states_reported(scene, {"met": True}, {"met": True}) == []
    assert states_reported(scene, {"met": True, "checkpoint_read": True}, {"met": True}) == ["goes on from J, step 7"]


def test_what_the_head_has_found_out_is_said_once_with_the_stacks(
    scene: Scene, nodes: list[LocalNode], tmp_path: Path
) -> None:
    nodes[0].start(code(tmp_path / "code", "import time; time.sleep(600)"))
    until(nodes[0].job_dir().joinpath("state.json").exists)
    (nodes[0].job_dir() / "stacks.txt").write_bytes(b"==== process 7\x1b[31m\n")
    notice = "nothing was printed for 61 s: rank 1 (node1) sleeps\x1b[2J"
    for _time in range(2):
        scene.observer.update_state(SimpleNamespace(rank=0, host="node0"), {"gang": {"notices": [[AT, notice]]}})  # type: ignore[arg-type]
    until(lambda: bool(scene.said))
    time.sleep(0.2)
    assert scene.said == [
        f"{format_moment(AT)} nothing was printed for 61 s: rank 1 (node1) sleeps\\x1b[2J; "
        f"what every rank was doing: {scene.stacks}"
    ]
    files = {path.name: path.read_text() for path in scene.stacks.iterdir()}
    assert files["rank0-node0.txt"] == "==== process 7\n"
    assert files["rank1-node1.txt"].startswith("node1 has no job job-1")
