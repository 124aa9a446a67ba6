# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis import stall
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.call_stacks import Process, parse
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.stall import (
    Silence,
    Stacks,
    StallDetector,
    Verdict,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.jobs.launch import Launch
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.transport.channel import NodeError
from local_nodes import LocalNode, by_rank, code, gang_of, until
from stacks_of_jobs import Answer, FakeGang, Log, log_of, reply_of, topology_of, unreachable

# ------------------------------------------------------------------------------------------------------------- noticing


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def silence_at(watch: StallDetector, clock: Clock, seconds: float, printed: int = 0, ended: int = 0) -> Silence | None:
    """Return the silence that the watch reports ``seconds`` after its start."""
    clock.now = 1000.0 + seconds
    return watch.check({"node0": printed, "node1": 0}, ended)


def watch_of(stall_timeout: float | None, rendezvous_timeout: float | None) -> tuple[StallDetector, Clock]:
    clock = Clock()
    return StallDetector(stall_timeout, rendezvous_timeout, clock), clock


def test_a_stall_is_told_once_per_silence() -> None:
    watch, clock = watch_of(60, 0)
    assert silence_at(watch, clock, 0) is None
    assert silence_at(watch, clock, 59.9) is None
    assert silence_at(watch, clock, 60.1) == Silence(pytest.approx(60.1), stall=True, rendezvous=False)  # type: ignore[arg-type]
    assert silence_at(watch, clock, 90) is None
    assert silence_at(watch, clock, 100, printed=5) is None
    assert silence_at(watch, clock, 159, printed=5) is None
    assert silence_at(watch, clock, 160, printed=5) == Silence(60, stall=True, rendezvous=False)
    assert silence_at(watch, clock, 170, printed=5, ended=1) is None
    assert silence_at(watch, clock, 230, printed=5, ended=1) == Silence(60, stall=True, rendezvous=False, ended=1)


def test_a_rendezvous_is_told_again_when_the_job_is_twice_as_old() -> None:
    watch, clock = watch_of(None, 120)
    assert silence_at(watch, clock, 0) is None
    assert silence_at(watch, clock, 119) is None
    assert silence_at(watch, clock, 120) == Silence(120, stall=False, rendezvous=True)
    assert silence_at(watch, clock, 239) is None
    assert silence_at(watch, clock, 240) == Silence(240, stall=False, rendezvous=True)
    assert silence_at(watch, clock, 400, printed=5) is None
    assert silence_at(watch, clock, 519, printed=5) is None
    assert silence_at(watch, clock, 520, printed=5) == Silence(120, stall=False, rendezvous=True)
    watch.past_rendezvous()
    assert silence_at(watch, clock, 9999, printed=5) is None


def test_who_comes_later_counts_from_the_jobs_start() -> None:
    """The next look is when the job is twice as old, not when the follower is."""
    clock = Clock()
    watch = StallDetector(None, 120, clock, age_seconds=280)
    assert silence_at(watch, clock, 0) is None
    assert silence_at(watch, clock, 120) == Silence(120, stall=False, rendezvous=True)
    assert silence_at(watch, clock, 519) is None
    assert silence_at(watch, clock, 520) == Silence(520, stall=False, rendezvous=True)


def test_who_is_left_is_looked_at_soon() -> None:
    """A rank that waits in a rendezvous for ranks that have ended, in its first or in a second one."""
    for met in (False, True):
        watch, clock = watch_of(None, 120)
        if met:
            watch.past_rendezvous()
        assert silence_at(watch, clock, 0) is None
        assert silence_at(watch, clock, 50, printed=5, ended=1) is None
        assert silence_at(watch, clock, 69, printed=5, ended=1) is None
        assert silence_at(watch, clock, 70, printed=5, ended=1) == Silence(20, stall=False, rendezvous=True, ended=1)
        assert silence_at(watch, clock, 90, printed=5, ended=1) is None, "once"
        assert silence_at(watch, clock, 111, printed=5, ended=2) is None
        assert silence_at(watch, clock, 131, printed=5, ended=2) == Silence(20, stall=False, rendezvous=True, ended=2)


def test_both_at_once() -> None:
    watch, clock = watch_of(120, 120)
    assert silence_at(watch, clock, 0) is None
    assert silence_at(watch, clock, 121) == Silence(121, stall=True, rendezvous=True)


@pytest.mark.parametrize("off", [0, None])
def test_off(off: int | None) -> None:
    watch, clock = watch_of(off, off)
    assert all(silence_at(watch, clock, seconds) is None for seconds in (0, 1e9))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "has printed nothing"),
        (["", "x.py:3: UserWarning: slow"], "has printed nothing"),
        (
            ["GPU available: False", "Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4"],
            "is waiting in the rendezvous (MEMBER: 1/4)",
        ),
        (
            [
                "Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/4",
                "[W1122 17:30:05.1 socket.cpp:767] [c10d] The hostname of the client socket cannot be retrieved",
            ],
            "is waiting in the rendezvous (MEMBER: 2/4)",
        ),
        (
            [
                "Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4",
                "-" * 100,
                "distributed_backend=gloo",
                "All distributed processes registered. Starting with 4 processes",
            ],
            "has passed the rendezvous, and printed last: All distributed processes registered. Starting with 4 "
            "processes",
        ),
        (
            ["Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/4", "step 1"],
            "has passed the rendezvous, and printed last: step 1",
        ),
        (["loading", ""], "has printed last: loading"),
        (["x" * 200], f"has printed last: {'x' * 100}…"),
    ],
)
def test_progress(lines: list[str], expected: str) -> None:
    assert stall.describe_progress(lines) == expected


# ------------------------------------------------------------------------------------------------------------ gathering


def test_gather(tmp_path: Path) -> None:
    def answer(host: str, _request: Mapping[str, Any]) -> Answer:
        return unreachable(host) if host == "node2" else reply_of("numbers", host)

    found = stall.gather_stacks(FakeGang(topology_of(3), call_stacks=answer), tmp_path / "runs" / "stacks")  # type: ignore[arg-type]
    assert found.folder == tmp_path / "runs" / "stacks"
    assert {host: len(processes) for host, processes in found.processes.items()} == {"node0": 2, "node1": 2}
    assert found.errors == {"node2": "is unreachable: Connection timed out"}
    assert found.ports == dict.fromkeys(("node0", "node1"), 47011)
    files = {path.name: path.read_text() for path in found.folder.iterdir()}
    assert sorted(files) == ["rank0-node0.txt", "rank1-node1.txt", "rank2-node2.txt"]
    assert files["rank2-node2.txt"] == "is unreachable: Connection timed out\n"
    assert files["rank1-node1.txt"].count("==== process ") == 2
    assert "_new_process_group_helper" in files["rank1-node1.txt"]


def test_gather_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file in the way")
    gang = FakeGang(topology_of(1), call_stacks=lambda host, request: reply_of("mesh", host))
    found = stall.gather_stacks(gang, tmp_path / "stacks")  # type: ignore[arg-type]
    assert found.folder is None
    assert len(found.processes["node0"]) == 1


# ----------------------------------------------------------------------------------------------------------- explaining

REACHED = {"failed": {}, "master": None, "taken": None, "trips": [50, {}], "mtu": 1500}


def explained(
    case: str, count: int, logs: Mapping[str, bytes] | None = None, reach: Mapping[str, Mapping[str, Any]] | None = None
) -> Verdict:
    """What is said of a real job on the first ``count`` nodes, with other logs or nodes that cannot connect."""
    topology = topology_of(count)
    found = Stacks(Path("STACKS"), ports={node.host: 47011 for node in topology.nodes})
    texts = {}
    for node in topology.nodes:
        found.processes[node.host] = parse(*reply_of(case, node.host))
        texts[node.host] = Log(logs[node.host]) if logs and node.host in logs else log_of(case, node.host)
    replies = {**dict.fromkeys(texts, REACHED), **(reach or {})}
    gang = FakeGang(topology, try_connections=lambda host, _request: (dict(replies[host]), b""))
    verdict = stall.explain(topology, found, texts, gang)  # type: ignore[arg-type]
    end = "; what every rank is doing: STACKS"
    assert verdict.sentence.endswith(end)
    return dataclasses.replace(verdict, sentence=verdict.sentence.removesuffix(end))


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
    deaf = {host: {**REACHED, "failed": {"node1": "no answer"}} for host in ("node0", "node2")}
    verdict = explained("mesh", 3, reach=deaf)
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
    gang: FakeGang | None = None,
    seconds: float = 0,
) -> Verdict:
    """What is said of nodes that do this; a string says why nothing is known of one."""
    topology = topology_of(len(processes))
    hosts = [node.host for node in topology.nodes]
    found = Stacks(
        None,
        {host: one for host, one in zip(hosts, processes, strict=True) if not isinstance(one, str)},
        {host: one for host, one in zip(hosts, processes, strict=True) if isinstance(one, str)},
        ports=dict.fromkeys(hosts, 47011),
        seconds=seconds,
    )
    texts = {host: Log((logs or {}).get(rank, b"")) for rank, host in enumerate(hosts)}
    return stall.explain(topology, found, texts, gang)  # type: ignore[arg-type]


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
    gang = FakeGang(topology_of(2), try_connections=lambda host, request: (dict(REACHED), b""))
    assert said(processes, gang=gang).sentence == (
        "all ranks wait in all_reduce at train.py:3; all nodes can connect to each other"
    )
    assert said(processes).sentence == "all ranks wait in all_reduce at train.py:3"
    deaf = FakeGang(topology_of(2), try_connections=lambda host, request: unreachable(host))
    assert said(processes, gang=deaf).sentence == "all ranks wait in all_reduce at train.py:3"
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
    gang = FakeGang(topology_of(2), try_connections=lambda host, request: (dict(REACHED), b""))
    verdict = said(processes, gang=gang)
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
    topology = topology_of(2)
    missing = {"node0": "/opt/thunderhead/tools/env/bin/py-spy"}
    found = Stacks(None, {"node0": unknown(), "node1": unknown()}, missing=missing)
    logs = {"node0": Log(announced((0, 2))), "node1": Log(b"loading\n")}
    assert stall.explain(topology, found, logs, None) == Verdict(  # type: ignore[arg-type]
        True,
        False,
        "the rendezvous does not complete: rank 1 (node1) never came to it, but is in state S, with a stack that could "
        "not be taken; rank 0 (node0) waits in Lightning's rendezvous; if more time is all that is needed, raise "
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


def test_errors_have_no_name_in_front() -> None:
    gang = FakeGang(
        topology_of(1), call_stacks=lambda host, request: NodeError(host, "does not run job job-1 any more")
    )
    assert stall.gather_stacks(gang, Path("/dev/null/x")).errors == {"node0": "does not run job job-1 any more"}  # type: ignore[arg-type]


def launched(nodes: list[LocalNode], folder: Path, script: str) -> tuple[Launch, dict[str, Log]]:
    """Start a job on two nodes, with functions that have the names of torch's, and return what its ranks have said."""
    packages = folder / "lib" / "site-packages"
    collectives = packages / "torch" / "distributed" / "distributed_c10d.py"
    collectives.parent.mkdir(parents=True)
    waits = "    print('ready', flush=True)\n    time.sleep(600)\n"
    collectives.write_text(f"import time\n\n\ndef all_reduce():\n{waits}\ndef init_process_group():\n{waits}")
    path = f"import sys\nsys.path.append('{packages}')\nfrom torch.distributed import distributed_c10d\n"
    for node in nodes:
        (node.directory / "tools" / "env" / "bin" / "py-spy").symlink_to(Path(sys.executable).parent / "py-spy")
    launch = gang_of(nodes, code(folder / "code", path + script))
    launch.prepare()
    launch.start()
    logs = [node.job_dir() / "log" for node in nodes]
    until(lambda: all(log.exists() and b"ready" in log.read_bytes() for log in logs))
    until(lambda: all((node.job_dir() / "spec.json").exists() for node in nodes))
    return launch, {node.host: Log(log.read_bytes()) for node, log in zip(nodes, logs, strict=True)}


def test_real_nodes(nodes: list[LocalNode], tmp_path: Path) -> None:
    """A job of two nodes, looked into from end to end."""
    launch, texts = launched(nodes, tmp_path, "distributed_c10d.all_reduce()\n")
    found = stall.gather_stacks(launch.gang, tmp_path / "stacks")
    assert stall.explain(launch.gang.topology, found, texts, launch.gang) == Verdict(  # type: ignore[arg-type]
        False,
        True,
        "all ranks wait in all_reduce at train.py:4; all nodes can connect to each other; what every rank is doing: "
        f"{tmp_path}/stacks",
    )


@pytest.mark.parametrize(("prepares", "is_open"), [("while True: pass", True), ("time.sleep(600)", False)])
def test_a_real_rank_0_that_prepares(prepares: str, is_open: bool, nodes: list[LocalNode], tmp_path: Path) -> None:
    prepare = f"import time\n\ndef prepare():\n    print('ready', flush=True)\n    {prepares}\n"
    launch, texts = launched(nodes, tmp_path, prepare + by_rank("prepare()", "distributed_c10d.init_process_group()"))
    found = stall.gather_stacks(launch.gang, tmp_path / "stacks", seconds=2)
    verdict = stall.explain(launch.gang.topology, found, texts, launch.gang)  # type: ignore[arg-type]
    assert (verdict.rendezvous, verdict.open) == (True, is_open)
    words = ", and works (" if is_open else "rank 0 (node0) never came to it, but is in prepare at train.py:8; "
    assert words in verdict.sentence
