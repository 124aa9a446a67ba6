import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from ansible.utils import color
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import logs, screen
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.screen import BACKLOG_BYTES, PIECE_BYTES, Screen

LONG = 60
"""Seconds after which a test that waits has failed."""


class Terminal:
    """What is printed on it, and a hold on it."""

    def __init__(self) -> None:
        self.printed: list[str] = []
        self.calls = 0
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def say(self, text: str) -> None:
        self.reached.set()
        assert self.open.wait(LONG)
        self.calls += 1
        self.printed += text.split("\n")

    def stand_still(self, shown: Screen) -> None:
        """Take one line of the engine's, and then no more until ``open`` is set."""
        self.open.clear()
        self.reached.clear()
        shown.say("stands still")
        assert self.reached.wait(LONG)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(color, "ANSIBLE_COLOR", False)
    one = Terminal()
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


def left_out(lines: list[str]) -> int:
    """How many lines the terminal says were left out."""
    return sum(int(line.split()[1].replace(",", "")) for line in lines if line.startswith("… "))


def numbers(lines: list[str]) -> list[int]:
    return [int(line.rpartition("] ")[2]) for line in lines if line.endswith(tuple("0123456789"))]


# ------------------------------------------------------------------------------------------------------------ prefixes


def test_lines_of_ranks_and_of_the_engine_in_order(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 2)
    shown.say("job: train.py on 2 nodes")
    shown.show(0, "node0", b"one\ntw")
    shown.show(1, "node1", b"other\n")
    shown.say("between")
    shown.show(0, "node0", b"o\nthree")
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
    shown = Screen(terminal.say, 16, hosts=["a", "gpu-10"])
    shown.show(0, "a", b"x\n")
    shown.show(15, "gpu-10", b"x\n")
    shown.close(LONG)
    assert terminal.printed == ["[ 0 a]      x", "[15 gpu-10] x"]


def test_ranks_have_colors_on_a_terminal_that_has_them(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "ANSIBLE_COLOR", True)
    shown = Screen(terminal.say, 9)
    for rank in range(9):
        shown.show(rank, "n", b"\x1b[31mtext\x1b[0m\n")
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
    feed = logs.LineReader.feed
    monkeypatch.setattr(logs.LineReader, "feed", lambda reader, data: looked_at.append(len(data)) or feed(reader, data))
    shown = Screen(terminal.say, 2)
    terminal.stand_still(shown)
    block = numbered(0, 10_000)
    tracemalloc.start()
    try:
        for _ in range(100):
            shown.show(0, "n", block)
            shown.say("never left out")
        assert tracemalloc.get_traced_memory()[1] < BACKLOG_BYTES + 2 * len(block)
    finally:
        tracemalloc.stop()
    terminal.open.set()
    shown.close(LONG)
    ranks = [line for line in terminal.printed if line.startswith("[")]
    assert sum(looked_at) == 100 * len(ranks) < BACKLOG_BYTES, "what is left out is not even decoded"
    assert len(ranks) + left_out(terminal.printed) == 1_000_000
    assert terminal.printed.count("never left out") == 100
    assert terminal.calls < 1000, "not a call for each line"


def test_what_is_shown_are_whole_lines_and_the_gaps_say_how_many_are_missing(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 1)
    for first in range(0, 200_000, 40_000):
        terminal.stand_still(shown)
        data = numbered(first, 40_000)
        for start in range(0, len(data), 70_001):  # whatever was read in one go
            shown.show(0, "n", data[start : start + 70_001])
        terminal.open.set()
        await_true(lambda: not shown._items)
    shown.close(LONG)
    expected, gaps = 0, 0
    for line in terminal.printed:
        if line.startswith("[0 n] "):
            assert line == f"[0 n] {expected:099d}"
            expected += 1
        elif line.startswith("… "):
            expected += left_out([line])
            gaps += 1
    assert expected == 200_000
    assert 3 <= gaps <= 6, "few and large ones"


def test_the_words_for_what_is_left_out(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "BACKLOG_BYTES", 1000)
    shown = Screen(terminal.say, 2)
    terminal.stand_still(shown)
    shown.show(0, "n", numbered(0, 12_345))
    shown.show(1, "n", b"x" * 1000 + b"\n")
    terminal.open.set()
    shown.close(LONG)
    assert terminal.printed[1:] == [
        f"[0 n] {0:099d}",
        f"[0 n] {1:099d}",
        "… 12,343 lines of rank 0 are not shown here, for they came too fast; they are in its log",
        "… 1 line of rank 1 is not shown here, for it came too fast; it is in its log",
    ]


def test_a_line_that_was_begun_before_a_gap_is_left_out_whole(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "BACKLOG_BYTES", 2000)
    shown = Screen(terminal.say, 1)
    shown.show(0, "n", b"one\ntwo begins")
    terminal.stand_still(shown)
    shown.show(0, "n", b"x" * 2000)
    shown.show(0, "n", b"x" * 2000 + b" two ends\nthree\nfour beg")
    terminal.open.set()
    await_true(lambda: not shown._items)
    shown.show(0, "n", b"ins")
    shown.show(0, "n", b" four ends\nfive\nsix")
    shown.close(LONG)
    assert terminal.printed == [
        "[0 n] one",
        "stands still",
        "… 1 line of rank 0 is not shown here, for it came too fast; it is in its log",
        "[0 n] three",
        "[0 n] four begins four ends",
        "[0 n] five",
        "[0 n] six",
    ]


def test_a_rank_that_prints_without_end_leaves_room_for_others(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 3)
    terminal.stand_still(shown)
    for number in range(100):
        shown.show(0, "n", numbered(0, 10_000))
        shown.show(1, "n", numbered(0, 10_000))
        shown.show(2, "n", b"%d\n" % number)
    terminal.open.set()
    shown.close(LONG)
    assert numbers([line for line in terminal.printed if line.startswith("[2 ")]) == list(range(100))
    for rank in (0, 1):
        assert len([line for line in terminal.printed if line.startswith(f"[{rank} ")]) > 10_000


def test_many_small_pieces_count_for_what_they_take(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 1)
    terminal.stand_still(shown)
    tracemalloc.start()
    try:
        for number in range(100_000):
            shown.show(0, "n", b"%d\n" % number)
        assert tracemalloc.get_traced_memory()[1] < BACKLOG_BYTES
    finally:
        tracemalloc.stop()
    terminal.open.set()
    shown.close(LONG)
    assert len(numbers(terminal.printed)) + left_out(terminal.printed) == 100_000


def test_a_bar_comes_back_after_a_gap(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "BACKLOG_BYTES", 2000)
    shown = Screen(terminal.say, 1)
    terminal.stand_still(shown)
    shown.show(0, "n", b"".join(b"\r%3d%%" % percent for percent in range(90)) * 20)
    terminal.open.set()
    await_true(lambda: not shown._items)
    shown.show(0, "n", b"\r 90%\r 95%")
    shown.show(0, "n", b"\r100%\n")
    shown.close(LONG)
    assert terminal.printed[-1] == "[0 n] 100%"


# ------------------------------------------------------------------------------------------------- waiting, and the end


def test_output_that_can_wait_is_shown_whole(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 1)
    terminal.stand_still(shown)
    for first in range(0, 100_000, 10_000):
        shown.show(0, "n", numbered(first, 10_000))
        if first == 0:
            assert not shown.await_room(0.01)
            terminal.open.set()
        assert shown.await_room(LONG)
    shown.close(LONG)
    assert numbers(terminal.printed) == list(range(100_000))


def test_a_bar_that_goes_slowly_is_shown_while_nothing_else_comes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BAR_SECONDS", 0.01)
    shown = Screen(terminal.say, 1)
    shown.show(0, "n", b"\r 10%|\r 20%|")
    await_true(lambda: terminal.printed == ["[0 n]  20%|"])
    shown.show(0, "n", b"\r 30%|")
    await_true(lambda: terminal.printed == ["[0 n]  20%|", "[0 n]  30%|"])
    shown.close(LONG)
    assert terminal.printed == ["[0 n]  20%|", "[0 n]  30%|"]


def test_the_end_waits_for_the_terminal_only_so_long(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "LAST_WORDS_SECONDS", 0.01)
    shown = Screen(terminal.say, 2)
    terminal.stand_still(shown)
    shown.show(0, "n", numbered(0, 1000))
    shown.show(1, "n", b"one\ntwo")
    shown.say("in the middle")
    shown.show(0, "n", numbered(1000, 500))
    shown.close(0.01)
    shown.say("the result")
    assert terminal.printed == []
    terminal.open.set()
    await_true(lambda: len(terminal.printed) == 5)
    assert terminal.printed == [
        "stands still",
        "in the middle",
        "… 1,500 lines of rank 0 are not shown here, for they came too fast; they are in its log",
        "… 2 lines of rank 1 are not shown here, for they came too fast; they are in its log",
        "the result",
    ]
    await_true(lambda: not shown._thread.is_alive())


def test_giving_up_counts_what_was_left_out_before(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "LAST_WORDS_SECONDS", 0.01)
    shown = Screen(terminal.say, 1)
    terminal.stand_still(shown)
    for number in range(20):
        shown.show(0, "n", numbered(number * 10_000, 10_000))
    shown.show(0, "n", b"one without its end")
    assert any(isinstance(item, screen._Gap) for item in shown._items)
    shown.close(0.01)
    assert shown._held == 0
    terminal.open.set()
    await_true(lambda: len(terminal.printed) == 2)
    assert left_out(terminal.printed) == 200_001


def test_an_empty_end(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 1)
    shown.show(0, "n", b"")
    shown.close(LONG)
    assert terminal.printed == []
    assert not shown._thread.is_alive()


def test_a_terminal_that_is_gone_is_no_reason_to_fail() -> None:
    calls = []

    def say(text: str) -> None:
        calls.append(text)
        raise BrokenPipeError

    shown = Screen(say, 1)
    shown.say("one")
    await_true(lambda: shown.gone)
    shown.show(0, "n", numbered(0, 1000))
    shown.close(LONG)
    shown.say("two")
    assert calls == ["one"]
    assert not shown._items


def test_followers_in_many_threads_lose_no_line(terminal: Terminal) -> None:
    shown = Screen(terminal.say, 8)

    def follow(rank: int) -> None:
        data = numbered(0, 2000)
        for start in range(0, len(data), 1234 + rank):
            shown.show(rank, "n", data[start : start + 1234 + rank])
            shown.say("between")

    threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown.close(LONG)
    for rank in range(8):
        lines = [line for line in terminal.printed if line.startswith((f"[{rank} ", f"… {rank}"))]
        assert left_out(terminal.printed) or numbers(lines) == list(range(2000))
    assert len(numbers(terminal.printed)) + left_out(terminal.printed) == 16_000
    assert PIECE_BYTES < 2000 * 100
