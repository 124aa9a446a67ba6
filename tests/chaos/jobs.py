# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several tests do with jobs."""

import re

from machines import JOBS, Cluster, Node
from playbook import Playbook

END_SECONDS = 5
"""The most between a rank's death and the end of run.yml, besides the grace; a supervisor says good-bye as long."""
ALIKE_SECONDS = 1.0
"""So much may lie between the ends of a job that somebody follows and of one that nobody does."""


def counting(cluster: Cluster, *arguments: str, lines: int = 1_000_000, terminal: bool = False) -> Playbook:
    """Return a job that prints numbered lines on every rank, and has begun to on each."""
    run = cluster.run("count.py", "-e", f"script_args={lines}", "-e", "logs=all", *arguments, terminal=terminal)
    await_lines(run, cluster, "line 20$")
    return run


def await_lines(run: Playbook, cluster: Cluster, pattern: str, seconds: float = 30) -> None:
    """Return when every rank has printed a line that begins with the pattern."""
    for rank, node in enumerate(cluster.nodes):
        run.await_line(rf"^\[{rank} {node.name}\] +{pattern}", seconds)


def detached(cluster: Cluster, script: str, *arguments: str, ready: str) -> str:
    """Return the id of a job that nobody follows, once every rank has printed the line `ready`."""
    run = cluster.run(script, "-e", "detach=true", *arguments)
    assert run.wait() == 0, run.text
    job = run.job
    cluster.everywhere(lambda node: node.await_log(job, ready))
    return job


def numbers(lines: list[str]) -> list[int]:
    """Return the numbers of the lines that count.py prints."""
    odd = [line for line in lines if not re.fullmatch(r"line \d+", line)]
    assert not odd, odd
    return [int(line.split()[1]) for line in lines]


def assert_contiguous(lines: list[str], start: int = 0) -> None:
    """Fail if of the lines that count.py prints one is missing, or there twice."""
    found = numbers(lines)
    wrong = [at for at, number in enumerate(found, start) if number != at]
    assert not wrong, f"from {wrong[0]} on: {found[wrong[0] - start :][:10]}"


def assert_log_whole(cluster: Cluster, job: str, node: Node, lines: int | None = None) -> None:
    """Fail if the controller's log of a rank is not the node's, or not what count.py prints."""
    log = cluster.log(job, node)
    assert log == node.execute("cat", f"{JOBS}/{job}/log")
    assert_contiguous(log.splitlines())
    assert lines is None or log.count("\n") == lines
