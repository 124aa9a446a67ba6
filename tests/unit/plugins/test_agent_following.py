import os
import signal
import time
from pathlib import Path

from local_nodes import SLEEP, LocalNode, code, until


def test_the_log_from_any_offset_in_any_pieces(node: LocalNode, tmp_path: Path) -> None:
    node.run("print('0123456789' * 10, end='')", tmp_path / "code")
    whole, offset, polls = b"", 0, 0
    more = True
    while more:
        reply, data = node.follow(offset, max_bytes=33)
        assert reply["offset"] == offset + len(data)
        whole, offset, more, polls = whole + data, reply["offset"], reply["more"], polls + 1
    assert (whole, polls) == (b"0123456789" * 10, 4)
    assert node.follow(95)[1] == b"56789"
    assert node.follow(100)[1] == b""


def test_a_poll_waits_for_news(node: LocalNode, tmp_path: Path) -> None:
    script = (
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('news')\ntime.sleep(600)"
    )
    node.start(code(tmp_path / "code", script))
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=0.5)
    assert (reply["state"], reply["offset"], reply["more"], data) == ("running", 0, False, b"")
    assert time.monotonic() - began >= 0.5
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    reply, data = node.follow(wait_seconds=30)
    assert (reply["state"], data) == ("running", b"news\n")
    assert time.monotonic() - began < 10


def test_a_poll_gathers_what_comes_in_quick_succession(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import time\nfor n in range(100):\n  print(n)\n  time.sleep(0.02)"))
    _reply, data = node.follow(wait_seconds=30, linger_seconds=0.5)
    assert 10 < data.count(b"\n") < 60


def test_a_quiet_poll_waits_for_much_or_for_the_end(node: LocalNode, tmp_path: Path) -> None:
    script = "import pathlib, time\nprint('x' * 99)\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
    node.start(code(tmp_path / "code", script))
    until(lambda: node.follow(wait_seconds=0)[1])
    began = time.monotonic()
    assert node.follow(wait_seconds=30, quiet=True, max_bytes=50)[1] == b"x" * 50, "enough has gathered"
    assert time.monotonic() - began < 10
    assert len(node.follow(wait_seconds=0.5, quiet=True, max_bytes=1000)[1]) == 100
    (node.job_dir() / "work" / "go").touch()
    began = time.monotonic()
    assert node.follow(100, wait_seconds=30, quiet=True)[0]["state"] == "succeeded"
    assert time.monotonic() - began < 10


def test_a_supervisor_that_vanished_is_a_lost_job(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP))
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    reply, data = node.follow(wait_seconds=0)
    os.kill(reply["pid"], signal.SIGKILL)
    os.kill(int(data.split()[0]), signal.SIGKILL)
    state, log = node.wait()
    assert state["state"] == "lost"
    assert log.endswith("ready\n")
