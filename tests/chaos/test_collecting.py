# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What jobs leave: brought home, run again, cleared away."""

import re
from pathlib import Path

import pytest
from machines import JOBS, Cluster
from measuring import Timeline


def artifacts(cluster: Cluster, job: str) -> dict[str, int]:
    """Return what was brought home, path to bytes."""
    folder = cluster.runs / job / "artifacts"
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def results(cluster: Cluster, job: str) -> list[bytes]:
    """Return the contents of all results, by rank."""
    return [path.read_bytes() for path in sorted((cluster.runs / job / "artifacts").rglob("result-*"))]


@pytest.mark.parametrize(("collect", "ranks"), [("head", [0]), ("all", [0, 1, 2]), ("none", [])])
def test_whose_artifacts_are_collected(cluster: Cluster, collect: str, ranks: list[int]) -> None:
    run = cluster.run("writes.py", "-e", f"collect={collect}")
    assert run.wait() == 0, run.text
    assert results(cluster, run.job) == [str(rank).encode() * 1_000_000 for rank in ranks]


def test_a_disk_that_fills_up(cluster: Cluster, timeline: Timeline) -> None:
    for node in cluster.nodes:
        node.small_disk("/opt/small", 40)
    run = cluster.run("writes.py", "-e", "script_args=1", "-e", "cluster_dir=/opt/small", "-e", "collect=all")
    assert run.wait() == 0, run.text
    job = run.job
    assert b"".join(results(cluster, job)) == b"0" * 1_000_000 + b"1" * 1_000_000 + b"2" * 1_000_000
    assert next(size for name, size in artifacts(cluster, job).items() if name.endswith("all-there-is")) > 20_000_000
    assert cluster.record(job)["state"] == "succeeded"
    assert cluster.log(job, cluster.nodes[1]) == "fills the disk\n"
    timeline.note("a node's disk is full when the job ends", "state, log and artifacts are complete")
    refused = cluster.run("succeeds.py", "-e", "cluster_dir=/opt/small")
    assert refused.wait() == 2
    assert "node1 has too little disk space in /opt/small" in refused.words


def test_rerun(cluster: Cluster, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "train.py").write_text("import sys\nprint('first', *sys.argv[1:])\n")
    where = ["-e", f"project_dir={project}"]
    first = cluster.playbook("run.yml", *where, "-e", "script=train.py", "-e", "script_args=\"'two words'\"")
    assert first.wait() == 0, first.text
    (project / "train.py").write_text("raise SystemExit('edited meanwhile')\n")
    again = cluster.playbook("run.yml", "-e", f"rerun={first.job}")
    assert again.wait() == 0, again.text
    assert again.job != first.job
    assert again.printed(0) == first.printed(0) == ["first two words"]


def test_old_jobs_are_cleared_away(cluster: Cluster) -> None:
    jobs = []
    for _number in range(3):
        run = cluster.run("succeeds.py")
        assert run.wait() == 0, run.text
        jobs.append(run.job)
    kept = cluster.run("succeeds.py", "-e", "keep=2")
    assert kept.wait() == 0, kept.text
    for node in cluster.nodes:
        there = [name for name in node.jobs() if re.match(r"\d{8}-", name)]
        assert there == [jobs[2], kept.job]
    running = cluster.run("count.py", "-e", "script_args=100000", "-e", "detach=true")
    assert running.wait() == 0, running.text
    cleaned = cluster.playbook("clean.yml", "-e", "keep=0")
    assert cleaned.wait() == 0, cleaned.text
    for node in cluster.nodes:
        assert [name for name in node.jobs() if re.match(r"\d{8}-", name)] == [running.job]
        assert node.scripts(running.job, "count.py"), "a running job is left alone"
        assert len(node.execute("ls", f"{JOBS}/../bundles").split()) == 1
