# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base import text as words
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.job_identity import who
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.node_group import NodeGroup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs import cleanup
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import Unreachable
from left_jobs import gang_on, job_id, leave
from local_nodes import LocalNode, opener
from playing import play


def fill(node: LocalNode, jobs: int) -> None:
    """Leave jobs on a node, each with a bundle of its own."""
    for number in range(jobs):
        (node.directory / "bundles" / (str(number) * 64)).write_bytes(b"code")
        leave(node, job_id(number), {"model": bytes(5000)}, {"bundle": str(number) * 64, "python": "", "user": who()})


def jobs_on(node: LocalNode) -> list[str]:
    return sorted(path.name for path in (node.directory / "jobs").iterdir() if path.is_dir())


def test_every_node_is_cleaned(nodes: list[LocalNode]) -> None:
    fill(nodes[0], 4)
    fill(nodes[1], 1)
    cleaned, errors = cleanup.remove_old_jobs(NodeGroup([node.settings() for node in nodes], opener(nodes)), 2, None)
    assert errors == {}
    assert [cleaned[host]["jobs"] for host in ("node0", "node1")] == [[job_id(1), job_id(0)], []]
    assert [cleaned[host]["bundles"] for host in ("node0", "node1")] == [["0" * 64, "1" * 64], []]
    assert jobs_on(nodes[0]) == [job_id(2), job_id(3)] and jobs_on(nodes[1]) == [job_id(0)]
    assert cleanup.removed_anything(cleaned)


def test_a_negative_number(nodes: list[LocalNode]) -> None:
    with pytest.raises(JobError, match=r"^keep is -1; set it to 0 or more$"):
        cleanup.remove_old_jobs(NodeGroup([node.settings() for node in nodes], opener(nodes)), -1, None)


def test_after_a_job_its_nodes_are_cleaned_and_the_user_is_told(nodes: list[LocalNode]) -> None:
    for node in nodes:
        fill(node, 3)
    gang = gang_on(nodes, job_id(2))
    (note,) = cleanup.keep_newest(gang, 1)
    assert note.startswith("removed 2 jobs, 2 bundles and 0 environments (") and note.endswith(") from 2 nodes")
    assert cleanup.keep_newest(gang, 1) == []
    assert jobs_on(nodes[0]) == jobs_on(nodes[1]) == [job_id(2)]


def test_what_takes_long_is_asked_for_again(nodes: list[LocalNode], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(nodes[0], 3)
    monkeypatch.setattr(cleanup, "GO_SECONDS", -1)
    clean, goes = cleanup.fan_out, []

    def fan_out(asked: Any, ask: Any, seconds: float) -> Any:
        goes.append(list(asked))
        if len(goes) == 2:
            monkeypatch.setattr(cleanup, "GO_SECONDS", 60)
        return clean(asked, ask, seconds)

    monkeypatch.setattr(cleanup, "fan_out", fan_out)
    cleaned, errors = cleanup.remove_old_jobs(NodeGroup([node.settings() for node in nodes], opener(nodes)), 1, None)
    assert (goes, errors) == ([["node0", "node1"], ["node0"]], {})
    assert cleaned["node0"]["jobs"] == [job_id(1), job_id(0)] and cleaned["node0"]["bytes"] > 0
    assert cleaned["node1"] == {"jobs": [], "bundles": [], "envs": [], "bytes": 0, "left": []}
    assert not (nodes[0].directory / "trash").exists()


def test_others_jobs_stay(nodes: list[LocalNode]) -> None:
    fill(nodes[0], 2)
    for number in (7, 8, 9):
        leave(nodes[0], job_id(number), spec={"bundle": "b" * 64, "python": ""})
        Path(f"{nodes[0].job_dir(job_id(number))}.started").write_text("bob@context")
    settings = [nodes[0].settings()]
    assert cleanup.remove_old_jobs(NodeGroup(settings, opener(nodes)), 1, who())[0]["node0"]["jobs"] == [job_id(0)]
    assert cleanup.keep_newest(gang_on(nodes[:1]), 0)[0].startswith("removed 1 job, ")
    assert jobs_on(nodes[0]) == [job_id(number) for number in (7, 8, 9)]
    assert cleanup.remove_old_jobs(NodeGroup(settings, opener(nodes)), 1, None)[0]["node0"]["jobs"] == [
        job_id(8),
        job_id(7),
    ]


def test_a_node_that_is_lost_is_not_asked(nodes: list[LocalNode]) -> None:
    for node in nodes:
        fill(node, 3)
    (note,) = cleanup.keep_newest(gang_on(nodes), 0, lost={"node0"})
    assert note.endswith(" from 1 node") and len(jobs_on(nodes[0])) == 3


def test_what_went_wrong_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, Any] = {"jobs": [], "bundles": [], "envs": [], "bytes": 0}
    cleaned = {"a": {**nothing, "left": [(f"jobs/{n}\x1b", "Operation not permitted") for n in range(7)]}}
    answer = (cleaned, {"b": Unreachable("b", "is away")})
    monkeypatch.setattr(cleanup, "remove_old_jobs", lambda *arguments: answer)
    gang: Any = SimpleNamespace(settings={}, nodes=NodeGroup([], opener([])))
    assert cleanup.keep_newest(gang, 1) == [
        *(f"a could not remove jobs/{n}\\x1b: Operation not permitted" for n in range(5)),
        "2 more things could not be removed",
        "b is away; what is old may still lie there",
    ]


@pytest.mark.parametrize(
    ("replies", "dry", "sentence"),
    [
        ([], False, "nothing to remove"),
        ([([], [], [], 0)], False, "nothing to remove"),
        ([(["a", "b"], ["c"], ["d"], 1500)], False, "removed 2 jobs, 1 bundle and 1 environment (1.5 kB) from 1 node"),
        (
            [(["a"], [], [], 6 * 10**9), (["a", "b"], [], [], 6 * 10**9)],
            True,
            "would remove 2 jobs, 0 bundles and 0 environments (12.0 GB) from 2 nodes",
        ),
        ([([], [], [], 5)], False, "removed 0 jobs, 0 bundles and 0 environments (5 B) from 1 node"),
    ],
)
def test_the_sum(replies: list[Any], dry: bool, sentence: str) -> None:
    names = ("jobs", "bundles", "envs", "bytes")
    cleaned = {str(n): {**dict(zip(names, reply, strict=True)), "left": []} for n, reply in enumerate(replies)}
    assert cleanup.summarize(cleaned, dry) == sentence


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (12_340_000_000, "12.3 GB"),
        (10**13, "10.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_amounts(count: int, text: str) -> None:
    assert words.format_bytes(count) == text


def test_names_that_act_upon_a_terminal_are_escaped() -> None:
    assert words.escape("Zürich 日本.txt") == "Zürich 日本.txt"
    assert words.escape("a\x1b[2J\n\u202e\udcff") == "a\\x1b[2J\\n\\u202e\\udcff"


# -------------------------------------------------------------------------------------------------------- the playbook


def playbook(folder: Path, nodes: list[LocalNode], *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "cluster_dir": f"{folder}/{{{{ inventory_hostname }}}}",
        "job_user": "",
    }
    hosts = {node.host: {"cluster_address": node.address} for node in nodes}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"cluster": {"hosts": hosts, "vars": variables}}))
    return play(folder, "clean.yml", *arguments, ANSIBLE_STDOUT_CALLBACK="default")  # with what has changed


def test_the_playbook(nodes: list[LocalNode], tmp_path: Path) -> None:
    fill(nodes[0], 3)
    fill(nodes[1], 3)
    looked = playbook(tmp_path, nodes, "-e", "keep=1", "--check")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "would remove 2 jobs, 2 bundles and 0 environments (" in looked.stdout
    assert jobs_on(nodes[0]) == [job_id(n) for n in range(3)]
    done = playbook(tmp_path, nodes, "-e", "keep=1", "--limit", "node0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "removed 2 jobs, 2 bundles" in done.stdout and " from 1 node\n" in done.stdout
    assert "changed=1" in done.stdout
    assert jobs_on(nodes[0]) == [job_id(2)] and len(jobs_on(nodes[1])) == 3
    again = playbook(tmp_path, nodes, "-e", "keep=3")
    assert "nothing to remove" in again.stdout and "changed=0" in again.stdout


def test_a_node_that_cannot_be_cleaned_keeps_no_other_from_it(nodes: list[LocalNode], tmp_path: Path) -> None:
    fill(nodes[1], 2)
    (nodes[0].directory / "jobs").rmdir()
    (nodes[0].directory / "jobs").write_text("no folder")
    done = playbook(tmp_path, nodes, "-e", "keep=0")
    (nodes[0].directory / "jobs").unlink()
    (nodes[0].directory / "jobs").mkdir()
    assert done.returncode != 0
    words = f"node0 failed at clean: Not a directory: {nodes[0].directory}/jobs. On the other nodes: removed 2 jobs, 2 "
    assert words in done.stdout + done.stderr
    assert jobs_on(nodes[1]) == []


def test_a_number_that_cannot_be_meant(nodes: list[LocalNode], tmp_path: Path) -> None:
    done = playbook(tmp_path, nodes, "-e", "keep=-1")
    assert done.returncode != 0
    assert "keep is -1; set it to 0 or more" in done.stdout + done.stderr
