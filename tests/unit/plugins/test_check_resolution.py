# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node that resolves may answer: it decides what is installed, and nothing on the controller."""

import base64
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.check_resolution import (
    checked,
    unmet,
)

TARGET = "3.11-x86_64_manylinux_2_28-cpu"
WHEEL = "mine-1.0-py3-none-any.whl"
LOCK = f"""--only-binary :all:
tiny[extra]==1.0 ; python_version > '3' \\
    --hash=sha256:00aa \\
    --hash=sha256:00bb
far @ https://example.org/far-1.0.tar.gz#subdirectory=x \\
    --hash=sha256:00cc
mine @ file://${{THUNDERHEAD_WHEELS}}/{WHEEL} \\
    --hash=sha256:00dd
"""


def answer(**changes: Any) -> dict[str, Any]:
    resolution = {
        "locks": {TARGET: LOCK},
        "backends": {TARGET: "cpu"},
        "indexes": ["", "https://example.org/simple"],
        "find_links": ["https://example.org/wheels.html"],
        "needs_torch": ["needs"],
        "wheels": [WHEEL],
        "commits": {"git+https://example.org/r.git": "0" * 40},
        "warnings": ["a remark"],
    }
    contents = changes.pop("contents", {WHEEL: base64.b64encode(b"wheel").decode()})
    return {"resolution": {**resolution, **changes}, "contents": contents}


def test_an_honest_answer() -> None:
    resolution, files = checked(answer(), [TARGET])
    assert resolution == answer()["resolution"]
    assert files == {WHEEL: b"wheel"}


@pytest.mark.parametrize(
    "changes",
    [
        {"wheels": ["../../../../.netrc"]},
        {"wheels": ["../../../../.netrc"], "contents": {"../../../../.netrc": ""}},
        {"wheels": [".netrc"], "contents": {".netrc": ""}},
        {"wheels": []},
        {"wheels": [7]},
        {"wheels": {"a": "b"}},
        {"contents": {WHEEL: "no base64 at all"}},
        {"contents": {WHEEL: 7}},
        {"contents": None},
        {"locks": {"../../notes": LOCK}, "backends": {"../../notes": "cpu"}},
        {"locks": {TARGET: LOCK, "../../notes": LOCK}},
        {"locks": {}},
        {"locks": None},
        {"locks": {TARGET: None}},
        {"locks": {TARGET: "--index-url https://evil.example.org/simple\n"}},
        {"locks": {TARGET: "-r /etc/passwd\n"}},
        {"locks": {TARGET: "-e /srv/evil\n"}},
        {"locks": {TARGET: "mine @ file:///srv/evil-1.0-py3-none-any.whl\n"}},
        {"locks": {TARGET: "mine @ file://${THUNDERHEAD_WHEELS}/../evil-1.0-py3-none-any.whl\n"}},
        {"locks": {TARGET: "tiny==1.0\n" * 1_000_000}},
        {"backends": {TARGET: "cpu --index-url=https://evil.example.org"}},
        {"backends": {}},
        {"indexes": ["https://user:token@example.org/simple"]},
        {"indexes": ["--config-file=/srv/evil"]},
        {"indexes": "https://example.org"},
        {"find_links": ["/root/wheels"]},
        {"find_links": ["https://user:token@example.org/wheels"]},
        {"find_links": ["https://example.org/wheels,/root/wheels"]},
        {"needs_torch": ["../x"]},
        {"commits": {"git+https://example.org/r.git": "main"}},
        {"commits": {"../x": "0" * 40}},
        {"commits": {7: "0" * 40}},
        {"warnings": ["x" * 20_000]},
    ],
)
def test_an_answer_that_no_resolution_has(changes: dict[str, Any]) -> None:
    with pytest.raises(Failure, match=r"what the node answers is no resolution: in its \w+ stands .*; find out what"):
        checked(answer(**changes), [TARGET])


@pytest.mark.parametrize("empty", [{}, {"resolution": []}, {"resolution": {}, "contents": {}}])
def test_an_answer_without_a_resolution(empty: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="what the node answers is no resolution"):
        checked(empty, [TARGET])


def test_requirements_that_cannot_be_met() -> None:
    assert unmet({"unmet": [["a==1", "no index has it"], "x", ["b"], 7]}) == [("a==1", "no index has it")]
    assert unmet({"unmet": 7}) == []
