import os
import signal
import time
from pathlib import Path

from local_nodes import DAEMON, SLEEP, LocalNode, alive, code, daemon_of, until


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


DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n"


def test_stop_ends_everything_at_once(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DAEMON + SLEEP))
    until(lambda: node.follow(wait_seconds=1)[1])
    daemon, supervisor = daemon_of(node), node.follow(wait_seconds=0)[0]["pid"]
    assert alive(daemon) and alive(supervisor)
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=20)
    assert time.monotonic() - began < 5
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 143, 15)
    assert not alive(daemon) and not alive(supervisor)


def test_what_ignores_sigterm_is_killed_after_the_grace(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", DEAF), grace_seconds=0.5)
    until(lambda: node.follow(wait_seconds=1)[1])
    began = time.monotonic()
    state = node.ask("stop", grace_seconds=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 137, 9)


def test_what_was_stopped_has_not_succeeded(node: LocalNode, tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('ready')\ntime.sleep(600)\n"
    node.start(code(tmp_path / "code", polite))
    until(lambda: node.follow(wait_seconds=1)[1])
    state = node.ask("stop", grace_seconds=5)
    assert (state["state"], state["exit_code"], state["signal"]) == ("stopped", 0, None)


def test_stop_after_the_end_changes_nothing(node: LocalNode, tmp_path: Path) -> None:
    before, _log = node.run("raise SystemExit(4)", tmp_path / "code")
    state = node.ask("stop", grace_seconds=5)
    assert state == {key: value for key, value in before.items() if key not in ("offset", "more")}
    assert state["state"] == "failed"


def test_a_supervisor_that_vanished_is_a_lost_job(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", "import os\nprint(os.getpid())\n" + SLEEP))
    until(lambda: b"ready" in node.follow(wait_seconds=1)[1])
    reply, data = node.follow(wait_seconds=0)
    os.kill(reply["pid"], signal.SIGKILL)
    os.kill(int(data.split()[0]), signal.SIGKILL)
    state, log = node.wait()
    assert state["state"] == "lost"
    assert log.endswith("ready\n")
