import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import stall
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.onlooker import Onlooker
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.screen import Screen
from left_jobs import gang_on
from local_nodes import LocalNode, until


class Scene:
    """An onlooker who finds what a test says."""

    def __init__(self, nodes: list[LocalNode], folder: Path, found: Any, **seconds: int) -> None:
        self.said: list[str] = []
        self.gathered = 0
        self.looked: list[float] = []
        self.found = found
        self.screen = Screen(self.said.append, 2)
        timeouts = {"stall_timeout_seconds": 0, "rendezvous_timeout_seconds": 0, **seconds}
        self.about = {"launcher": "python", "uses": "plain", "master_port": 29500, "resumed": "J", "checkpoint_step": 7}
        self.onlooker = Onlooker(
            gang_on(nodes), {}, self.screen, {"node1": 2}, folder / "stacks", **timeouts, about=self.about
        )

    def gather(self, *_arguments: Any, seconds: float) -> None:
        self.gathered += 1
        self.looked.append(seconds)

    def silence(self, seconds: float) -> None:
        """Let so much time have passed since the last sign of life."""
        watch = self.onlooker._watch
        watch.look({"node0": 0, "node1": 0}, 0)
        now = watch._clock()
        watch._clock = lambda: now + seconds

    def look(self) -> str | None:
        return self.onlooker.look({"node0": 0, "node1": 0}, {})


def found(sentence: str = "they wait", rendezvous: bool = False, passed: bool = False, is_open: bool = False) -> Any:
    return SimpleNamespace(sentence=sentence, rendezvous=rendezvous, passed=passed, open=is_open)


@pytest.fixture
def scene(nodes: list[LocalNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    scenes = []

    def make(finding: Any = None, **seconds: int) -> Scene:
        one = Scene(nodes, tmp_path, finding, **seconds)
        monkeypatch.setattr(stall, "gather", one.gather)
        monkeypatch.setattr(stall, "explain", lambda *_arguments: one.found)
        scenes.append(one)
        return one

    yield make
    for one in scenes:
        one.screen.close(2)


def test_output_is_shown(scene: Any) -> None:
    one = scene()
    one.onlooker.output(SimpleNamespace(rank=1, host="node1"), b"1\nhello\n", 0)
    one.screen.close(5)
    assert one.said == ["[1 node1] hello"], "the first two bytes of node1's log are not to be shown"


def test_no_silence_no_question(scene: Any) -> None:
    one = scene(found(), stall_timeout_seconds=60, rendezvous_timeout_seconds=60)
    assert one.look() is None
    one = scene(found())
    one.silence(10_000)
    assert (one.look(), one.gathered) == (None, 0)


def test_a_stall_is_said_and_ends_nothing(scene: Any) -> None:
    one = scene(found("rank 1 sleeps"), stall_timeout_seconds=60)
    one.silence(61)
    assert one.look() is None
    until(lambda: one.said)
    assert one.said == ["nothing was printed for 61 s: rank 1 sleeps"]
    assert one.look() is None
    assert one.gathered == 1, "said once"


def test_a_rendezvous_in_vain_ends_the_job(scene: Any) -> None:
    one = scene(found("rank 1 never came", rendezvous=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    one.look()
    until(lambda: one.onlooker.verdict)
    assert one.look() == one.onlooker.verdict == "nothing was printed for 61 s: rank 1 never came"


def test_a_rank_that_works_while_others_wait_for_it_is_said_and_ends_nothing(scene: Any) -> None:
    one = scene(found("rank 0 works", rendezvous=True, is_open=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    one.look()
    until(lambda: one.said)
    assert (one.look(), one.onlooker.verdict) == (None, "")
    assert one.said == ["nothing was printed for 61 s: rank 0 works"]
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
    assert one.look() is None
    until(lambda: one.said)
    assert one.looked == [0]


def test_a_silence_after_the_rendezvous_ends_nothing(scene: Any) -> None:
    one = scene(found(passed=True), rendezvous_timeout_seconds=60)
    one.silence(61)
    one.look()
    until(lambda: one.gathered == 1 and not one.onlooker._explaining.is_alive())
    one.silence(100_000)
    assert one.look() is None
    assert (one.gathered, one.onlooker.verdict, one.said) == (1, "", [])
