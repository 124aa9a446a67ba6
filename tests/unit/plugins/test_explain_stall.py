# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_ranks import (
    describe_ranks,
    read_activity,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.describe_reachability import (
    Reachability,
    read_connections,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.explain_stall import (
    Findings,
    TryConnections,
    Verdict,
    explain,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import Process
from stacks_of_jobs import log_of, processes_of


@pytest.mark.parametrize(
    ("lines", "waits", "passed"),
    [
        ([], False, False),
        (["", "x.py:3: UserWarning: slow"], False, False),
        (
            ["GPU available: False", "Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4"],
            True,
            False,
        ),
        (
            [
                "Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/4",
                "[W1122 17:30:05.1 socket.cpp:767] [c10d] The hostname of the client socket cannot be retrieved",
            ],
            True,
            False,
        ),
        (
            [
                "Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4",
                "-" * 100,
                "distributed_backend=gloo",
                "All distributed processes registered. Starting with 4 processes",
            ],
            False,
            True,
        ),
        (
            ["Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/4", "step 1"],
            False,
            True,
        ),
        (["loading", ""], False, False),
    ],
)
def test_progress(lines: list[str], waits: bool, passed: bool) -> None:
    found = describe_ranks([], "\n".join(lines).encode(), 0)
    assert (found.waits, found.passed) == (waits, passed)


def connecting(hosts: list[str], failed: Mapping[str, Mapping[str, str]] | None = None) -> TryConnections:
    """Nodes that can connect to each other, but for these."""
    pairs = {host: dict((failed or {}).get(host, {})) for host in hosts}
    return lambda _master: Reachability(hosts, 29500, dict.fromkeys(hosts, 47011), pairs, {}, {})


def explained(
    case: str,
    count: int,
    logs: Mapping[str, bytes] | None = None,
    failed: Mapping[str, Mapping[str, str]] | None = None,
) -> Verdict:
    """What is said of a real job on the first ``count`` nodes, with other logs or nodes that cannot connect."""
    hosts = [f"node{rank}" for rank in range(count)]
    activities = {
        host: describe_ranks(processes_of(case, host), (logs or {}).get(host, log_of(case, host)), 0) for host in hosts
    }
    sent = {host: read_activity(json.loads(json.dumps(one))) for host, one in activities.items()}
    assert sent == activities, "as it comes over the line"
    return explain(Findings(hosts, activities, master_port=29500), connecting(hosts, failed))


def test_the_script_expects_more_ranks() -> None:
    assert explained("numbers", 2) == Verdict(
        True,
        False,
        "the rendezvous does not complete: the script expects 6 ranks, but 2 nodes with 2 processes each started: "
        "num_nodes or devices in its Trainer disagrees with the job; use "
        'num_nodes=int(os.environ["NUM_NODES"])',
    )


def announced(*ranks: tuple[int, int]) -> bytes:
    return b"".join(
        b"Initializing distributed: GLOBAL_RANK: %d, MEMBER: %d/%d\n" % (rank, rank + 1, of) for rank, of in ranks
    )


def test_nodes_start_different_numbers_of_processes() -> None:
    logs = {"node0": announced((0, 4), (1, 4)), "node1": announced((2, 4), (3, 4), (4, 4))}
    assert explained("numbers", 2, logs).sentence == (
        "the rendezvous does not complete: rank 0 (node0) started 2 processes, but rank 1 (node1) started 3 processes, "
        "and every node must start the same number; set devices in the Trainer to what all nodes have"
    )


def test_two_nodes_are_the_same_rank() -> None:
    logs = {"node0": announced((0, 4), (1, 4)), "node1": announced((0, 4), (1, 4))}
    assert explained("numbers", 2, logs).sentence == (
        "the rendezvous does not complete: node0 and node1 both announced global rank 0; the script must leave "
        "NODE_RANK as the job sets it"
    )


def test_a_rank_never_came() -> None:
    assert explained("missing", 3) == Verdict(
        True,
        False,
        "the rendezvous does not complete: rank 2 (node2) never came to it, but is in prepare at train.py:7; ranks "
        "0, 1 wait in init_process_group; if more time is all that is needed, raise job_rendezvous_timeout_seconds",
    )


PREPARING = "rank 0 (node0) is in prepare at train.py:7, and works ({}), while ranks 1, 2 wait in init_process_group"


@pytest.mark.parametrize(
    ("cpu", "io", "state", "used"),
    [
        (9.8, 0, "S", "9.8 s of CPU in 10 s"),
        (0.1, 0, "S", "0.1 s of CPU in 10 s"),
        (0.05, 2_000_000, "S", "2.0 MB read and written in 10 s"),
        (0.0, 0, "D", "a disk that it waits for"),
    ],
)
@pytest.mark.parametrize("child", [False, True])
def test_a_rank_that_works_is_waited_for(child: bool, cpu: float, io: int, state: str, used: str) -> None:
    at_work = {"cpu": cpu, "io": io, "state": state}
    (idle,) = ranks(SLEEPING.replace("load", "prepare").replace(":8", ":7"))
    busy = [idle, Process(11, 10, None, "S", False, "")] if child else [idle]
    busy[-1] = replaced(busy[-1], **at_work)
    assert said([busy, ranks(MEETING), ranks(MEETING)], seconds=10) == Verdict(
        True, False, f"{PREPARING.format(used)} for it; the job goes on", open=True
    )


def test_only_a_rank_that_stands_still_has_never_come() -> None:
    """What little a process uses that waits, and what one uses that spins while it waits, is no work."""
    idle = replaced(ranks(SLEEPING)[0], cpu=0.02, io=900)
    spins = replaced(ranks(MEETING)[0], cpu=10.0)
    verdict = said([[idle], [spins]], seconds=10)
    assert (verdict.rendezvous, verdict.open) == (True, False)
    assert "rank 0 (node0) never came to it" in verdict.sentence
    late = said([[replaced(idle, cpu=3.0)], [replaced(idle, cpu=2.0)], [spins]], seconds=10)
    assert late.sentence == (
        "ranks 0, 1 are in load at train.py:8, and they work (3.0 s of CPU in 10 s), while rank 2 (node2) waits in "
        "init_process_group for them; the job goes on"
    )


def test_a_node_of_which_nothing_is_known_may_work() -> None:
    assert said([ranks(MEETING), "is unreachable: timeout"], seconds=10) == Verdict(
        True, False, "rank 0 (node0) waits in init_process_group; rank 1 (node1) is unreachable: timeout", open=True
    )


def test_numbers_that_disagree_are_wrong_however_much_a_rank_works() -> None:
    logs = {0: announced((0, 3)), 1: announced((1, 3))}
    verdict = said([[replaced(ranks(SLEEPING)[0], cpu=9.0)], ranks(MEETING)], logs, seconds=10)
    assert not verdict.open
    assert "the script expects 3 ranks, but 2 nodes" in verdict.sentence


def test_a_firewall() -> None:
    verdict = explained("mesh", 3, failed={host: {"node1": "no answer"} for host in ("node0", "node2")})
    assert (verdict.rendezvous, verdict.passed) == (True, False)
    head, _port, tail = verdict.sentence.partition("(port ")
    assert head == "the rendezvous does not complete: every other node gets no answer from node1 "
    assert tail.endswith("): a firewall drops it; run: ansible-playbook setup.yml")


def test_nothing_is_wrong_with_the_network() -> None:
    assert explained("mesh", 3).sentence == (
        "the rendezvous does not complete: ranks 1, 2 wait in init_process_group, rank 0 (node0) is in barrier at "
        "train.py:7; all nodes can connect to each other; the script may expect more than the 3 ranks that there are"
    )
    assert explained("torchrun-static", 2).sentence == (
        "the rendezvous does not complete: all ranks wait in torchrun's rendezvous; all nodes can connect to each other"
    )


@pytest.mark.parametrize(
    ("case", "count", "expected"),
    [
        (
            "reduce",
            3,
            "rank 1 (node1) is in load at train.py:8 while ranks 0, 2 wait for it in all_reduce at train.py:15",
        ),
        (
            "backward",
            2,
            "rank 1 (node1) is in Model.training_step at train.py:17 while rank 0 (node0) waits for it in backward at "
            "train.py:28",
        ),
        (
            "loader",
            2,
            "rank 1 (node1) is in the data loader at train.py:28, whose worker is in Slow.__getitem__ at train.py:9 "
            "while rank 0 (node0) waits for it in backward at train.py:28",
        ),
    ],
)
def test_a_stall_after_the_rendezvous(case: str, count: int, expected: str) -> None:
    assert explained(case, count) == Verdict(False, True, expected)


# What was not seen on real nodes: many of them, and few that answer.

PACKAGES = "/opt/thunderhead/env/lib/python3.11/site-packages"
WORK = "/opt/thunderhead/jobs/20261122-173000-train-1a2b/work"
MEETING = f"    init_process_group ({PACKAGES}/torch/distributed/distributed_c10d.py:1899)\n"
REDUCING = f"    all_reduce ({PACKAGES}/torch/distributed/distributed_c10d.py:3252)\n    <module> ({WORK}/train.py:3)\n"
BROADCASTING = REDUCING.replace("all_reduce", "broadcast")
SLEEPING = f"    load ({WORK}/train.py:8)\n"


def ranks(*calls: str) -> list[Process]:
    """The processes of a node as Lightning starts them, by what they are doing."""
    return [
        Process(10 + rank, 10 if rank else 1, rank or None, "S", True, f'Thread 7 (idle): "MainThread"\n{call}')
        for rank, call in enumerate(calls)
    ]


def replaced(process: Process, **changes: Any) -> Process:
    return dataclasses.replace(process, **changes)


def said(
    processes: list[list[Process] | str],
    logs: Mapping[int, bytes] | None = None,
    try_connections: TryConnections = lambda _master: None,
    seconds: float = 0,
    **more: Any,
) -> Verdict:
    """What is said of nodes that do this; a string says why nothing is known of one."""
    hosts = [f"node{rank}" for rank in range(len(processes))]
    found = dict(zip(hosts, processes, strict=True))
    activities = {
        host: describe_ranks(one, (logs or {}).get(int(host[4:]), b""), seconds)
        for host, one in found.items()
        if not isinstance(one, str)
    }
    errors = {host: one for host, one in found.items() if isinstance(one, str)}
    return explain(Findings(hosts, activities, errors, **more), try_connections)


def test_300_ranks() -> None:
    assert said([ranks(REDUCING)] * 299 + [ranks(SLEEPING)]).sentence == (
        "rank 299 (node299) is in load at train.py:8 while ranks 0-298 wait for it in all_reduce at train.py:3"
    )
    many = [ranks(REDUCING if rank % 2 else SLEEPING.replace(":8", f":{rank}")) for rank in range(300)]
    sentence = said(many).sentence
    assert sentence == (
        "rank 0 (node0) is in load at train.py:0, rank 2 (node2) is in load at train.py:2, rank 4 (node4) is in load "
        "at train.py:4, ranks 6, 8, 10, 12, 14, 16, 18, 20, 22, 24 and 137 more are elsewhere while ranks 1, 3, 5, 7, "
        "9, 11, 13, 15, 17, 19 and 140 more wait for them in all_reduce at train.py:3"
    )


def test_local_ranks() -> None:
    assert said([ranks(REDUCING, REDUCING), ranks(REDUCING, SLEEPING)]).sentence == (
        "local rank 1 of rank 1 (node1) is in load at train.py:8 while 3 processes of ranks 0, 1 wait for it in "
        "all_reduce at train.py:3"
    )
    assert said([ranks(REDUCING, SLEEPING, SLEEPING)] * 2).sentence == (
        "local ranks 1, 2 of ranks 0, 1 are in load at train.py:8 while local rank 0 of ranks 0, 1 wait for them in "
        "all_reduce at train.py:3"
    )


def test_different_collectives() -> None:
    assert said([ranks(REDUCING), ranks(BROADCASTING), ranks(REDUCING)]).sentence == (
        "the ranks wait for each other in different places: rank 1 (node1) in broadcast at train.py:3, ranks 0, 2 in "
        "all_reduce at train.py:3"
    )


def test_all_in_the_same_collective() -> None:
    processes: list[list[Process] | str] = [ranks(REDUCING), ranks(REDUCING)]
    assert said(processes, try_connections=connecting(["node0", "node1"])).sentence == (
        "all ranks wait in all_reduce at train.py:3; all nodes can connect to each other"
    )
    assert said(processes).sentence == "all ranks wait in all_reduce at train.py:3"
    assert said([*processes, "does not run job job-1 any more"]).sentence == (
        "ranks 0, 1 wait in all_reduce at train.py:3; rank 2 (node2) does not run job job-1 any more"
    )


def test_nobody_waits() -> None:
    assert said([ranks(SLEEPING), ranks(SLEEPING)]).sentence == (
        "no rank waits for another: ranks 0, 1 are in load at train.py:8"
    )


def test_nobody_is_known() -> None:
    assert said(["is unreachable: timeout", "is unreachable: timeout"]) == Verdict(
        False, False, "nothing is known of any rank; each of ranks 0, 1 is unreachable: timeout"
    )


def test_a_node_without_a_python() -> None:
    shell = [Process(9, 1, None, "S", False, "State: S")]
    assert said([ranks(MEETING), shell]).sentence == (
        "the rendezvous does not complete: rank 1 (node1) runs no Python process; rank 0 (node0) waits in "
        "init_process_group; if more time is all that is needed, raise job_rendezvous_timeout_seconds"
    )
    assert said([ranks(REDUCING), shell]).sentence == (
        "rank 1 (node1) runs no Python process while rank 0 (node0) waits for it in all_reduce at train.py:3"
    )


# Accelerate 1.15 and Transformers 5.24 on torch 2.13, CPU, two machines with WORLD_SIZE=2 and no RANK.
ACCELERATE = f"""\
    _new_process_group_helper ({PACKAGES}/torch/distributed/distributed_c10d.py:2169)
    init_process_group ({PACKAGES}/torch/distributed/distributed_c10d.py:1899)
    _time_logger.<locals>.wrapper ({PACKAGES}/torch/distributed/c10d_logger.py:97)
    PartialState.__init__ ({PACKAGES}/accelerate/state.py:285)
"""
ACCELERATOR = f"""{ACCELERATE}\
    AcceleratorState.__init__ ({PACKAGES}/accelerate/state.py:918)
    Accelerator.__init__ ({PACKAGES}/accelerate/accelerator.py:463)
    <module> ({WORK}/train.py:2)
"""
TRANSFORMERS = f"""{ACCELERATE}\
    TrainingArguments._setup_devices ({PACKAGES}/transformers/training_args.py:1901)
    TrainingArguments.__post_init__ ({PACKAGES}/transformers/training_args.py:1661)
    <module> ({WORK}/train.py:2)
"""
LIGHTNING = MEETING + f"    _init_dist_connection ({PACKAGES}/lightning/fabric/utilities/distributed.py:300)\n"
OWN = MEETING + f"    <module> ({WORK}/train.py:2)\n"
EXPECTS = "; the script may expect more than the 2 ranks that there are"


@pytest.mark.parametrize(
    ("call", "local_rank", "hint"),
    [
        *(
            (
                call,
                None,
                "; Accelerate takes its rank from RANK, which only torchrun sets, and without it every node is rank 0; "
                "run it with -e launcher=torchrun",
            )
            for call in (ACCELERATOR, TRANSFORMERS)
        ),
        (TRANSFORMERS, 0, EXPECTS),
        (OWN, None, f"{EXPECTS}, or take its rank from RANK, which only -e launcher=torchrun sets"),
        (LIGHTNING, None, EXPECTS),
    ],
)
def test_a_world_size_without_a_rank(call: str, local_rank: int | None, hint: str) -> None:
    processes: list[list[Process] | str] = [[replaced(ranks(call)[0], local_rank=local_rank)]] * 2
    verdict = said(processes, try_connections=connecting(["node0", "node1"]))
    assert (verdict.rendezvous, verdict.open) == (True, False)
    assert verdict.sentence == (
        "the rendezvous does not complete: all ranks wait in init_process_group; all nodes can connect to each other"
        + hint
    )


def test_who_has_met_is_not_missing() -> None:
    registered = {0: announced((0, 2)) + b"All distributed processes registered. Starting with 2 processes\n"}
    verdict = said([ranks(SLEEPING), ranks(MEETING)], registered)
    assert (verdict.rendezvous, verdict.passed) == (True, False)
    assert "never came" not in verdict.sentence
    assert said([ranks(SLEEPING), ranks(SLEEPING)], registered).passed


def unknown() -> list[Process]:
    return [Process(9, 1, None, "S", True, "State: S")]


def test_without_py_spy_the_logs_count() -> None:
    missing = "/opt/thunderhead/tools/env/bin/py-spy"
    logs = {"node0": announced((0, 2)), "node1": b"loading\n"}
    activities = {host: describe_ranks(unknown(), log, 0, missing * (host == "node0")) for host, log in logs.items()}
    assert explain(Findings(list(logs), activities), lambda _master: None) == Verdict(
        True,
        False,
        "the rendezvous does not complete: rank 1 (node1) was not seen in it, and is in state S, with a stack that "
        "could not be taken; rank 0 (node0) waits in Lightning's rendezvous; if more time is all that is needed, raise "
        "job_rendezvous_timeout_seconds; node0 has no /opt/thunderhead/tools/env/bin/py-spy, so run: ansible-playbook "
        "setup.yml",
    )


def test_while_it_trains_lightning_prints_on_rank_0_only() -> None:
    logs = {0: announced((0, 2)) + b"step 1\n", 1: announced((1, 2))}
    assert said([unknown(), unknown()], logs) == Verdict(
        False,
        True,
        "no rank waits for another: ranks 0, 1 are in state S, with a stack that could not be taken",
    )


def test_a_node_that_the_head_never_reached() -> None:
    verdict = said(
        [ranks(MEETING), "did not answer the head", ranks(MEETING)],
        unreached={"node1": "no answer"},
        ports={"node1": 40123},
    )
    assert (verdict.rendezvous, verdict.open) == (True, False)
    assert verdict.sentence == (
        "the rendezvous does not complete: node0 gets no answer from node1 (port 40123): a firewall drops it; run: "
        "ansible-playbook setup.yml; rank 1 (node1) did not answer the head"
    )
    trains = said([ranks(SLEEPING), "did not answer the head"], unreached={"node1": "no answer"}, ports={"node1": 1})
    assert not trains.rendezvous, "it may need no network"


def test_connections_are_tried_only_where_the_explanation_depends_on_them() -> None:
    tried: list[bool] = []

    def try_connections(master: bool) -> Reachability | None:
        tried.append(master)
        return None

    said([ranks(MEETING), ranks(SLEEPING)], try_connections=try_connections)
    said([ranks(REDUCING), ranks(SLEEPING)], try_connections=try_connections)
    assert tried == []
    said([ranks(MEETING), ranks(MEETING)], try_connections=try_connections)
    said([ranks(REDUCING), ranks(REDUCING)], try_connections=try_connections)
    assert tried == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            7,
            "x",
            [],
            {},
            [[]],
            [[], [], False, False, False, "", "40001"],
            [[1], [], False, False, False, "", 0],
        ),
        [[[0, "running", 5, "", ""]], [], False, False, False, "", 0],
        [[[0, "running", "x" * 5000, "", ""]], [], False, False, False, "", 0],
        [[], [["a", 2]], False, False, False, "", 0],
        [[], [], 1, False, False, "", 0],
    ],
)
def test_what_is_no_activity(value: Any) -> None:
    assert read_activity(value) is None


def test_more_ranks_than_stacks_are_taken_of() -> None:
    many = [Process(10 + rank, 10 if rank else 1, rank or None, "S", True, "State: S") for rank in range(96)]
    logs = {node: announced(*((96 * node + rank, 192) for rank in range(96))) for node in (0, 1)}
    assert "the script expects" not in said([many, many], logs).sentence
    logs = {node: announced(*((96 * node + rank, 200) for rank in range(96))) for node in (0, 1)}
    assert "the script expects 200 ranks, but 2 nodes with 96 processes each" in said([many, many], logs).sentence


def test_what_a_node_sends_of_a_rank_is_escaped_and_bounded() -> None:
    sent = [[[0, "running", "in a\x1b[2J\n" + "x" * 4000, "", ""]], [], False, False, False, "\u202e/py-spy", 40000]
    found = read_activity(sent)
    assert found is not None and found.missing == "\\u202e/py-spy"
    (rank,) = found.ranks
    assert rank.description.startswith("in a\\x1b[2J\\nxxx") and len(rank.description) == 400


def test_what_a_node_sends_of_its_connections() -> None:
    hosts = ["node0", "node1"]
    sent = {"failed": {"node1": "no\nanswer", "stranger": "refused"}, "master": "x" * 1000}
    assert read_connections(sent, hosts) == ({"node1": "no\\nanswer"}, "x" * 200)
    assert read_connections({"failed": {}, "master": None}, hosts) == ({}, "")
    bad: list[Any] = [None, [], {}, {"failed": []}, {"failed": {"node1": 5}}, {"failed": {}, "master": ["x"]}]
    assert [read_connections(one, hosts) for one in bad] == [None] * len(bad)


def test_where_only_the_head_tried_it_is_not_said_of_every_node() -> None:
    waiting: list[list[Process] | str] = [ranks(MEETING), *["did not answer the head"] * 3]
    failed = {f"node{rank}": "no answer" for rank in (1, 2, 3)}
    sentence = said(waiting, unreached=failed, ports=dict.fromkeys(failed, 40000)).sentence
    assert "node0 gets no answer from every other" in sentence and "every node" not in sentence
