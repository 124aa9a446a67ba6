# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import job_warnings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.project.choose_launcher import KINDS

ALONE = "if each node is meant to work for itself, set -e gang=false"


def parts(*met: bool | None, **more: Any) -> job_warnings.Parts:
    """Return what nodes say, node0 first."""
    return [(f"node{rank}", {**({} if one is None else {"met": one}), **more}) for rank, one in enumerate(met)]


def about(uses: str, **more: Any) -> dict[str, Any]:
    """Return what is known of a job that was started in the way that fits it."""
    return {"uses": uses, "launcher": KINDS[uses][0], "master_port": 29500, "gang": True, **more}


@pytest.mark.parametrize(
    ("launcher", "said", "expected"),
    [
        ("lightning", (True, True, True), True),
        ("lightning", (False, True, True), True),  # the head was not seen, but the others were connected to it
        ("lightning", (True, False, True), False),
        ("lightning", (False, False, False), False),
        ("lightning", (True, None, True), None),
        ("lightning", (None, True, True), True),
        ("torchrun", (False, True), False),
        ("python", (None,), None),
    ],
)
def test_whether_the_ranks_met(launcher: str, said: tuple[bool | None, ...], expected: bool | None) -> None:
    assert job_warnings.met({"launcher": launcher}, parts(*said)) is expected


@pytest.mark.parametrize(
    ("nodes", "gang", "together", "expected"),
    [(3, True, True, 3), (3, True, False, 1), (3, True, None, None), (3, False, None, 1), (1, True, None, 1)],
)
def test_no_world_is_larger_than_it_was_seen_to_be(
    nodes: int, gang: bool, together: bool | None, expected: int | None
) -> None:
    """S1."""
    assert job_warnings.world_size(nodes, gang, together) == expected


NOBODY = "no process of the job listened at MASTER_PORT 29500 on node0, and none on node1, node2 connected to it"


@pytest.mark.parametrize(
    ("job", "remedy"),
    [
        (
            about("trainer"),
            'give its Trainer num_nodes=int(os.environ["NUM_NODES"]) and a strategy for several nodes such as "ddp", '
            "or neither",
        ),
        (about("cli"), "set trainer.num_nodes to 3 in its arguments or its configuration, or nowhere"),
        (
            about("plain"),
            "the script uses no Trainer, no Fabric and no torch.distributed, which train on several nodes",
        ),
        (
            about("spawn"),
            "the script starts its processes itself, so let it count over all nodes: rank = NODE_RANK * devices + "
            "device, world_size = NUM_NODES * devices, with MASTER_ADDR and MASTER_PORT as the job sets them",
        ),
        (
            about("distributed", launcher="python"),
            "the script uses torch.distributed, so start it with -e launcher=torchrun",
        ),
        (
            about("transformers", launcher="lightning"),
            "the script uses the Trainer of Transformers, so start it with -e launcher=torchrun",
        ),
    ],
)
def test_who_never_met_and_what_helps(job: dict[str, Any], remedy: str) -> None:
    """S1."""
    said = job_warnings.warning(job, parts(False, False, False), ended=True)
    assert said == f"the ranks never met: {NOBODY}; {remedy}; {ALONE}"
    said = job_warnings.warning(job, parts(False, False, False), ended=False)
    assert said == f"the ranks have not met yet: {NOBODY}; {remedy}; {ALONE}"


def test_one_that_never_came() -> None:
    said = job_warnings.warning(about("trainer"), parts(True, True, False), ended=True)
    assert said.startswith(
        "not all ranks met: no process of the job on node2 connected to MASTER_PORT 29500 on node0; "
    )


def test_torchruns_agents_meet_whatever_the_script_does() -> None:
    """Examples that exit with 0 where there are not two GPUs."""
    assert job_warnings.warning(about("distributed"), parts(False, False), ended=True) == (
        "the ranks never met: no process that torchrun started on node0, node1 connected to MASTER_PORT 29500 on "
        "node0; the script uses torch.distributed, but came to no init_process_group; its log may say what it lacks, "
        f"such as GPUs or an argument; {ALONE}"
    )


@pytest.mark.parametrize(
    ("uses", "remedy"),
    [
        ("trainer", 'pass ckpt_path=os.environ.get("CKPT_PATH") to fit'),
        ("cli", "name no ckpt_path in its arguments and its configuration, or $CKPT_PATH in its arguments"),
        ("distributed", "load what CKPT_PATH names"),
    ],
)
def test_a_checkpoint_that_nobody_read(uses: str, remedy: str) -> None:
    """S9."""
    unread, read = parts(True, True, checkpoint_read=False), parts(True, True, checkpoint_read=True)
    said = job_warnings.warning(about(uses), unread, ended=True)
    assert said == f"the script has not read CKPT_PATH, so it started from the beginning; {remedy}"
    assert job_warnings.warning(about(uses), unread, ended=False) == f"the script has not read CKPT_PATH yet; {remedy}"
    assert job_warnings.warning(about(uses), [unread[0], read[1]], ended=True) == ""  # it may tell the others


@pytest.mark.parametrize("said", [parts(True, True), parts(None, None), parts(None, False)[:1], []])
def test_nothing_to_be_said(said: job_warnings.Parts) -> None:
    assert job_warnings.warning(about("trainer"), said, ended=True) == ""


def test_what_a_node_says_of_a_job_is_not_believed_further_than_it_goes() -> None:
    said = job_warnings.warning({"uses": "\x1b[2J", "launcher": "\x1b[2J"}, [("a\x1b", {"met": False})] * 2, ended=True)
    assert "\x1b" not in said
