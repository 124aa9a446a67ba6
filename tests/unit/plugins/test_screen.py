# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.utils import color
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output import line_reader as lines_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output import screen as screen_module
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.screen import (
    FAR_BEHIND_BYTES,
    NEWEST_BYTES,
    Screen,
    ShownLog,
)

LONG = 60
"""Seconds after which a test that waits has failed."""
GAP = re.compile(
    r"… (\d+(?:\.\d)?) (\w+) of rank (\d) \(\S+\) are not shown here, because the terminal is too slow; they are in "
)


class Terminal:
    """What is printed on it, a hold on it, and a job's logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: list[str] = []
        self.calls = 0
        self.logs: dict[int, RankLog] = {}
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def say(self, text: str) -> None:
        self.reached.set()
        assert self.open.wait(LONG)
        self.calls += 1
        self.printed += text.split("\n")

    def screen(self, *hosts: str, world_size: int = 0, starts: int | None = None) -> Screen:
        """Return a screen that shows the logs of these hosts, ranks 0 and on."""
        for rank, host in enumerate(hosts):
            self.logs.setdefault(rank, RankLog(self.folder / f"rank{rank}-{host}.log"))
        sizes = {rank: self.logs[rank].size for rank in self.logs}
        shown = [
            ShownLog(rank, host, self.logs[rank], sizes[rank] if starts is None else starts, sizes[rank])
            for rank, host in enumerate(hosts)
        ]
        return Screen(self.say, world_size or len(hosts), shown)

    def write(self, rank: int, data: bytes, shown: Screen | None = None) -> None:
        self.logs[rank].write(data, self.logs[rank].size)
        if shown:
            shown.check_logs()

    def stand_still(self, shown: Screen) -> None:
        """Take one line of the engine's, and then no more until ``open`` is set."""
        self.open.clear()
        self.reached.clear()
        shown.say("stands still")
        assert self.reached.wait(LONG)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(color, "ANSIBLE_COLOR", False)
    one = Terminal(tmp_path)
    yield one
    one.open.set()


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def numbered(first: int, count: int) -> bytes:
    """``count`` lines of 100 bytes."""
    return b"".join(b"%099d\n" % number for number in range(first, first + count))


def numbers(lines: list[str], rank: int = 0) -> list[int]:
    return [int(line.rpartition("] ")[2]) for line in lines if line.startswith(f"[{rank} ")]


# ------------------------------------------------------------------------------------------------------------ prefixes


def test_lines_of_ranks_and_of_the_engine_in_order(terminal: Terminal) -> None:
    shown = terminal.screen("node0", "node1")
    shown.say("job: train.py on 2 nodes")
    await_true(lambda: len(terminal.printed) == 1)
    terminal.write(0, b"one\ntw", shown)
    await_true(lambda: len(terminal.printed) == 2)
    terminal.write(1, b"other\n", shown)
    shown.say("between")
    await_true(lambda: len(terminal.printed) == 4)
    terminal.write(0, b"o\nthree", shown)
    shown.close(LONG)
    shown.say("after the end")
    assert terminal.printed == [
        "job: train.py on 2 nodes",
        "[0 node0] one",
        "[1 node1] other",
        "between",
        "[0 node0] two",
        "[0 node0] three",
        "after the end",
    ]


def test_text_lines_up(terminal: Terminal) -> None:
    shown = terminal.screen("a", "gpu-10", world_size=16)
    terminal.write(0, b"x\n")
    terminal.write(1, b"x\n")
    shown.close(LONG)
    assert terminal.printed == ["[ 0 a]      x", "[ 1 gpu-10] x"]


def test_ranks_have_colors_on_a_terminal_that_has_them(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "ANSIBLE_COLOR", True)
    shown = terminal.screen(*"nnnnnnnnn")
    for rank in range(9):
        terminal.write(rank, b"\x1b[31mtext\x1b[0m\n")
    shown.close(LONG)
    assert terminal.printed[0] == "\x1b[0;36m[0 n]\x1b[0m text"
    prefixes = [line.split("[", 2)[1] for line in terminal.printed]
    assert len(set(prefixes)) == 8
    assert prefixes[8] == prefixes[0]


# ------------------------------------------------------------------------------------------ a terminal that is too slow


def test_a_terminal_that_stands_still_keeps_nobody_waiting_and_costs_little(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    feed = lines_module.LineReader.feed
    monkeypatch.setattr(
        lines_module.LineReader, "feed", lambda reader, data: looked_at.append(len(data)) or feed(reader, data)
    )
    shown = terminal.screen("n")
    terminal.stand_still(shown)
    block = numbered(0, 10_000)
    tracemalloc.start()
    try:
        for _ in range(100):
            terminal.write(0, block, shown)
            shown.say("never left out")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    terminal.open.set()
    shown.close(LONG)
    (gap,) = [line for line in terminal.printed if GAP.match(line)]
    assert (
        gap == "… 99.9 MB of rank 0 (n) are not shown here, because the terminal is too slow; they are in "
        f"{terminal.logs[0].path}"
    )
    found = numbers(terminal.printed)
    assert found == list(range(10_000 - len(found), 10_000)), "the newest lines, whole"
    assert sum(looked_at) == 100 * len(found) <= NEWEST_BYTES, "what is left out is not even decoded"
    assert terminal.printed.count("never left out") == 100
    assert terminal.calls < 1000, "not a call for each line"


def test_what_is_not_far_behind_is_shown_whole(terminal: Terminal) -> None:
    shown = terminal.screen("n")
    terminal.stand_still(shown)
    terminal.write(0, numbered(0, FAR_BEHIND_BYTES // 100), shown)
    terminal.open.set()
    shown.close(LONG)
    assert numbers(terminal.printed) == list(range(FAR_BEHIND_BYTES // 100))


def test_a_line_that_was_begun_before_a_gap_is_left_out(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_module, "FAR_BEHIND_BYTES", 2000)
    monkeypatch.setattr(screen_module, "NEWEST_BYTES", 30)
    shown = terminal.screen("n")
    terminal.write(0, b"one\ntwo begins", shown)
    await_true(lambda: terminal.printed == ["[0 n] one"])
    terminal.stand_still(shown)
    terminal.write(0, b"x" * 4000 + b" two ends\nthree\nfour beg", shown)
    terminal.open.set()
    await_true(lambda: len(terminal.printed) == 4)
    terminal.write(0, b"ins\nfive", shown)
    shown.close(LONG)
    assert GAP.match(terminal.printed.pop(2))
    assert terminal.printed == ["[0 n] one", "stands still", "[0 n] three", "[0 n] four begins", "[0 n] five"]


def test_a_rank_that_prints_without_end_leaves_room_for_others(terminal: Terminal) -> None:
    shown = terminal.screen("n", "n", "n")
    terminal.stand_still(shown)
    for number in range(100):
        terminal.write(0, numbered(0, 10_000))
        terminal.write(1, numbered(0, 10_000))
        terminal.write(2, b"%d\n" % number, shown)
    terminal.open.set()
    shown.close(LONG)
    assert numbers(terminal.printed, 2) == list(range(100))
    assert [GAP.match(line)[3] for line in terminal.printed if GAP.match(line)] == ["0", "1"]  # type: ignore[index]


def test_a_bar_comes_back_after_a_gap(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_module, "FAR_BEHIND_BYTES", 2000)
    monkeypatch.setattr(screen_module, "NEWEST_BYTES", 100)
    shown = terminal.screen("n")
    terminal.stand_still(shown)
    terminal.write(0, b"".join(b"\r%3d%%" % percent for percent in range(90)) * 20, shown)
    terminal.open.set()
    await_true(lambda: len(terminal.printed) > 1)
    terminal.write(0, b"\r 90%\r 95%", shown)
    terminal.write(0, b"\r100%\n", shown)
    shown.close(LONG)
    assert terminal.printed[-1] == "[0 n] 100%"


# ------------------------------------------------------------------------------------------------- waiting, and the end


def test_what_was_there_before_is_shown_whole(terminal: Terminal) -> None:
    terminal.screen("n").close(LONG)
    terminal.write(0, numbered(0, 100_000))
    terminal.open.clear()
    shown = terminal.screen("n", starts=0)
    assert not shown.await_shown(0.01)
    terminal.open.set()
    assert shown.await_shown(LONG)
    shown.close(LONG)
    assert numbers(terminal.printed) == list(range(100_000))


def test_a_beginning_may_be_left_out(terminal: Terminal) -> None:
    terminal.screen("n").close(LONG)
    terminal.write(0, b"one\ntwo\n")
    terminal.screen("n", starts=4).close(LONG)
    shown = terminal.screen("n", starts=10)
    terminal.write(0, b"three\n", shown)
    shown.close(LONG)
    assert terminal.printed == ["[0 n] two", "[0 n] ree"]


def test_a_bar_that_goes_slowly_is_shown_while_nothing_else_comes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "BAR_SECONDS", 0.01)
    shown = terminal.screen("n")
    terminal.write(0, b"\r 10%|\r 20%|", shown)
    await_true(lambda: terminal.printed == ["[0 n]  20%|"])
    terminal.write(0, b"\r 30%|", shown)
    await_true(lambda: terminal.printed == ["[0 n]  20%|", "[0 n]  30%|"])
    shown.close(LONG)
    assert terminal.printed == ["[0 n]  20%|", "[0 n]  30%|"]


def test_the_end_waits_for_the_terminal_only_so_long(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_module, "LAST_LINES_SECONDS", 0.01)
    shown = terminal.screen("n", "n")
    terminal.stand_still(shown)
    terminal.write(0, numbered(0, 1500), shown)
    terminal.write(1, b"one\ntwo", shown)
    shown.say("in the middle")
    shown.close(0.01)
    shown.say("the result")
    for log in terminal.logs.values():
        log.close()
    assert terminal.printed == []
    terminal.open.set()
    await_true(lambda: len(terminal.printed) == 5)
    gaps = [GAP.match(line) for line in terminal.printed[1:3]]
    assert [gap and gap.groups() for gap in gaps] == [("150", "kB", "0"), ("7", "B", "1")]
    assert [line for line in terminal.printed if not GAP.match(line)] == ["stands still", "in the middle", "the result"]
    await_true(lambda: not shown._thread.is_alive())


def test_a_log_that_somebody_cuts_short_holds_nobody_up(terminal: Terminal) -> None:
    shown = terminal.screen("n")
    terminal.stand_still(shown)
    terminal.write(0, numbered(0, 1000), shown)
    os.truncate(terminal.logs[0].path, 0)
    terminal.open.set()
    shown.say("the result")
    await_true(lambda: "the result" in terminal.printed)
    terminal.screen("n", starts=0).await_shown(LONG)
    shown.close(LONG)
    assert not shown._thread.is_alive()


def test_a_terminal_that_goes_on_after_the_end(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still while a gap was printed; meanwhile the logs are closed."""
    monkeypatch.setattr(screen_module, "LAST_LINES_SECONDS", 0.01)
    shown = terminal.screen("n")
    terminal.open.clear()
    terminal.reached.clear()
    terminal.write(0, numbered(0, 100_000), shown)
    assert terminal.reached.wait(LONG)
    shown.say("the result")
    shown.close(0.01)
    terminal.logs[0].close()
    terminal.open.set()
    await_true(lambda: bool(terminal.printed) and terminal.printed[-1] == "the result")
    assert [bool(GAP.match(line)) for line in terminal.printed] == [True, True, False]


def test_an_empty_end(terminal: Terminal) -> None:
    shown = terminal.screen("n")
    shown.close(LONG)
    assert terminal.printed == []
    assert not shown._thread.is_alive()


def test_a_terminal_that_is_gone_is_no_reason_to_fail(terminal: Terminal) -> None:
    calls = []

    def say(text: str) -> None:
        calls.append(text)
        raise BrokenPipeError

    terminal.say = say  # type: ignore[method-assign]
    shown = terminal.screen("n")
    shown.say("one")
    await_true(lambda: bool(calls))
    terminal.write(0, numbered(0, 1000), shown)
    shown.close(LONG)
    shown.say("two")
    assert calls == ["one"]


def test_followers_in_many_threads_lose_no_line(terminal: Terminal) -> None:
    shown = terminal.screen(*"nnnnnnnn")

    def follow(rank: int) -> None:
        data = numbered(0, 2000)
        for start in range(0, len(data), 1234 + rank):
            terminal.write(rank, data[start : start + 1234 + rank], shown)
            shown.say("between")

    threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown.close(LONG)
    for rank in range(8):
        assert numbers(terminal.printed, rank) == list(range(2000))
