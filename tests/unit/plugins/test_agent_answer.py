# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import ast
import json
import re
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins import module_utils
from ansible_collections.thunderhead.cluster.plugins.module_utils import _agent as agent
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent import bootstrap
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport import payload
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError, Refused
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import REPLIES
from local_nodes import SLEEP, Altered, LocalNode, code, refused, until


def test_an_error_of_the_system_is_a_sentence(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    shutil.rmtree(node.directory / "bundles")
    message = refused(node, "receive_code", bundle, bundle.content)
    assert re.fullmatch(
        rf"node0 failed at receive_code: No such file or directory: {node.directory}/bundles/\S+", message
    )


BEGIN = "def preflight_facts(request: Request, payload: bytes) -> tuple[Reply, bytes]:\n"
"""Where a defect can be put into the agent."""


def failing(node: LocalNode, statement: str, *changes: tuple[str, str]) -> NodeError:
    """Return how an agent fails that has a defect."""
    node.connection = Altered((BEGIN, f"{BEGIN}    {statement}\n"), *changes)
    with pytest.raises(NodeError) as caught:
        node.ask("preflight_facts", imports=None)
    return caught.value


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("{}['key']", "KeyError: 'key'"),
        ("'\\ud800'.encode()", "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 0: "),
        ("raise ValueError('no number \\ud800\\n')", "ValueError: no number \\ud800\\n"),
        ("raise MemoryError", "MemoryError"),
        ("raise SystemExit('enough')", "SystemExit: enough"),
        ("again = lambda: again(); again()", "RecursionError: maximum recursion depth exceeded"),
        ("os.listdir(99)", "Bad file descriptor"),
        ("open('/' + 'x/' * 5000)", "File name too long: /x/x/"),
        ("return {'hostname': object()}, b''", "TypeError: 'object' object is not subscriptable"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence_and_no_word_about_the_job(
    node: LocalNode, statement: str, words: str
) -> None:
    error = failing(node, statement)
    assert re.sub(r" in (preflight_facts|contract), line \d+", "", str(error)).startswith(
        f"node0 failed at preflight_facts: {words}"
    )
    assert error.facts == {"failed": True} and not isinstance(error, Refused)


def test_a_refusal_is_no_failure(node: LocalNode) -> None:
    with pytest.raises(NodeError) as caught:
        node.ask("follow")
    assert (str(caught.value), caught.value.facts) == ("node0 has no job job-1", {"gone": True})


def test_more_than_a_reply_holds_is_said(node: LocalNode) -> None:
    error = failing(node, "return {'hostname': ['x' * 4000] * 2000}, b''")
    assert str(error) == "node0 has more to say than a reply holds (8008026 characters, of at most 4194304)"
    assert error.facts == {"failed": True}


SOON = ("ANSWER_SECONDS = 120", "ANSWER_SECONDS = 0.5")
ENDLESS = {
    "a program that does not end": "import subprocess; subprocess.run(['sleep', '600'])",
    "a pipe": "os.mkfifo(request['directory'] + '/pipe'); open(request['directory'] + '/pipe')",
    "a loop": "while True: suppress(Exception).__enter__()",
}


@pytest.mark.parametrize("statement", ENDLESS.values(), ids=ENDLESS)
def test_an_agent_gives_up_and_says_so(node: LocalNode, statement: str) -> None:
    began = time.monotonic()
    error = failing(node, statement, SOON)
    assert time.monotonic() - began < 10
    assert str(error) == "node0 gave up preflight_facts, which took too long; look at the load and the disk there"
    assert error.facts == {"failed": True}


def test_an_agent_that_no_signal_interrupts_ends_all_the_same(node: LocalNode) -> None:
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(600)"
    began = time.monotonic()
    error = failing(node, block, SOON, ("LAST_SECONDS = 15", "LAST_SECONDS = 0.5"))
    assert time.monotonic() - began < 10
    assert "(exit code 1): gave up preflight_facts: a file system there does not answer" in str(error)


def test_the_request_says_how_long_an_agent_may_take(node: LocalNode, tmp_path: Path) -> None:
    node.start(code(tmp_path / "code", SLEEP))
    node.connection = Altered(SOON)
    assert node.follow(wait_seconds=2, quiet=True)[0]["state"] == "running"


def test_a_deadline_is_not_the_supervisors(node: LocalNode, tmp_path: Path) -> None:
    node.connection = Altered(SOON, ("LAST_SECONDS = 15", "LAST_SECONDS = 0.1"))
    state, log = node.run("import time\ntime.sleep(2)\nprint('done')", tmp_path / "code")
    assert (state["state"], log) == ("succeeded", "done\n")


def test_what_an_agent_had_begun_is_undone_when_it_gives_up(node: LocalNode, tmp_path: Path) -> None:
    begin = "    pid = os.fork()\n"
    node.connection = Altered(SOON, (begin, f"    time.sleep(600)\n{begin}"))
    message = refused(node, "prepare", code(tmp_path / "code", ""))
    assert message == "node0 gave up prepare, which took too long; look at the load and the disk there"
    assert node.jobs == []
    until(lambda: not node.supervisor())


def test_a_reply_that_nobody_takes_does_not_hold_the_agent(node: LocalNode, tmp_path: Path) -> None:
    import subprocess

    from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import LOADER, frame
    from local_nodes import rewritten

    node.run("print('x' * 2**20)", tmp_path / "code")
    poll = {"offset": 0, "wait_seconds": 0, "linger_seconds": 0, "pace_seconds": 0, "quiet": False, "max_bytes": 2**20}
    data = rewritten(frame(node.request("follow", **poll)), Altered(SOON).changes)
    agent = subprocess.Popen([node.python, "-I", "-S", "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin
    agent.stdin.write(data)
    agent.stdin.close()
    assert agent.wait(10) == -signal.SIGALRM


COMPANION = {*Path(agent.__path__[0]).glob("companion/thunderhead_companion/*.py")}
MODULES = {path for path in Path(agent.__path__[0]).rglob("*.py") if path.name != "__init__.py"} - COMPANION
SENT = sorted(
    payload._path(name).with_suffix(".py")
    for name in {name for op in REPLIES for name in json.loads(zlib.decompress(payload.modules(op)))}
)


def test_what_is_sent_is_found() -> None:
    assert MODULES - {*SENT} == {Path(bootstrap.__file__)}
    assert {"answer.py", "prepare.py", "supervise.py", "ufw.py"} <= {path.name for path in SENT}


def test_the_companion_needs_nothing_but_itself_the_standard_library_and_torch() -> None:
    nodes = [node for path in COMPANION for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9)))]
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert COMPANION and {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "torch"}


@pytest.mark.parametrize("path", SENT, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_the_agent_needs_nothing_but_itself_and_the_standard_library_of_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    others = {name for name in imported if not name.startswith(f"{module_utils.__name__}.")}
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names
