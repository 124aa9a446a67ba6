# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import dataclasses
import time

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.diagnosis.parse_stacks import (
    WAITING,
    Frame,
    Process,
    activity,
    members,
)
from stacks_of_jobs import processes_of

PACKAGES = "/opt/thunderhead/env/lib/python3.11/site-packages"
WORK = "/opt/thunderhead/jobs/20261122-173000-train-1a2b/work"


def doing(case: str, host: str) -> list[tuple[int | None, str, str, bool]]:
    processes = processes_of(case, host)
    found = [(rank.local_rank, activity(rank, processes)) for rank in members(processes)]
    return [(local_rank, one.kind, one.description, one.kind in WAITING) for local_rank, one in found]


@pytest.mark.parametrize(
    ("case", "host", "expected"),
    [
        ("missing", "node0", [(None, "rendezvous", "in init_process_group", True)]),
        ("missing", "node1", [(None, "rendezvous", "in init_process_group", True)]),
        ("missing", "node2", [(None, "running", "in prepare at train.py:7", False)]),
        ("mesh", "node0", [(None, "collective", "in barrier at train.py:7", True)]),
        ("reduce", "node0", [(None, "collective", "in all_reduce at train.py:15", True)]),
        ("reduce", "node1", [(None, "running", "in load at train.py:8", False)]),
        ("torchrun-static", "node0", [(None, "rendezvous", "in torchrun's rendezvous", True)]),
        ("torchrun-static", "node1", [(None, "rendezvous", "in torchrun's rendezvous", True)]),
        ("torchrun-c10d", "node0", [(None, "rendezvous", "in torchrun's rendezvous", True)]),
        (
            "numbers",
            "node1",
            [
                (None, "rendezvous", "in init_process_group", True),
                (1, "rendezvous", "in init_process_group", True),
            ],
        ),
        (
            "backward",
            "node0",
            [
                (None, "backward", "in backward at train.py:28", True),
                (1, "backward", "in backward at train.py:28", True),
            ],
        ),
        (
            "backward",
            "node1",
            [
                (None, "running", "in Model.training_step at train.py:17", False),
                (1, "running", "in Model.training_step at train.py:17", False),
            ],
        ),
        ("loader", "node0", [(None, "backward", "in backward at train.py:28", True)]),
        (
            "loader",
            "node1",
            [
                (
                    None,
                    "loader",
                    "in the data loader at train.py:28, whose worker is in Slow.__getitem__ at train.py:9",
                    False,
                )
            ],
        ),
    ],
)
def test_what_real_jobs_were_doing(case: str, host: str, expected: list[tuple[int | None, str, str, bool]]) -> None:
    assert doing(case, host) == expected


def process(pid: int, parent: int = 1, local_rank: int | None = None, python: bool = True, stack: str = "") -> Process:
    return Process(pid, parent, local_rank, "S", python, stack)


def stack(*frames: str, state: str = "idle") -> str:
    calls = "".join(f"    {frame}\n" for frame in frames)
    return f'==== process 7\nProcess 7: python\nPython v3.11.2\n\nThread 7 ({state}): "MainThread"\n{calls}'


def test_ranks_that_torchrun_started() -> None:
    torchrun = process(1)
    ranks = [process(2, 1, 1), process(3, 1, 0)]
    workers = [process(4, 2, 1), process(5, 3, 0)]
    tool = process(6, 3, 0, python=False)
    assert members([torchrun, *ranks, *workers, tool]) == [ranks[1], ranks[0]]


def test_ranks_that_lightning_started() -> None:
    main, rank = process(1), process(2, 1, 1)
    workers = [process(3, 1), process(4, 2, 1)]
    daemon = process(5, 99)
    assert members([main, rank, *workers, daemon]) == [main, rank]


def test_ranks_that_torch_multiprocessing_spawned() -> None:
    calls = stack(f"_wrap ({PACKAGES}/torch/multiprocessing/spawn.py:90)", "<module> (<string>:1)")
    main, tracker = process(1), process(2, 1)
    ranks = [process(3, 1, stack=calls), process(4, 1, stack=calls)]
    assert members([main, tracker, *ranks]) == ranks


def test_a_shell_around_the_script() -> None:
    shell, main = process(1, python=False), process(2, 1)
    assert members([shell, main]) == [main]
    assert members([shell]) == []
    assert members([]) == []


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([f"main ({WORK}/src/train.py:3)"], "in main at src/train.py:3"),
        (["main (/home/me/train.py:3)"], "in main at /home/me/train.py:3"),
        (
            [
                "SSLSocket.recv (/usr/lib/python3.11/ssl.py:1295)",
                f"download ({WORK}/data.py:9)",
                f"<module> ({WORK}/a.py:1)",
            ],
            "in SSLSocket.recv (ssl.py:1295), called at data.py:9",
        ),
        (
            [f"_save ({PACKAGES}/torch/serialization.py:966)", "<module> (/env/lib/python3.11/site-packages/go.py:1)"],
            "in _save (torch/serialization.py:966)",
        ),
        (
            ["Condition.wait (/usr/lib/python3.11/threading.py:327)", f"close ({PACKAGES}/wandb/run.py:9)"],
            "at the end of the script, where Python runs exit handlers and waits for threads, in Condition.wait "
            "(threading.py:327)",
        ),
        (
            [
                "_compile_bytecode (<frozen importlib._bootstrap_external>:729)",
                "_find_and_load (<frozen importlib._bootstrap>:1178)",
                f"<module> ({PACKAGES}/torch/_dynamo/variables/functions.py:98)",
                "_find_and_load (<frozen importlib._bootstrap>:1178)",
                f"<module> ({WORK}/train.py:3)",
            ],
            "still importing at train.py:3",
        ),
        ([f"barrier ({WORK}/train.py:3)"], "in barrier at train.py:3"),
        (
            [
                f"_verify_param_shape_across_processes ({PACKAGES}/torch/distributed/utils.py:281)",
                f"DistributedDataParallel.__init__ ({PACKAGES}/torch/nn/parallel/distributed.py:835)",
                f"<module> ({WORK}/train.py:3)",
            ],
            "in _verify_param_shape_across_processes at train.py:3",
        ),
        ([f"<lambda> ({WORK}/a folder (copy)/train.py:3)"], "in <lambda> at a folder (copy)/train.py:3"),
    ],
)
def test_descriptions(frames: list[str], expected: str) -> None:
    assert activity(process(7, stack=stack(*frames))).description == expected


def test_a_busy_backward_waits_for_nobody() -> None:
    frame = f"_engine_run_backward ({PACKAGES}/torch/autograd/graph.py:979)"
    assert activity(process(7, stack=stack(frame))).kind in WAITING
    assert activity(process(7, stack=stack(frame, state="active"))).kind not in WAITING


def test_the_main_thread_counts() -> None:
    text = stack(f"main ({WORK}/train.py:3)").replace(
        "Thread 7 ", 'Thread 9 (active): "Thread-1"\n    run (/usr/lib/python3.11/threading.py:982)\nThread 7 '
    )
    assert activity(process(7, stack=text)).description == "in main at train.py:3"
    unnamed = text.replace(': "MainThread"', "").replace(': "Thread-1"', "")
    assert process(7, stack=unnamed).main_thread[1][0].name == "run"


def test_a_stack_that_could_not_be_taken() -> None:
    text = "==== process 7\npy-spy: Permission denied\nState:\tD (disk sleep)\n"
    found = activity(dataclasses.replace(process(7, stack=text), state="D"))
    assert found.kind == "unknown"
    assert found.description == "in state D, with a stack that could not be taken"


def test_frames() -> None:
    frame = Frame("Trainer.fit", f"{PACKAGES}/pytorch_lightning/trainer/trainer.py", 584)
    assert (frame.name, frame.place, frame.is_library) == ("fit", "pytorch_lightning/trainer/trainer.py:584", True)
    assert not Frame("main", f"{WORK}/train.py", 3).is_library


def test_stacks_cannot_keep_a_reader_busy() -> None:
    """Four times the text takes about four times as long, whatever stands in it."""
    lines = "\n".join(["    " + " (" * 4000, "    x (" + ":1" * 4000 + ")", "Thread 1 (" * 800] * 100)

    def seconds(text: str) -> float:
        began = time.process_time()
        activity(Process(7, 1, None, "S", True, text))
        return time.process_time() - began

    once = min(seconds(lines) for _time in range(3))
    assert seconds("\n".join([lines] * 4)) < 16 * once
