# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pwd
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.ports import ephemeral_ports
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import marked
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import LOADER, frame
from local_nodes import PYTHON, LocalNode, alive, as_root, free_port, node_of_nobody, until

MAIN = "\nmain(json.loads(sys.argv[1]))\n"
HEAD = "import json, os, sys, time\ndef report(**message): print(json.dumps(message), flush=True)\n"
SLEEP = (
    HEAD
    + "def main(arguments):\n    report(pid=os.getpid())\n"
    + "    if not os.fork(): report(pid=os.getpid())\n    time.sleep(60)"
    + MAIN
)


def try_body(node: LocalNode, body: str, **more: Any) -> dict[str, Any]:
    """What becomes of a program whose ``main`` this is."""
    program = HEAD + "def main(arguments):\n" + "".join(f"    {line}\n" for line in body.splitlines()) + MAIN
    about = {"variables": {}, "arguments": {}, "seconds": 10, "listen": None, **more}
    return node.ask("try_program", payload=program.encode(), **about)


def test_its_messages(node: LocalNode) -> None:
    body = "print('[rank 0] a library says something')\nprint('[1]')\nreport(got=arguments['given'])\nreport(more='ü')"
    messages = [{"got": ["ü", "'\n"]}, {"more": "ü"}]
    reply = try_body(node, body, arguments={"given": ["ü", "'\n"]})
    assert reply == {"messages": messages, "error": "", "late": False}


def test_how_it_fails(node: LocalNode) -> None:
    assert try_body(node, "report(a=1)\nraise ValueError('so\\nnot')")["error"] == "not"
    assert try_body(node, "1 / 0") == {"messages": [], "error": "ZeroDivisionError: division by zero", "late": False}
    assert try_body(node, "os.kill(os.getpid(), 9)")["error"] == "was killed by SIGKILL"
    assert try_body(node, "sys.exit(3)")["error"] == "exited with code 3"


def test_a_jobs_surroundings(node: LocalNode) -> None:
    body = "report(env=sorted(os.environ), a=os.environ['A'], cwd=os.getcwd(), leads=os.getsid(0) == os.getpid())"
    (message,) = try_body(node, body, variables={"A": "b c=d"})["messages"]
    assert {name: message[name] for name in ("a", "cwd", "leads")} == {"a": "b c=d", "cwd": "/", "leads": True}
    own = {"A", "HOME", "LANG", "LC_CTYPE", "LOGNAME", "PATH", "PYTHONUNBUFFERED", "SHELL", "USER"}
    assert set(message["env"]) <= own


def gone(*pids: int) -> Callable[[], bool]:
    return lambda: not any(map(alive, pids))


def test_a_program_that_takes_too_long(node: LocalNode) -> None:
    began = time.monotonic()
    body = "report(pid=os.getpid())\nif not os.fork(): report(pid=os.getpid())\ntime.sleep(60)"
    reply = try_body(node, body, seconds=1)
    assert (reply["error"], reply["late"]) == ("", True)
    assert time.monotonic() - began < 5
    until(gone(*(message["pid"] for message in reply["messages"])))
    assert len(reply["messages"]) == 2


def test_steps_have_their_own_time(node: LocalNode) -> None:
    body = "report(step='a', seconds=10)\ntime.sleep(1.5)\nreport(step='b', seconds=0.2)\ntime.sleep(60)"
    reply = try_body(node, body, seconds=1)
    assert [message["step"] for message in reply["messages"]] == ["a", "b"]
    assert reply["late"]


def test_what_a_program_leaves_behind_is_ended(node: LocalNode) -> None:
    body = "report(pid=os.getpid())\nif os.fork(): os._exit(0)\nreport(pid=os.getpid())\nos.close(1)\ntime.sleep(60)"
    reply = try_body(node, body)
    assert len(reply["messages"]) == 2
    until(gone(*(message["pid"] for message in reply["messages"])))


def test_a_program_that_prints_without_end(node: LocalNode) -> None:
    reply = try_body(node, "while True: print('x' * 1000)")
    assert (reply["messages"], reply["error"]) == ([], "was killed by SIGKILL")


@pytest.mark.parametrize(
    "line",
    [
        *('{"step": "a"}', '{"step": "a", "seconds": null}', '{"step": "a", "seconds": NaN}', '{"seconds": 1e999}'),
        *('{"x": %s}' % ("[" * 500 + "]" * 500), '{"x": "\\ud800"}', '{"\\ud800": 1%s}' % ("0" * 400), "[]", "{"),
    ],
    ids=lambda line: line[:24],
)
def test_a_program_that_prints_something_else(node: LocalNode, line: str) -> None:
    reply = try_body(node, f"print({line!r}, flush=True)\nreport(step='end', seconds=1)")
    assert reply["messages"][-1]["step"] == "end"


def started(node: LocalNode) -> tuple[subprocess.Popen[bytes], int]:
    """An agent whose program sleeps, and that program's process."""
    request = node.request(
        "try_program", variables={"JOB_DIR": str(node.job_dir())}, arguments={}, seconds=60, listen=None
    )
    agent = subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert agent.stdin
    agent.stdin.write(frame(request, (HEAD + "def main(arguments): time.sleep(60)\n" + MAIN).encode()))
    agent.stdin.close()
    until(lambda: marked(str(node.job_dir())))
    (program,) = marked(str(node.job_dir()))
    return agent, program


def test_an_agent_that_is_killed(node: LocalNode) -> None:
    agent, program = started(node)
    agent.kill()
    agent.wait()
    until(gone(program))


def test_a_controller_that_is_gone(node: LocalNode) -> None:
    agent, program = started(node)
    assert agent.stdout
    agent.stdout.close()
    until(gone(program))
    agent.wait(timeout=10)


def test_a_port_that_is_taken(node: LocalNode) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other, pytest.raises(NodeError) as caught:
        try_body(node, "pass", listen=list(other.getsockname()))
    first, last = ephemeral_ports()
    assert first <= caught.value.facts["taken"] <= last
    assert str(caught.value).startswith("node0 cannot listen at 127.0.0.1, port ")


def test_no_environment(node: LocalNode) -> None:
    (node.directory / "env" / "bin" / "python").unlink()
    with pytest.raises(NodeError, match=r"cannot run .*/env/bin/python as \w+: No such file .*setup\.yml"):
        try_body(node, "pass")


# An ordinary user has one account: there is nothing to be tested then. CI runs as root.
@as_root
def test_an_environment_that_the_jobs_user_does_not_reach(node: LocalNode) -> None:
    node.user = "nobody"
    node.directory.chmod(0o700)
    with pytest.raises(NodeError) as caught:
        try_body(node, "pass")
    python = node.directory / "env" / "bin" / "python"
    expected = f"node0 cannot run {python} as nobody: Permission denied; run: ansible-playbook setup.yml"
    assert str(caught.value) == expected


# An ordinary user has one account: there is nothing to be tested then. CI runs as root.
@as_root
def test_the_jobs_user() -> None:
    with node_of_nobody() as node:
        body = "report(uid=os.getuid(), groups=os.getgroups(), pid=os.getpid())\ntime.sleep(60)"
        reply = try_body(node, body, seconds=1)
    ((message,), late) = reply["messages"], reply["late"]
    assert (message["uid"], late) == (pwd.getpwnam("nobody").pw_uid, True)
    assert 0 not in message["groups"]
    until(gone(message["pid"]))


def test_nothing_is_written(node: LocalNode, tmp_path: Path) -> None:
    before = sorted(map(str, tmp_path.rglob("*")))
    try_body(node, "import this")
    assert sorted(map(str, tmp_path.rglob("*"))) == before
