# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import stall
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.following.observer import JobObserver
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import Screen, ShownLog
from left_jobs import gang_on
from local_nodes import LocalNode, until


class Scene:
    """An observer who finds what a test says."""

    def __init__(self, nodes: list[LocalNode], folder: Path, found: Any, **seconds: int) -> None:
        self.said: list[str] = []
        self.gathered = 0
        self.reports: list[stall.StallReport] = []
        self.looked: list[float] = []
        self.found = found
        self.screen = Screen(self.said.append, 2)
        timeouts = {"stall_timeout_seconds": 0, "rendezvous_timeout_seconds": 0, **seconds}
        self.about = {"launcher": "python", "uses": "plain", "master_port": 29500, "resumed": "J", "checkpoint_step": 7}
        self.observer = JobObserver(gang_on(nodes), {}, self.screen, folder / "stacks", **timeouts, about=self.about)

    def gather(self, *_arguments: Any, seconds: float) -> None:
        self.gathered += 1
        self.looked.append(seconds)

    def silence(self, seconds: float) -> None:
        """Let so much time have passed since the last output."""
        watch = self.observer._watch
        watch.check({"node0": 0, "node1": 0}, 0)
        now = watch._clock()
        watch._clock = lambda: now + seconds

    def look(self) -> stall.StallReport | None:
        report = self.observer.check_stall({"node0": 0, "node1": 0}, {})
        self.reports += [report] if report else []
        return report

    def reported(self) -> list[stall.StallReport]:
        """Return what is reported in the end."""
        until(lambda: self.look() or self.reports)
        return self.reports


def found(sentence: str = "they wait", rendezvous: bool = False, passed: bool = False, is_open: bool = False) -> Any:
    return SimpleNamespace(sentence=sentence, rendezvous=rendezvous, passed=passed, open=is_open)


@pytest.fixture
def scene(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    scenes = []

    def make(finding: Any = None, **seconds: int) -> Scene:
        one = Scene(nodes, tmp_path, finding, **seconds)
        monkeypatch.setattr(stall, "gather_stacks", one.gather)
        monkeypatch.setattr(stall, "explain", lambda *_arguments: one.found)
        scenes.append(one)
        return one

    yield make
    for one in scenes:
        one.screen.close(2)


def test_output_is_shown(nodes: list[LocalNode], tmp_path: Path) -> None:
    log, said = RankLog(tmp_path / "log"), list[str]()
    screen = Screen(said.append, 2, [ShownLog(1, "node1", log, 0)])
    observer = JobObserver(gang_on(nodes), {}, screen, tmp_path / "stacks", 0, 0, {})
    log.write(b"hello\n", 0)
    observer.output(SimpleNamespace(rank=1, host="node1"))  # type: ignore[arg-type]
    until(lambda: said == ["[1 node1] hello"])
    screen.close(5)


def test_no_silence_no_question(scene: Any) -> None:
    one = scene(found(), stall_timeout_seconds=60, rendezvous_timeout_seconds=60)
    assert one.look() is None
    one = scene(found())
    one.silence(10_000)
    assert (one.look(), one.gathered) == (None, 0)


def test_a_stall_is_reported_once(scene: Any) -> None:
    one = scene(found("rank 1 sleeps"), stall_timeout_seconds=60)
    one.silence(61)
    assert one.reported() == [stall.StallReport("nothing was printed for 61 s: rank 1 sleeps", hopeless=False)]
    assert one.look() is None
    assert (one.gathered, one.said) == (1, []), "reported once"


def test_a_rendezvous_in_vain_is_hopeless(scene: Any) -> None:
    one = scene(found("rank 1 never came", rendezvous=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    one.look()
    assert one.reported() == [stall.StallReport("nothing was printed for 61 s: rank 1 never came", hopeless=True)]


def test_a_rank_that_works_while_others_wait_for_it_is_not_hopeless(scene: Any) -> None:
    one = scene(found("rank 0 works", rendezvous=True, is_open=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    assert one.reported() == [stall.StallReport("nothing was printed for 61 s: rank 0 works", hopeless=False)]
    assert one.looked == [stall.WORK_SECONDS]


def test_a_silence_that_no_thread_can_look_into_is_looked_into_later(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scene(found("rank 1 sleeps"), stall_timeout_seconds=60)
    one.silence(61)
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert one.look() is None
    monkeypatch.setattr(threading.Thread, "start", real)
    assert one.reported() and one.looked == [0]


def test_a_silence_after_the_rendezvous_ends_nothing(scene: Any) -> None:
    one = scene(found(passed=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    one.look()
    until(lambda: one.gathered == 1 and not one.observer._explaining.is_alive())
    one.silence(100_000)
    assert one.look() is None
    assert (one.gathered, one.reports, one.said) == (1, [], [])


def states_reported(one: Any, *states: dict[str, Any]) -> list[str]:
    """Return what is said of these states that is new."""
    for rank, state in enumerate(states):
        one.observer.update_state(SimpleNamespace(rank=rank, host=f"node{rank}"), state)
    known = len(one.said)
    one.look()
    one.look()
    time.sleep(0.2)
    return one.said[known:]


def test_ranks_that_have_not_met_and_then_have(scene: Any) -> None:
    """Said once all nodes have looked long enough, and taken back."""
    one = scene()
    assert states_reported(one, {"state": "running"}, {"state": "running"}) == []
    assert states_reported(one, {"met": False}, {"state": "running"}) == []
    (said,) = states_reported(one, {"met": False}, {"met": False})
    assert said.startswith("the ranks have not met yet: no process of the job listened at MASTER_PORT 29500 on node0")
    assert states_reported(one, {"met": True}, {"met": True}) == ["the ranks have met now"]


def test_ranks_that_met_are_no_news(scene: Any) -> None:
    assert states_reported(scene(), {"met": True, "checkpoint_read": False}, {"met": True}) == [
        "the script has not read CKPT_PATH yet; load what CKPT_PATH names"
    ]
    one = scene()
    assert states_reported(one, {"met": True}, {"met": True}) == []
    assert states_reported(one, {"met": True, "checkpoint_read": True}, {"met": True}) == ["goes on from J, step 7"]


def test_a_rank_that_waits_for_those_that_have_ended(scene: Any) -> None:
    """A second Trainer on rank 0 only."""
    one = scene(found("rank 0 waits", rendezvous=True), rendezvous_timeout_seconds=120)
    ended = {"node1": SimpleNamespace(state="succeeded")}
    one.observer.check_stall({"node0": 0, "node1": 0}, ended)
    now = one.observer._watch._clock()
    one.observer._watch._clock = lambda: now + 21

    def reported() -> bool:
        one.reports.extend(filter(None, [one.observer.check_stall({"node0": 0, "node1": 0}, ended)]))
        return bool(one.reports)

    until(reported)
    (report,) = one.reports
    assert report.hopeless and report.sentence == (
        "nothing was printed for 21 s: rank 0 waits; 1 rank had ended with code 0, and cannot join any more: "
        "what only one rank does, such as with a second Trainer, needs num_nodes=1"
    )
