# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all that reads text or JSON of others: it returns what was meant, or refuses with an error of its own.

``make fuzz`` tries the same with any bytes; see ``tests/fuzz/targets.py``.
"""

import contextlib
import io
import json
import pickle
import shlex
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.environment_file import environment_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.lightning_checkpoint import (
    Unfit,
    find_step,
    open_archive,
    step_in,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_gang_state import valid_gang_state
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.read_job_state import valid_fields
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import ACTING, escape, printable
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import STATE, fit_to_limits
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
    NodeActivity,
    RankActivity,
    read_activity,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    read_connections,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.inspector_tasks import (
    CONNECT,
    LOOK,
    read_task,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.job_plan import Member, read_members
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.supervisor.start_script import expand_variables
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.environment_variables import (
    NEVER,
    OURS,
    as_environment,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.controller.extra_vars import require_meant
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.line_reader import LineReader
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import nvidia_smi
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project import missing_files
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_requirements import (
    pinned_by,
    read,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirement_lines import (
    BOMS,
    decoded,
    logical_lines,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import (
    REPLIES,
    find_flaw,
    parse,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.ssh_errors import (
    explain_ssh_failure,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lying_nodes import honest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For tests that write a file anew for each example."""


def likely(*words: str) -> st.SearchStrategy[str]:
    """Return text in which words that mean something are often between others."""
    piece = st.sampled_from(words) | st.text(max_size=5)
    return st.lists(piece, max_size=12).map("".join)


@st.composite
def spoiled(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    """Draw a value as JSON brings it; in about half of them, one part is replaced, whatever its depth."""
    value = json.loads(json.dumps(draw(values)))
    if draw(st.booleans()):
        return value
    top = [value]
    within: Any = top
    place: Any = 0
    while isinstance(within[place], (list, dict)) and within[place] and draw(st.integers(0, 3)):
        within = within[place]
        place = draw(st.sampled_from(sorted(within) if isinstance(within, dict) else range(len(within))))
    within[place] = draw(JSON)
    return top[0]


def take_some(values: st.SearchStrategy[Any], takes: Callable[[Any], bool]) -> None:
    """Call ``takes`` with many values; fail unless it says of some that they were taken, and of others that not."""
    answers = set()

    @given(values)
    def once(value: Any) -> None:
        answers.add(takes(value))

    once()
    assert answers == {True, False}


# ------------------------------------------------------------------------------------------------------- on the nodes


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_a_shell_reads_what_was_written_for_it(variables: dict[str, str]) -> None:
    assert shlex.split(environment_text(variables)) == [f"{name}={value}" for name, value in variables.items()]


@given(st.binary(max_size=30), st.dictionaries(NAMES.map(str.encode), st.binary(max_size=5)))
def test_a_dollar_that_is_doubled_stands_for_itself(argument: bytes, variables: dict[bytes, bytes]) -> None:
    assert expand_variables(argument.replace(b"$", b"$$"), variables) == argument


@given(NAMES.map(str.encode), st.binary(max_size=5), st.binary(max_size=5), st.binary(max_size=5))
def test_a_variable_is_replaced_once(name: bytes, value: bytes, before: bytes, after: bytes) -> None:
    assume(b"$" not in before + after)
    assert expand_variables(before + b"${" + name + b"}" + after, {name: value}) == before + value + after


@given(st.binary(max_size=200))
def test_a_line_for_a_terminal_acts_on_none(line: bytes) -> None:
    text = printable(line)
    assert not ACTING.search(text)
    assert printable(text.encode()) == text or "\r" in text


@given(st.text())
def test_an_escaped_name_is_one_printable_line(name: str) -> None:
    assert escape(name).isprintable()
    assert not name.isprintable() or escape(name) == name


MEMBERS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.integers(0, 2**16 - 1)), min_size=1)


@given(MEMBERS)
def test_members_are_read_as_they_were_sent(members: list[tuple[str, str, int]]) -> None:
    sent = json.loads(json.dumps(members))
    assert read_members(sent, len(members)) == [Member(*one) for one in members]
    assert read_members(sent, len(members) + 1) is None


def test_whatever_comes_in_place_of_members() -> None:
    def takes(value: Any) -> bool:
        members = read_members(value, 2)
        assert members is None or [list(one) for one in members] == value
        return members is not None

    member = st.tuples(st.text(max_size=8), st.text(max_size=8), st.integers(0, 2**16 - 1))
    take_some(spoiled(st.tuples(member, member)), takes)


def test_a_task_that_is_read_is_one_that_a_head_gives() -> None:
    def takes(value: Any) -> bool:
        task = read_task(value, 3)
        if task is None:
            return False
        assert read_task(task, 3) == task
        assert task["task"] in (LOOK, CONNECT) and task.keys() <= {"task", "number", "seconds", "ports", "master"}
        assert 0 <= task["seconds"] <= 10
        return True

    fields = {"number": st.integers(0, 99), "seconds": st.floats(-1, 99), "master": st.booleans(), "path": st.text()}
    ports = st.dictionaries(st.sampled_from(["0", "1", "2"]), st.integers(1024, 2**16 - 1))
    take_some(
        spoiled(st.fixed_dictionaries({"task": st.sampled_from([LOOK, CONNECT]), "ports": ports, **fields})), takes
    )


RANK = st.builds(RankActivity, st.integers(0, 7), *[st.text(max_size=8)] * (len(RankActivity._fields) - 1))
ACTIVITY = st.builds(
    NodeActivity,
    st.lists(RANK, max_size=2),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=2),
    *[st.booleans()] * 3,
    st.text(max_size=8),
    st.integers(0, 2**16 - 1),
)


def test_whatever_an_inspector_is_said_to_have_found() -> None:
    def takes(value: Any) -> bool:
        activity = read_activity(value)
        assert activity is None or read_activity(json.loads(json.dumps(activity))) == activity
        return activity is not None

    take_some(spoiled(ACTIVITY), takes)


def test_whatever_a_node_is_said_to_reach() -> None:
    def takes(value: Any) -> bool:
        found = read_connections(value, ["node0", "node1"])
        assert found is None or found[0].keys() <= {"node0", "node1"}
        return found is not None

    failed = st.dictionaries(st.sampled_from(["node0", "node1", "node9"]), st.text(max_size=8))
    take_some(spoiled(st.fixed_dictionaries({"failed": failed, "master": st.none() | st.text(max_size=8)})), takes)


def test_a_gang_s_state_that_is_believed_can_be_passed_on() -> None:
    def takes(value: Any) -> bool:
        gang = valid_gang_state(value) if isinstance(value, dict) else None
        if gang is None:
            return False
        reply = {"ok": True, "state": "running", "more": False, "offset": 0, "gang": fit_to_limits(gang)}
        request = {"op": "follow", "offset": 0, "max_bytes": 100}
        assert find_flaw(request, json.loads(json.dumps(reply)), b"") is None
        return True

    flag = st.none() | st.booleans()
    rank = st.fixed_dictionaries({"state": st.sampled_from(["running", "failed", "unknown"]), "met": flag})
    notice = st.tuples(st.floats(0, 2e9), st.text(min_size=1, max_size=8).map("a{}".format))
    roster = st.lists(st.integers(0, 3), max_size=3)
    seconds = {f"{name}seconds": st.floats(0, 1e6) for name in ("", "repeated_", "down_")}
    words = {"cause": st.text(max_size=8), "checkpoint": st.text(max_size=8)}
    ended = st.fixed_dictionaries({"attempt": st.integers(1, 9), "roster": roster, **words, **seconds})
    state = {
        "ranks": st.lists(rank),
        "roster": roster,
        "ended_attempts": st.just([]) | st.lists(ended, max_size=2),
        "ending": st.booleans(),
        "notices": st.lists(notice),
        "unreached": st.none(),
    }
    take_some(spoiled(st.fixed_dictionaries(state)), takes)


def test_of_a_job_s_files_only_what_has_its_kind_is_believed() -> None:
    def takes(value: Any) -> bool:
        known = valid_fields(value, STATE) if isinstance(value, dict) else None
        assert known is None or all(STATE[name](known[name]) for name in known)
        return bool(known)

    about = {
        "state": st.sampled_from(["running", "failed"]),
        "started": st.floats(0, 2e9),
        "pid": st.integers(1, 2**22),
    }
    flag = st.none() | st.booleans()
    take_some(spoiled(st.fixed_dictionaries(about, optional={"because": st.text(), "met": flag})), takes)


@given(
    st.integers(0, 2**63 - 1),
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "global_step"), SCALARS, max_size=5),
    st.integers(2, pickle.HIGHEST_PROTOCOL),
)
def test_a_checkpoint_s_step_is_found_in_any_protocol(step: int, about: dict[str, Any], protocol: int) -> None:
    assume("global_step" not in about.values())
    assert step_in(pickle.dumps({**about, "global_step": step, "loops": about}, protocol=protocol)) == step


@given(st.integers(0, 10**6), st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_checkpoint_that_is_cut_or_changed_is_refused_or_whole(step: int, at: int, other: bytes) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"global_step": step}, protocol=2))
    whole = written.getvalue()
    assert step_of(whole) == step
    for data in (whole[:at], whole[:at] + other + whole[at + len(other) :]):
        with contextlib.suppress(Unfit):
            assert step_of(data) == step


def step_of(data: bytes) -> int:
    """Return the step of a checkpoint that holds these bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return find_step(open_archive(file))


# --------------------------------------------------------------------------------------------------- on the controller


@pytest.mark.parametrize("operation", sorted(REPLIES))
def test_whatever_a_node_replies(operation: str) -> None:
    known = {"imports": {}, "address": None, "after": "", "most": 1, "offset": 0, "max_bytes": 1000}
    request = {"op": operation, "parts": [("result", 0, 8)], **known}
    reply, payload = honest(request)

    def takes(value: Any) -> bool:
        flaw = find_flaw(request, parse(json.dumps(value).encode()), payload)
        assert flaw is None or flaw
        return flaw is None

    take_some(spoiled(st.just({"ok": True, **reply})), takes)


@given(JSON)
def test_what_fits_the_limits_stays(value: Any) -> None:
    once = fit_to_limits(value)
    assert json.dumps(fit_to_limits(once)) == json.dumps(once)


LINES = st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), max_size=20), max_size=6)


@given(LINES, st.integers(1, 9))
def test_lines_are_the_same_however_they_arrive(lines: list[str], size: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    reader = LineReader(lambda: 0.0)
    shown = [line for at in range(0, len(data), size) for line in reader.feed(data[at : at + size])]
    assert [*shown, *reader.finish()] == lines


@given(st.dictionaries(NAMES, VALUES | st.integers() | st.booleans(), max_size=4))
def test_an_environment_in_json_is_the_mapping(given_: dict[str, Any]) -> None:
    assume(not any(name in OURS or NEVER.match(name) for name in given_))
    assert as_environment(json.dumps(given_), "env") == as_environment(given_, "env")


@given(st.text(max_size=40) | JSON)
def test_whatever_is_given_as_an_environment(value: Any) -> None:
    with contextlib.suppress(JobError):
        found = as_environment(value, "env")
        assert all(isinstance(one, str) and "\0" not in one for one in found.values())


@given(st.dictionaries(likely("script", "_", "args", "job", "epochs"), JSON, max_size=4))
def test_whatever_is_given_with_e(given_: dict[str, Any]) -> None:
    with contextlib.suppress(JobError):
        require_meant(given_, {"script", "script_args", "job"}, {"others"})


@given(likely("0", "NVIDIA H200", ",", " ", "\n", "[N/A]", "Active", "1e400", "nan"))
def test_whatever_nvidia_smi_prints(text: str) -> None:
    fields = ["index", "name", "driver_version", "memory.total", "memory.used", "clocks_event_reasons.sw_power_cap"]
    for gpu in nvidia_smi.parse({"fields": fields, "csv": text}):
        nvidia_smi.as_version(gpu.driver)
        nvidia_smi.oldest_driver(gpu.driver)


@given(
    likely("ssh: connect to host a port 22: ", "Permission denied (publickey).", "\n", "kex_exchange: closed", "\x1b")
)
def test_whatever_ssh_says(text: str) -> None:
    phrase, facts = explain_ssh_failure(text, "198.18.0.1")
    assert phrase and "\n" not in phrase and facts.keys() <= {"unsent", "closed_before_login"}


@given(
    likely("No module named '", "'", "a.b", "No such file or directory: '", "..", "/", "cannot import name 'x' from ")
)
@SAME_FOLDER
def test_whatever_a_rank_said_last(tmp_path: Path, reason: str) -> None:
    about = {"project_dir": str(tmp_path), "bundle": {"sha256": "none"}, "script": "train.py"}
    assert isinstance(missing_files.of_job(reason, about, tmp_path), str)
    missing_files.explained(reason, tmp_path, ["train.py"], "train.py")


@given(LINES)
@SAME_FOLDER
def test_a_requirements_file_in_any_encoding_is_the_same(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "requirements.txt"
    for mark, encoding in BOMS:
        path.write_bytes(mark + "\n".join(lines).encode(encoding))
        assert decoded(path) == "\n".join(lines)


@given(st.text(max_size=200))
def test_the_lines_of_a_requirements_file_stand_where_they_are_said_to(text: str) -> None:
    numbers = [line.number for line in logical_lines(Path("requirements.txt"), text, False)]
    assert numbers == sorted(numbers) and all(1 <= one <= len(text.splitlines()) for one in numbers)


REQUIREMENTS = likely(
    *(
        "torch",
        "==",
        "2.13.0",
        "\n",
        " ",
        "\\\n",
        "#",
        "-r ",
        "-e ",
        "-c ",
        "--hash=sha256:",
        "--index-url ",
        ".",
        "./",
    ),
    *(" ; python_version > '3'", "git+https://", "file:", "[extra]", " @ ", "'", '"', "${NAME}", "a", "*", "/", "\0"),
)


@given(REQUIREMENTS)
@SAME_FOLDER
def test_whatever_a_requirements_file_holds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(JobError):
        found = read(path)
        assert all(isinstance(line, str) for line in found.lines)


TOML = likely(
    *("[project]\n", "[tool.uv]\n", "[[packages]]\n", "[tool.uv.sources]\n", "[dependency-groups]\n", "\n"),
    *(
        "name = 'a'\n",
        "version = '1'\n",
        "dependencies = ['torch']\n",
        "dynamic = ['version']\n",
        "requires-python = 3\n",
    ),
    *("sources = {a = {path = 'b'}}\n", "a = {workspace = true}\n", "workspace = true\n", "index-url = 'https://a'\n"),
    *("= 1\n", "project = 1\n"),
)


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock", "pylock.toml"])
@given(text=TOML)
@SAME_FOLDER
def test_whatever_a_project_s_files_hold(tmp_path: Path, name: str, text: str) -> None:
    for one in (name, "pyproject.toml"):
        (tmp_path / one).write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(JobError):
        read(tmp_path / name)


@given(TOML)
def test_whatever_a_lock_holds(text: str) -> None:
    with contextlib.suppress(JobError):
        assert isinstance(pinned_by(Path("pylock.toml"), text), str)
