import time
from pathlib import Path

from local_nodes import DAEMON, SLEEP, LocalNode, alive, code, daemon_of, until

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
    assert state == {"left": [], **{key: value for key, value in before.items() if key not in ("offset", "more")}}
    assert state["state"] == "failed"
