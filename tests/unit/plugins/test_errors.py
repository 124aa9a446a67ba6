# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import join_errors


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        (["node1 is down"], "node1 is down. Nothing was started."),
        (["node1 is down", "node2 is full"], "node1 is down\nnode2 is full\nNothing was started."),
    ],
)
def test_in_one(sentences: list[str], expected: str) -> None:
    assert str(join_errors((Exception(sentence) for sentence in sentences), "Nothing was started.")) == expected
