# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight on real machines: nothing is said of healthy ones, and each defect is found by name."""

import json
from typing import Any

import pytest
from defects import DEFECTS
from machines import Cluster

NETWORK_CHECKS = ("reach", "collective")


def preflight(cluster: Cluster, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status and the verdicts by check."""
    playbook = cluster.playbook("preflight.yml", "-e", "format=json", *arguments)
    status = playbook.wait()
    line = playbook.first(r"^\{")
    assert line, playbook.text
    return status, {one["check"]: one for one in json.loads(line.text)["checks"]}


def alarms(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["sentence"] for name, one in found.items() if one["status"] in ("failed", "warning")}


def test_a_healthy_cluster(cluster: Cluster) -> None:
    status, found = preflight(cluster, "-e", "script=train.py")
    assert alarms(found) == {}
    assert status == 0
    for check in ("reach.ephemeral", "reach.mtu", "collective.gloo", "software.imports", "time.clocks"):
        assert found[check]["status"] == "ok"


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect(cluster: Cluster, name: str) -> None:
    defect = DEFECTS[name]
    group = defect.check.partition(".")[0]
    skipped = [] if group in NETWORK_CHECKS else ["-e", f"skip={','.join(NETWORK_CHECKS)}"]
    with defect.plant(cluster):
        status, found = preflight(cluster, *skipped)
    verdict = found[defect.check]
    assert verdict["status"] == defect.status, verdict
    assert [words for words in defect.words if words not in verdict["sentence"]] == [], verdict["sentence"]
    assert alarms(found).keys() - defect.besides == {defect.check}
    assert status == (2 if defect.status == "failed" else 0)
