import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import program
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.program import (
    LOADER,
    answering,
    frame,
    needed,
    packed,
)
from local_nodes import PYTHON, Connection, LocalNode, code

REQUEST = {"op": "inspect", "directory": "/nowhere", "user": "", "address": "127.0.0.1", "master_port": None}


def answered(data: bytes) -> tuple[str, str]:
    """Return what an agent that is given this says, and its errors."""
    result = subprocess.run([PYTHON, "-I", "-S", "-c", LOADER], input=data, capture_output=True)
    return result.stdout.decode(), result.stderr.decode()


def names(op: str) -> set[str]:
    return {name.rpartition(".")[2] for name in needed(answering(op))}


@pytest.mark.parametrize("payload", [b"", b"\0\xff\n" * 1000])
def test_frame(payload: bytes) -> None:
    head, _newline, rest = frame("stop", "{'op': 'stop'}", payload).partition(b"\n")
    text, rest = rest[: int(head)], rest[int(head) :]
    assert text.endswith(b"\nanswer({'op': 'stop'})\n")
    assert rest == b"".join(packed(needed(answering("stop")))) + payload


def test_a_request_is_sent_the_modules_that_it_needs_and_no_others() -> None:
    assert names("inspect") == {"inspecting", "jobs", "node", "protocol"}
    assert names("follow") == {"protocol", "node", "jobs", "records", "following"}
    assert "watching" in names("prepare"), "what a function imports is needed too"
    assert "collecting" not in names("prepare")


def test_another_python_compiles_the_agent_itself() -> None:
    data = frame("inspect", ascii(REQUEST))
    head, _newline, rest = data.partition(b"\n")
    text, rest = rest[: int(head)], rest[int(head) :]
    other = text.replace(ascii(MAGIC_NUMBER).encode(), ascii(b"another").encode())
    assert other != text
    own, _errors = answered(data)
    assert own.startswith("thunderhead-reply ")
    assert answered(b"%d\n%b%b" % (len(other), other, rest)) == (own, "")


def test_one_that_compiles_itself_never_looks_at_the_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which another Python could not read."""
    real = program.packed
    monkeypatch.setattr(program, "packed", lambda names: (b"not to be read", real(names)[1]))
    monkeypatch.setattr(program, "MAGIC_NUMBER", b"another")
    program._program_once.cache_clear()
    try:
        output, errors = answered(frame("inspect", ascii({**REQUEST, "directory": "/elsewhere"})))
    finally:
        program._program_once.cache_clear()
        frame.cache_clear()
    assert (output[:18], errors) == ("thunderhead-reply ", "")


def test_a_start_waits_for_no_import_that_takes_long(node: LocalNode, tmp_path: Path) -> None:
    imported: set[str] = set()

    class Watched(Connection):
        def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
            returned, output, errors = super().exec_command(command.replace(" -I ", " -X importtime -I "), in_data)
            imported.update(re.findall(r"\| +(\S+)$", errors.decode(), re.MULTILINE))
            return returned, output, b""

    node.connection = Watched()
    node.prepare(code(tmp_path / "code", ""))
    assert "fcntl" in imported, "what is imported was not seen"
    assert not imported & {"collections", "contextlib", "functools", "json", "re", "signal", "socket", "subprocess"}


@pytest.mark.parametrize("compiled", [True, False])
def test_a_defect_is_shown_with_its_module(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(program, "MAGIC_NUMBER", b"another")
    program._program_once.cache_clear()
    try:
        _output, errors = answered(frame("inspect", "{'op': 'inspect'}"))
    finally:
        program._program_once.cache_clear()
        frame.cache_clear()
    assert re.search(r'inspecting(\.py)?", line \d+, in inspect', errors), errors
    assert errors.endswith("KeyError: 'user'\n")


def test_nodes_that_are_asked_at_once_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = program.packed
    monkeypatch.setattr(program, "packed", lambda names: calls.append(names) or real(names))
    program._program_once.cache_clear()
    with ThreadPoolExecutor(16) as pool:
        frames = list(pool.map(lambda number: frame("prepare", f"{{'op': 'prepare', 'n': {number}}}"), range(16)))
    assert len(set(frames)) == 16
    assert len(calls) == 1
