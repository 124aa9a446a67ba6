# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.text import escape
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import escape_lines


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("Zürich 日本 🚀", "Zürich 日本 🚀", "Zürich 日本 🚀"),
        ("a\x1b[2Jé", "a\\x1b[2Jé", "a\\x1b[2Jé"),
        ("one\ntwo\tthree\r", "one\\ntwo\\tthree\\r", "one\ntwo\tthree\\r"),
        ("\u202egnp\x9b\udc80", "\\u202egnp\\x9b\\udc80", "\\u202egnp\\x9b\\udc80"),
        ("a\xa0b", "a\\xa0b", "a\xa0b"),
    ],
)
def test_foreign_words_on_a_terminal(text: str, name: str, lines: str) -> None:
    assert escape(text) == name
    assert escape_lines(text) == lines
