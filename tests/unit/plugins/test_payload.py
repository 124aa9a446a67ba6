# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins import module_utils
from ansible_collections.thunderhead.cluster.plugins.module_utils import _agent as _agent
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport import payload
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.payload import (
    LOADER,
    frame,
    modules,
    needed,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.reply_schemas import REPLIES
from local_nodes import PYTHON
from requests_on_the_wire import request_in, taken_apart

REQUEST = {"op": "setup_facts", "directory": "/nowhere", "user": "", "address": "127.0.0.1", "master_port": None}


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Nothing is packed yet, and nothing that a test has packed stays."""
    for cache in (payload._modules_once, payload._frame, payload._text):
        cache.cache_clear()
    yield
    for cache in (payload._modules_once, payload._frame, payload._text):
        cache.cache_clear()


def answered(data: bytes) -> tuple[str, str]:
    """Return what an agent that is given this says, and its errors."""
    result = subprocess.run([PYTHON, "-I", "-S", "-c", LOADER], input=data, capture_output=True)
    return result.stdout.decode(), result.stderr.decode()


def names(operation: str) -> set[str]:
    sent = json.loads(zlib.decompress(modules(operation)))
    return {name.removeprefix(f"{module_utils.__name__}.") for name in sent}


@pytest.mark.parametrize("more", [b"", b"\0\xff\n" * 1000])
def test_frame(more: bytes) -> None:
    data = frame({"op": "stop", "name": "\udcff"}, more)
    assert request_in(data) == {"op": "stop", "name": "\udcff"}
    assert taken_apart(data)[1] == modules("stop") and data.endswith(more)


def test_a_request_is_sent_the_modules_that_it_needs_and_no_others() -> None:
    base = ("answer", "errors", "files", "job_paths", "job_user", "node_lock", "read_gang_state", "read_job_state")
    base += ("systemd",)
    follow = {"_agent.contract", "_agent.operations.follow", *(f"_agent.base.{name}" for name in base)}
    assert names("follow") == follow
    assert "_agent.supervisor.gang_sockets" in names("prepare"), "what a function imports is needed too"
    assert "_agent.operations.list_artifacts" not in names("prepare")
    assert {"_firewall.find_firewall", "_firewall.ufw", "_agent.base.active_firewalls"} <= names("firewall_info")


@pytest.mark.parametrize("operation", sorted(REPLIES))
def test_every_operation_finds_its_modules(operation: str) -> None:
    output, errors = answered(frame({"op": operation}))
    assert re.search(r"failed at \w+: (KeyError|TypeError) in \w+, line \d+|\"ok\": true", output), output
    assert errors == ""


@pytest.mark.parametrize("kept", [100, 1000, 4000, -1])
def test_half_a_request_is_none(kept: int) -> None:
    whole = frame(REQUEST)
    assert answered(whole)[0].startswith("thunderhead-reply ")
    assert answered(whole[:kept])[0] == ""


def test_a_defect_is_shown_with_its_place() -> None:
    output, errors = answered(frame({"op": "setup_facts"}))
    assert re.search(r"failed at setup_facts: KeyError in setup_facts, line \d+: 'user'", output), output
    assert errors == ""


def test_nodes_that_are_asked_at_once_share_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(payload, "needed", lambda name: calls.append(name) or needed(name))
    with ThreadPoolExecutor(16) as pool:
        frames = list(pool.map(lambda number: frame({"op": "prepare", "n": number}), range(16)))
    assert len(set(frames)) == 16
    assert calls == [f"{_agent.__name__}.base.answer", f"{_agent.__name__}.operations.prepare"]


@pytest.mark.parametrize(
    "line",
    [
        "import ufw, iptables as other",
        "import ufw, iptables  # both",
        "import (\n    iptables,\n    ufw as other,\n)\n",
    ],
)
def test_modules_of_a_package_are_found_however_they_are_imported(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"{module_utils.__name__}._firewall"
    monkeypatch.setattr(payload, "_text", lambda name: f"from {package} {line}\n" if name == "one" else "")
    assert {*needed("one")} == {"one", f"{package}.ufw", f"{package}.iptables"}
