# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import json
import re

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output import draw_table
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight import report
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.preflight.check import Verdict
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.text import (
    all_nodes,
    describe_hosts,
    hosts_by_value,
)

VERDICTS = [
    Verdict("inventory.group", "ok", "2 of 2 hosts take part"),
    Verdict("names.hostname", "warning", "node1 resolves its own name to 127.0.1.1; take it off that line"),
    Verdict("time.clocks", "failed", "node1 \x1b[31mhas a clock", {"seconds_apart": {"node1": 3600.0}}),
]


def test_the_table_of_a_file() -> None:
    assert report.as_table(VERDICTS, 4.21, None).splitlines() == [
        "CHECK            STATUS   FOUND",
        "inventory.group  ok       2 of 2 hosts take part",
        "names.hostname   warning  node1 resolves its own name to 127.0.1.1; take it off that line",
        r"time.clocks      failed   node1 \x1b[31mhas a clock",
        "3 checks in 4.2 s: 1 ok, 1 warning, 1 failed",
    ]


def test_the_table_of_a_terminal() -> None:
    assert report.as_table(VERDICTS[1:2], 1, 60).splitlines() == [
        "CHECK           STATUS   FOUND",
        "names.hostname  warning  node1 resolves its own name to",
        "                         127.0.1.1; take it off that line",
        "1 check in 1.0 s: 1 warning",
    ]


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_table, "ANSIBLE_COLOR", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = report.as_table(VERDICTS, 1, 100).splitlines()
    assert [re.findall(r"\x1b\[(\d+)m(\w+)", row) for row in rows[1:4]] == [
        [("32", "ok")],
        [("33", "warning")],
        [("31", "failed")],
    ]
    assert "\x1b" not in report.as_table(VERDICTS, 1, None)


def test_for_machines() -> None:
    data = json.loads(json.dumps(report.as_data(VERDICTS, 4.2134)))
    assert (data["ok"], data["seconds"]) == (False, 4.21)
    assert data["checks"][2] == {
        "check": "time.clocks",
        "status": "failed",
        "sentence": r"node1 \x1b[31mhas a clock",
        "data": {"seconds_apart": {"node1": 3600.0}},
    }
    assert report.failed(VERDICTS) == ["time.clocks"]


def test_sentences_about_many_nodes_are_short() -> None:
    hosts = {f"node{number}": "lacks X" for number in range(300)}
    assert describe_hosts(hosts) == "each of node0, node1, node2, node3, node4 and 295 more lacks X"
    assert describe_hosts({f"node{number}": f"has {number}" for number in range(300)}) == (
        "node0 has 0; node1 has 1; node2 has 2; node3 has 3; and so on for 296 more"
    )
    assert hosts_by_value({"a": "2.12", "b": "2.13", "c": "2.13"}) == "2.13 (b, c), 2.12 (a)"
    assert [all_nodes(["a"]), all_nodes(["a", "b"]), all_nodes(["a", "b", "c"])] == [
        "the node",
        "both nodes",
        "all 3 nodes",
    ]
