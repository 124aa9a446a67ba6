# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import try_environment
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import last_line
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.operations import try_program
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import job_code
from local_nodes import LocalNode

FORBIDDEN = (
    "cannot run programs as trainer: it may not become that account; allow it there (in a container: CAP_SETUID and "
    "CAP_SETGID), or set job_user in the inventory to another"
)


@pytest.fixture
def request_of_another(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A request on behalf of an account that the agent cannot become."""

    def become() -> None:
        raise PermissionError(1, "Operation not permitted")

    user = SimpleNamespace(name="trainer", home="/", become=become)
    for module in (try_program, try_environment):
        monkeypatch.setattr(module, "User", lambda _name: user)
    more = {"variables": {}, "imports": job_code.trial(None), "arguments": {}, "listen": None, "seconds": 10}
    return node.request("try_program", **more)


def test_an_account_that_cannot_be_become(request_of_another: dict[str, Any]) -> None:
    assert try_environment.try_environment(request_of_another, b"") == {"problem": FORBIDDEN}
    with pytest.raises(Refusal) as caught:
        try_program.try_program(request_of_another, b"def main(arguments): pass")
    assert str(caught.value) == FORBIDDEN


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), (" \n\n", ""), ("one\n two \n \n", "two"), ("x" * 1000, "x" * 1000)],
)
def test_last_line(text: str, expected: str) -> None:
    assert last_line(text) == expected
