# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import os
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import LONGEST_LINE, printable
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_reader import (
    BAR_SECONDS,
    LineReader,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import TAIL_BYTES, RankLog


class Clock:
    """A clock that stands still unless it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def read(*pieces: bytes) -> list[str]:
    reader = LineReader()
    return [line for piece in pieces for line in reader.feed(piece)] + list(reader.finish())


def pieces_of(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


# --------------------------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one\n", ["one"]),
        (b"one\ntwo", ["one", "two"]),
        (b"\n\na\n", ["", "", "a"]),
        (b"windows\r\nline\r\n", ["windows", "line"]),
        (b"two\r\r\n\r\nthree\r\n", ["two", "", "three"]),
        (b"  1%|\r 50%|\r100%|###|\n", ["100%|###|"]),
        (b"  1%|\r 50%|\r100%|###|\r\n", ["100%|###|"]),
        (b" 50%|\r", [" 50%|"]),
        (b"\r 50%|\r 60%|\r      \rdone\nnext\n", ["done", "next"]),
        (b"\r 50%|\r100%|\r\x1b[K\n", ["100%|"]),
        (b"tab\tstays\n", ["tab\tstays"]),
        ("Zürich 日本 🚀\n".encode(), ["Zürich 日本 🚀"]),
        ("\r 50%|████▌  |\r100%|████████|\n".encode(), ["100%|████████|"]),
        (b"\x1b[1;31mred\x1b[0m \x1b[2K\x1b[?25lbar\n", ["red bar"]),
        (b"\x1b]0;title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["text link"]),
        (b"\x1b]0;never ended\n", [""]),
        (b"\x1b7save\x1b8\x1bMup\x1b\n", ["7save8up"]),
        (b"bell\x07 back\x08 null\x00 delete\x7f c1\xc2\x9b31m\n", ["bell back null delete c131m"]),
        (b"latin-\xe9 \xff\xfe\n", ["latin-� ��"]),
        (b"cut off \xf0\x9f\x9a\nand on\n", ["cut off �", "and on"]),
    ],
)
def test_lines(data: bytes, lines: list[str]) -> None:
    assert read(data) == lines
    assert read(*pieces_of(data, 1)) == lines, "byte by byte"


def test_what_needs_no_cleaning_reads_the_same_as_what_does() -> None:
    data = "".join(f"{number} {'x' * (number % 90)} é\n" for number in range(3000)).encode()
    expected = [printable(line) for line in data.split(b"\n")[:-1]]
    assert read(data) == read(*pieces_of(data, 997)) == expected
    assert read(b"\x1b[0m" + data) == expected


def test_binary_noise_never_reaches_the_terminal() -> None:
    noise = random.Random(1).randbytes(50_000)
    for line in read(*pieces_of(noise, 999)):
        assert all(character == "\t" or character.isprintable() or ord(character) > 0x9F for character in line)


def test_any_split_of_any_noise_gives_the_same_lines() -> None:
    # Of what drives the reader, not of all bytes: else most lines would be alike.
    random_one = random.Random(2)
    alphabet = [b"\r", b"\n", b"\r\n", b"\x1b[A", b"\x1b[K", b" ", b"a", "é".encode(), b"50%", b"\xff", b"\x00"]
    for _ in range(300):
        data = b"".join(random_one.choices(alphabet, k=40))
        whole = [line.rstrip() for line in read(data)]
        for size in (1, 2, 3, 7):
            assert [line.rstrip() for line in read(*pieces_of(data, size))] == whole, (data, size)


def test_a_long_line_is_cut_on_the_terminal() -> None:
    for character in ("x", "é"):
        assert read((character * LONGEST_LINE + "\n").encode()) == [character * LONGEST_LINE]
        assert read((character * 10_000 + "\n").encode()) == [character * LONGEST_LINE + " … (10000 characters)"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_without_end_is_shown_once_and_not_gathered(end: bytes) -> None:
    reader = LineReader()
    shown = [line for _ in range(1000) for line in reader.feed(b"y" * 1024)]
    assert shown == ["y" * LONGEST_LINE + " … (the line goes on)"]
    assert len(reader._rest) <= 4 * LONGEST_LINE + 1024
    assert list(reader.feed(b"y" + end[:1])) + list(reader.feed(end[1:] + b"next\n")) == ["next"]


def test_a_line_without_end_costs_the_same_for_each_piece() -> None:
    """What is there already is not copied with every piece: that would be quadratic."""
    reader = LineReader()
    for piece in pieces_of(b"z" * 30_000, 1000):
        assert list(reader.feed(piece)) == []
    copies = 0
    tracemalloc.start()
    try:
        for _ in range(1000):
            before, _peak = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            assert list(reader.feed(b"z")) == []
            copies += tracemalloc.get_traced_memory()[1] - before > 15_000
    finally:
        tracemalloc.stop()
    assert copies <= 2, "a buffer that grows is moved now and then"


def test_memory_stays_flat_whatever_a_job_prints() -> None:
    reader = LineReader(Clock())
    tracemalloc.start()
    try:
        for piece in (b"w" * 65536, b"\r 50%|" * 8192, b"\n" * 65536, b"\r\x1b[A" * 16384, b"\n\r50%\x1b[A" * 8192):
            for _ in range(5):
                for _line in reader.feed(piece):
                    pass
        assert tracemalloc.get_traced_memory()[0] < 2**18
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_finish_leaves_nothing_behind() -> None:
    reader = LineReader()
    list(reader.feed(b"rest"))
    assert list(reader.finish()) == ["rest"]
    assert list(reader.finish()) == []


def test_drop_forgets_the_line_that_has_not_ended() -> None:
    reader = LineReader()
    assert list(reader.feed(b"whole\n 10%|\r 20%|\r 30")) == ["whole"]
    reader.drop()
    assert reader.due is None
    assert list(reader.feed(b"next\n")) == ["next"]


def test_printable_of_escapes_only() -> None:
    assert printable(b"\x1b[0m\x1b[K") == ""


# ------------------------------------------------------------------------------------------------------- progress bars


def test_a_bar_is_shown_every_ten_seconds_and_at_its_end() -> None:
    clock = Clock()
    reader = LineReader(clock)
    shown = []
    for step in range(1000):  # 100 s, ten redraws a second, as tqdm makes them
        shown += [(step, line) for line in reader.feed(b"\r%4d/1000|%s|" % (step, b"#" * 400))]
        clock.now += 0.125
    assert [step for step, _line in shown] == list(range(80, 1000, 80))
    for step, line in shown:
        assert line.startswith(f"{step - 1:4d}/1000|###"), "the newest that is complete, never a part"
        assert line.endswith("#|")
    assert [line[:5] for line in reader.feed(b"\r1000/1000|\n")] == ["1000/"]
    assert reader.due is None


def test_a_bar_that_waits_shows_its_newest_state_once() -> None:
    clock = Clock()
    reader = LineReader(clock)
    assert list(reader.feed(b"\r  0%|\r  1%|")) == []
    assert reader.due == clock.now + BAR_SECONDS
    assert list(reader.feed(b"")) == []
    clock.now = reader.due
    assert list(reader.feed(b"")) == ["  1%|"], "nothing follows, so it is complete"
    clock.now += 5
    assert list(reader.feed(b"")) == []
    clock.now += 60
    assert list(reader.feed(b"")) == [], "it has not changed"
    assert list(reader.feed(b"\n")) == [], "nor has it now"
    assert list(reader.feed(b"next\n")) == ["next"]


def test_a_line_that_is_not_redrawn_waits_for_its_newline() -> None:
    clock = Clock()
    reader = LineReader(clock)
    assert list(reader.feed(b"loading data \r")) == []
    clock.now += 100
    assert reader.due is None
    assert list(reader.feed(b"")) == []
    assert list(reader.feed(b"\n")) == ["loading data "]


def test_a_bar_split_anywhere_is_never_shown_in_part() -> None:
    clock = Clock()
    states = [f"\r{step:4d}/1000 [{'█' * (step // 50):20}]" for step in range(1000)]
    reader = LineReader(clock)
    shown = []
    for piece in pieces_of("".join(states).encode(), 13):
        clock.now += 1
        shown += list(reader.feed(piece))
    assert 100 < len(shown) < 1000
    assert {f"\r{line}" for line in shown} <= set(states)


def test_bars_that_are_redrawn_together_count_as_one_line() -> None:
    """What tqdm prints for nested bars: the inner one goes a line down, and the cursor up again."""
    clock = Clock()
    reader = LineReader(clock)
    shown = list(reader.feed(b"Training\n\router 0%|"))
    for step in range(1000):
        shown += reader.feed(b"\n\rinner %d\x1b[A" % step)
        if step % 10 == 0:
            shown += reader.feed(b"\n\n\rthird %d\x1b[A\x1b[A" % step)
        shown += reader.feed(b"\router %d" % step)
        clock.now += 0.1
    shown += list(reader.feed(b"\router 100%|\nValidation\n\nnext\n"))
    assert shown[0] == "Training"
    assert shown[1] == "outer 0%|", "its first newline looks like any other"
    assert shown[-4:] == ["outer 100%|", "Validation", "", "next"]
    assert 9 <= len(shown) - 6 <= 10, "every ten seconds"
    assert reader.due is None


def test_a_bar_with_states_of_any_length_stays_a_bar() -> None:
    clock = Clock()
    reader = LineReader(clock)
    shown = [line for step in range(100) for line in reader.feed(b"\r%d %s" % (step, b"#" * 50_000))]
    assert len(shown) <= 1, "the first may not be known for a bar yet"
    clock.now += BAR_SECONDS
    assert [line[:4] for line in reader.feed(b"\rend")] == ["99 #"]


# ---------------------------------------------------------------------------------------------------------------- files


def test_the_file_has_every_byte_and_memory_only_the_end(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    data = b"".join(b"line %d \x1b[1m\xff\r\n" % number for number in range(10_000))
    for start in range(0, len(data), 7919):
        assert log.size == start
        log.write(data[start : start + 7919], start)
    assert log.path.read_bytes() == data, "written through, before it is closed"
    assert log.path.stat().st_mode & 0o777 == 0o600
    tail = log.tail()
    log.close()
    assert log.tail() == tail
    assert tail[-2:] == ["line 9999 �", ""]
    assert 500 < len(tail) < TAIL_BYTES
    assert all(line.startswith("line ") for line in tail[:-1]), "the first one too"


def test_a_later_follower_goes_on_where_one_ended(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % number for number in range(1000))
    first = RankLog(tmp_path / "log")
    first.write(data[:5000], 0)  # and was killed: never closed
    second = RankLog(tmp_path / "log")
    assert second.size == 5000
    assert second.tail() == first.tail()
    assert second.last_line_start() == data.rindex(b"\n", 0, 5000) + 1
    second.write(data[second.last_line_start() :], second.last_line_start())
    assert second.size == len(data)
    assert second.path.read_bytes() == data
    assert second.tail()[-2:] == ["line 999", ""]


def test_two_followers_write_the_same_file(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    followers = [RankLog(tmp_path / "log"), RankLog(tmp_path / "log")]
    for start in range(0, len(data), 1000):
        followers[0].write(data[start : start + 1000], start)
        if start % 7000 == 0:
            followers[1].write(data[followers[1].size : start], followers[1].size)
    assert [log.size for log in followers] == [300_000, 294_000]
    followers[1].write(data[290_000:], 290_000)
    assert followers[0].path.read_bytes() == data
    assert followers[0].tail() == followers[1].tail()


def test_known_bytes_again_change_nothing(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    log.write(b"one\ntwo\n", 0)
    log.write(b"one\n", 0)
    assert (log.size, log.tail(), log.path.read_bytes()) == (8, ["one", "two", ""], b"one\ntwo\n")


def test_a_hole_would_pass_for_output(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    log.write(b"one\n", 0)
    with pytest.raises(ValueError, match="has 4 bytes, so nothing can be put at offset 5"):
        log.write(b"two\n", 5)
    assert log.path.read_bytes() == b"one\n"


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", 0),
        (b"no newline", 0),
        (b"one\n", 4),
        (b"one\ntwo", 4),
        (b"\n" + b"x" * 200_000, 1),
        (b"x" * 65535 + b"\n" + b"y" * 65536, 65536),
        (b"x" * 200_000, 0),
    ],
)
def test_where_the_last_line_starts(tmp_path: Path, content: bytes, start: int) -> None:
    (tmp_path / "log").write_bytes(content)
    log = RankLog(tmp_path / "log")
    assert log.last_line_start() == start
    assert log.read(start, len(content)) == content[start:]


def test_read(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    log.write(b"0123456789", 0)
    assert (log.read(3, 4), log.read(8, 100), log.read(10, 1), log.read(0, 0)) == (b"3456", b"89", b"", b"")


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, sizes = os.pwrite, []

    def short(file: int, data: memoryview, offset: int) -> int:
        sizes.append(pwrite(file, data[:7], offset))
        return sizes[-1]

    monkeypatch.setattr(os, "pwrite", short)
    log = RankLog(tmp_path / "log")
    log.write(b"0123456789" * 10, 0)
    assert len(sizes) == 15
    assert log.path.read_bytes() == b"0123456789" * 10


def test_what_a_full_disk_took_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def full(file: int, data: memoryview, offset: int) -> int:
        if offset >= 8:
            raise OSError(28, "No space left on device")
        return pwrite(file, data[: 8 - offset], offset)

    log = RankLog(tmp_path / "log")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        log.write(b"one\ntwo\nthree\n", 0)
    assert log.size == 8
    assert log.tail() == ["one", "two", ""]


def test_a_log_is_no_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        RankLog(tmp_path / "log")
    assert not (tmp_path / "elsewhere").exists()


def test_a_closed_log_takes_no_more(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    log.write(b"one\n", 0)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="is closed"):
        log.write(b"two\n", 4)
    assert log.tail() == ["one", ""]


def test_a_very_long_last_line_is_in_the_tail(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    log.write(b"x" * (2 * TAIL_BYTES), 0)
    assert log.tail() == ["x" * LONGEST_LINE + f" … ({TAIL_BYTES} characters)"]


def test_writing_holds_none_of_it_in_memory(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    data = b"x" * 2**20
    tracemalloc.start()
    try:
        for number in range(16):
            log.write(data, number * len(data))
        assert tracemalloc.get_traced_memory()[1] < 2**16
        log.last_line_start()
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
