# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint that the user names, on a node that is not the head: it comes whole to all, or nothing is started."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from machines import Cluster, Node, until
from measuring import Timeline

PLACE = "/srv/checkpoints"
FIRST_BYTES, ALL_BYTES = 20 * 2**20, 60 * 2**20


@pytest.fixture
def holder(cluster: Cluster, tmp_path: Path) -> Node:
    """The last node, which has a checkpoint: a folder with two files and a link to one of them, and a link to it."""
    node = cluster.nodes[2]
    node.execute("rm", "-rf", PLACE)
    for name in ("weights", "optimizer"):
        (tmp_path / name).write_text(name)
        node.put(tmp_path / name, f"{PLACE}/step-7")
    node.execute(
        "sh", "-ec", f"cd {PLACE}; chmod -R go=rX .; ln -s step-7 latest; ln -s {PLACE}/step-7/weights step-7/best"
    )
    return node


def lines(cluster: Cluster, *arguments: str) -> list[list[str]]:
    """Return what each rank says of its checkpoint."""
    run = cluster.run("reads.py", "-e", "logs=all", *arguments)
    assert run.wait() == 0, run.text
    return [run.printed(rank) for rank in range(len(cluster.nodes))]


def described(name: str, content: bytes) -> str:
    return f"{name} {len(content)} {hashlib.sha256(content).hexdigest()}"


def test_a_checkpoint_of_another_node(cluster: Cluster, holder: Node) -> None:
    weights, optimizer = b"weights", b"optimizer"
    files = {"best": weights, "optimizer": optimizer, "weights": weights}
    whole = [described(f"latest/{name}", content) for name, content in files.items()]
    assert lines(cluster, "-e", f"checkpoint={PLACE}/latest") == [whole] * 3


def test_a_checkpoint_that_jobs_may_not_read(cluster: Cluster, holder: Node) -> None:
    """Root reads it not for them, through no link either; and no part of a folder is taken for the whole."""
    before = cluster.everywhere(Node.jobs)
    holder.execute("sh", "-ec", f"cd {PLACE}; ln -s /etc/shadow shadow.pt; mkdir -m 700 step-7/closed")
    cannot = "but thunderhead, as whom jobs run, cannot read it: Permission denied: "
    for name, sentence in (
        ("shadow.pt", f"node2 has /etc/shadow, {cannot}/etc/shadow. Nothing was started on any node."),
        ("latest", f"node2 has {PLACE}/step-7, {cannot}{PLACE}/step-7/closed. Nothing was started on any node."),
    ):
        run = cluster.run("reads.py", "-e", f"checkpoint={PLACE}/{name}")
        assert run.wait() == 2
        assert sentence in run.words
    assert cluster.everywhere(Node.jobs) == before
    assert not list(cluster.runs.rglob("*"))


def test_a_node_that_is_cut_off_while_its_checkpoint_is_fetched(
    cluster: Cluster, holder: Node, tmp_path: Path, timeline: Timeline
) -> None:
    content = os.urandom(2**20) * (ALL_BYTES // 2**20)
    (tmp_path / "large.pt").write_bytes(content)
    holder.put(tmp_path / "large.pt", PLACE)
    holder.execute("chmod", "go=r", f"{PLACE}/large.pt")
    (tmp_path / "large.pt").unlink()
    before = cluster.everywhere(Node.jobs)
    with holder.cut_after(FIRST_BYTES):
        run = cluster.run("reads.py", "-e", f"checkpoint={PLACE}/large.pt")
        until(lambda: list(cluster.runs.rglob("*.part")), "the checkpoint is fetched", 60)
        at = time.monotonic()
        assert run.wait() == 2, run.text
    sentence = "Nothing was started on any node. Run it again, and the transfer goes on where it ended."
    assert f"node2 gave no answer within 30 s. {sentence}" in run.words
    (part,) = (path for path in cluster.runs.rglob("*") if path.is_file())
    assert part.suffix == ".part" and 0 < part.stat().st_size < FIRST_BYTES
    assert cluster.everywhere(Node.jobs) == before
    timeline.note_end("a node is cut off while a checkpoint of its is fetched", run, at, "node2 gave no answer")

    cluster.disconnect()
    with holder.cut_after(ALL_BYTES - part.stat().st_size + 2**21):  # so it does not begin anew
        assert lines(cluster, "-e", f"checkpoint={PLACE}/large.pt") == [[described("large.pt", content)]] * 3
    assert not list(cluster.runs.rglob("*.part"))
