import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins import module_utils
from ansible_collections.thunderhead.cluster.plugins.module_utils import agent
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import program
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.program import (
    LOADER,
    answering,
    frame,
    needed,
    packed,
)
from local_nodes import PYTHON, Connection, LocalNode, code, gang_of

REQUEST = ascii({"op": "inspect", "directory": "/nowhere", "user": "", "address": "127.0.0.1", "master_port": None})
OPERATIONS = sorted(
    name
    for path in Path(agent.__path__[0]).glob("*.py")
    for name in re.findall(r"^@operation\ndef (\w+)\(", path.read_text(), re.MULTILINE)
)
SLOW = {"collections", "contextlib", "functools", "hashlib", "json", "re", "signal", "socket", "subprocess"}
"""Modules that take milliseconds to import, or bring along what does."""


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Nothing is packed yet, and nothing that a test has packed stays."""
    program._program_once.cache_clear()
    frame.cache_clear()
    yield
    program._program_once.cache_clear()
    frame.cache_clear()


def answered(data: bytes) -> tuple[str, str]:
    """Return what an agent that is given this says, and its errors."""
    result = subprocess.run([PYTHON, "-I", "-S", "-c", LOADER], input=data, capture_output=True)
    return result.stdout.decode(), result.stderr.decode()


def names(op: str) -> set[str]:
    return {name.rpartition(".")[2] for name in needed(answering(op))}


@pytest.mark.parametrize("payload", [b"", b"\0\xff\n" * 1000])
def test_frame(payload: bytes) -> None:
    head, _newline, rest = frame("stop", "{'op': 'stop'}", payload).partition(b"\n")
    assert rest[: int(head)].endswith(b"\nanswer({'op': 'stop'})\n")
    assert rest[int(head) :] == b"".join(packed(needed(answering("stop")))) + payload


def test_a_request_is_sent_the_modules_that_it_needs_and_no_others() -> None:
    assert names("inspect") == {
        "directory",
        "firewalls",
        "inspecting",
        "jobs",
        "limits",
        "node",
        "processes",
        "protocol",
    }
    assert names("follow") == {"protocol", "limits", "node", "jobs", "records", "following"}
    assert "watching" in names("prepare"), "what a function imports is needed too"
    assert "collecting" not in names("prepare")
    assert {"node", "opening", "ufw", "firewalls"} <= names("firewall_info"), "other packages' modules are sent, too"


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("magic", [MAGIC_NUMBER, b"another"])
def test_every_operation_finds_its_modules(op: str, magic: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the controller sends them, to an interpreter like its own and to another."""
    monkeypatch.setattr(program, "MAGIC_NUMBER", magic)
    output, errors = answered(frame(op, "{'op': 'one that there is not'}"))
    assert "KeyError in protocol" in output and "'one that there is not'" in output
    assert errors == ""


def test_another_python_never_looks_at_the_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "packed", lambda names: (b"not to be read", packed(names)[1]))
    monkeypatch.setattr(program, "MAGIC_NUMBER", b"another")
    output, errors = answered(frame("inspect", REQUEST))
    assert (output[:18], errors) == ("thunderhead-reply ", "")


@pytest.mark.parametrize("kept", [100, 1000, 20_000, -1])
def test_half_a_request_is_none(kept: int) -> None:
    whole = frame("inspect", REQUEST)
    assert answered(whole)[0].startswith("thunderhead-reply ")
    assert answered(whole[:kept])[0] == ""


def test_a_defect_is_shown_with_its_place() -> None:
    output, errors = answered(frame("inspect", "{'op': 'inspect'}"))
    assert re.search(r"failed at inspect: KeyError in inspecting, line \d+: 'user'", output), output
    assert errors == ""


def test_a_defect_is_shown_with_its_place_by_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MAGIC_NUMBER", b"another")
    output, errors = answered(frame("inspect", "{'op': 'inspect'}"))
    assert re.search(r"failed at inspect: KeyError in inspecting, line \d+: 'user'", output), output
    assert errors == ""


def test_nodes_that_are_asked_at_once_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(program, "packed", lambda names: calls.append(names) or packed(names))
    with ThreadPoolExecutor(16) as pool:
        frames = list(pool.map(lambda number: frame("prepare", f"{{'op': 'prepare', 'n': {number}}}"), range(16)))
    assert len(set(frames)) == 16
    assert len(calls) == 1


class Watched(Connection):
    """Keeps what Python says of the imports of an agent that prepares a job."""

    imports = ""

    def exec_command(self, command: str, in_data: bytes) -> tuple[int, bytes, bytes]:
        returned, output, errors = super().exec_command(command.replace(" -I ", " -X importtime -I "), in_data)
        if b"\nanswer({'op': 'prepare'" in in_data:
            self.imports = errors.decode()
        return returned, output, errors


def test_a_start_waits_for_no_import_that_takes_long(nodes: list[LocalNode], tmp_path: Path) -> None:
    for node in nodes:
        node.connection = Watched()
    launch = gang_of(nodes, code(tmp_path / "code", "print('the script')"))
    launch.prepare()
    launch.start()
    for node in nodes:
        # The supervisor's imports are in the job's log, and the script says when it began.
        before, mark, after = node.wait()[1].partition("the script\n")
        seen = {*re.findall(r"\| +(\S+)$", node.connection.imports + before, re.MULTILINE)}
        assert mark, before
        assert {"fcntl", "ctypes"} <= seen, "what is imported was not seen"
        assert "json" in after, "what the supervisor imports was not seen"
        assert not seen & SLOW, node.host


@pytest.mark.parametrize(
    "line",
    [
        "import ufw, iptables as other",
        "import ufw, iptables  # both",
        "import (\n    iptables,\n    ufw as other,\n)\n",
    ],
)
def test_modules_of_a_package_are_found_however_they_are_imported(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"{module_utils.__name__}.firewall"
    monkeypatch.setattr(program, "_text", lambda name: f"from {package} {line}\n" if name == "one" else "")
    assert {*needed("one")} == {"one", f"{package}.ufw", f"{package}.iptables"}
