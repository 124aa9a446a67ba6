import random
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.logs import (
    LONGEST_LINE,
    TAIL_BYTES,
    LineReader,
    RankLog,
    printable,
)


def read(*pieces: bytes) -> list[str]:
    reader = LineReader()
    return [line for piece in pieces for line in reader.feed(piece)] + list(reader.finish())


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one\n", ["one"]),
        (b"one\ntwo", ["one", "two"]),
        (b"\n\na\n", ["", "", "a"]),
        (b"windows\r\nline\r\n", ["windows", "line"]),
        (b"  1%|\r 50%|\r100%|###|\n", ["100%|###|"]),
        (b"  1%|\r 50%|\r100%|###|\r\n", ["100%|###|"]),
        (b" 50%|\r", [" 50%|"]),
        (b"tab\tstays\n", ["tab\tstays"]),
        ("Zürich 日本 🚀\n".encode(), ["Zürich 日本 🚀"]),
        (b"\x1b[1;31mred\x1b[0m \x1b[2K\x1b[?25lbar\n", ["red bar"]),
        (b"\x1b]0;title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["text link"]),
        (b"\x1b]0;never ended\n", [""]),
        (b"\x1b7save\x1b8\x1bMup\x1b\n", ["7save8up"]),
        (b"bell\x07 back\x08 null\x00 delete\x7f c1\xc2\x9b31m\n", ["bell back null delete c131m"]),
        (b"latin-\xe9 \xff\xfe\n", ["latin-� ��"]),
    ],
)
def test_lines(data: bytes, lines: list[str]) -> None:
    assert read(data) == lines
    assert read(*(bytes([byte]) for byte in data)) == lines, "byte by byte"


def test_binary_noise_never_reaches_the_terminal() -> None:
    noise = random.Random(1).randbytes(50_000)
    for line in read(*(noise[start : start + 999] for start in range(0, len(noise), 999))):
        assert all(character == "\t" or character.isprintable() or ord(character) > 0x9F for character in line)


def test_a_long_line_is_cut_on_the_terminal() -> None:
    assert read(b"x" * LONGEST_LINE + b"\n") == ["x" * LONGEST_LINE]
    assert read(b"x" * 10_000 + b"\n") == ["x" * LONGEST_LINE + " … (10000 characters)"]


def test_output_without_any_newline_is_not_gathered() -> None:
    reader = LineReader()
    shown = [line for _ in range(1000) for line in reader.feed(b"y" * 1024)]
    assert len(shown) > 10
    assert all(line.startswith("y" * LONGEST_LINE + " … (") for line in shown)
    assert len(reader._rest) <= 4 * LONGEST_LINE + 1024


def test_a_progress_bar_without_newline_shows_its_last_state_now_and_then() -> None:
    bar = b"".join(b"\r%3d%%|%s|" % (percent, b"#" * 400) for percent in range(100))
    assert [line[:4] for line in read(bar)] == [" 99%"]
    assert [line[:4] for line in read(*(bar[start : start + 409] for start in range(0, len(bar), 409)))] == [
        " 81%",
        " 99%",
    ]


def test_finish_leaves_nothing_behind() -> None:
    reader = LineReader()
    list(reader.feed(b"rest"))
    assert list(reader.finish()) == ["rest"]
    assert list(reader.finish()) == []


def test_printable_of_escapes_only() -> None:
    assert printable(b"\x1b[0m\x1b[K") == ""


def test_the_file_has_every_byte_and_memory_only_the_end(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log")
    data = b"".join(b"line %d \x1b[1m\xff\r\n" % number for number in range(10_000))
    for start in range(0, len(data), 7919):
        log.write(data[start : start + 7919])
        assert len(log._tail) <= TAIL_BYTES
    assert log.path.read_bytes() == data, "written through, before it is closed"
    log.close()
    tail = log.tail()
    assert tail[-2:] == ["line 9999 �", ""]
    assert 500 < len(tail) < TAIL_BYTES
