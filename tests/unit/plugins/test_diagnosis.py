import subprocess
import sys
import textwrap

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils.diagnosis import how_it_ended, reason, sentence

TRACEBACK = ["Traceback (most recent call last):", '  File "train.py", line 1, in <module>', "    main()", "    ~~~~^^"]


def output_of(script: str) -> list[str]:
    """What a real Python prints when it runs ``script``, as lines."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(script)], stderr=subprocess.STDOUT, stdout=subprocess.PIPE
    )
    return result.stdout.decode().split("\n")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("raise ValueError('bad learning rate')", "ValueError: bad learning rate"),
        ("raise KeyError('lr')", "KeyError: 'lr'"),
        ("assert False", "AssertionError"),
        ("raise SystemExit('no data here')", "no data here"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("if True:\npass", "IndentationError: expected an indented block after 'if' statement on line 1"),
        ("raise ValueError('first line\\n\\nsecond line\\n  third')", "ValueError: first line"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("print('all is well so far')", "all is well so far"),
        ("pass", "it printed nothing"),
        ("print('\\n\\n  \\n')", "it printed nothing"),
        (
            """
            try:
                {}["a"]
            except KeyError as error:
                raise RuntimeError("no such batch") from error
            """,
            "RuntimeError: no such batch",
        ),
        (
            """
            try:
                {}["a"]
            except KeyError:
                int("x")
            """,
            "ValueError: invalid literal for int() with base 10: 'x'",
        ),
        (
            """
            import traceback
            try:
                1 / 0
            except ZeroDivisionError:
                traceback.print_exc()
            raise MemoryError("the one that mattered")
            """,
            "MemoryError: the one that mattered",
        ),
        (
            """
            class Leaky:
                def __del__(self):
                    raise ImportError("sys.meta_path is None, Python is likely shutting down")
            leaky = Leaky()
            raise ValueError("the cause")
            """,
            "ValueError: the cause",
        ),
        (
            """
            import threading
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()
            """,
            "ZeroDivisionError: division by zero",
        ),
        (
            """
            def fail(): raise ValueError("inner cause")
            try:
                fail()
            except ValueError as error:
                raise ExceptionGroup("two tasks", [error]) from None
            """,
            "ValueError: inner cause",
        ),
        ("raise ExceptionGroup('two tasks', [ValueError(1)])", "ExceptionGroup: two tasks (1 sub-exception)"),
    ],
)
def test_what_a_real_python_prints(script: str, expected: str) -> None:
    assert reason(output_of(script)) == expected


@pytest.mark.parametrize(
    "noise",
    [
        ["[rank1]:[W1122 17:30:05.123 ProcessGroupNCCL.cpp:1538] Warning: process group has NOT been destroyed"],
        ["[W1122 17:30:05.123456789 socket.cpp:767] [c10d] The hostname of the client socket cannot be retrieved"],
        ["/env/lib/python3.11/site-packages/lightning/trainer.py:76: The 'train_dataloader' has few workers"],
        ["/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: leaked", "  warnings.warn('x')"],
        ["[rank: 1] Child process with PID 7 terminated with code 1. Forcefully terminating all other processes"],
        ["", "   ", ""],
    ],
)
def test_noise_after_the_traceback(noise: list[str]) -> None:
    assert reason([*TRACEBACK, "ValueError: the cause", *noise]) == "ValueError: the cause"


@pytest.mark.parametrize(
    "noise",
    [
        "[rank1]:[W1122 17:30:05.123 ProcessGroupNCCL.cpp:1538] Warning: process group has NOT been destroyed",
        "[W1122 17:30:05.123456789 socket.cpp:767] [c10d] The hostname of the client socket cannot be retrieved",
        "[E1122 17:30:05.123456789 ProcessGroupGloo.cpp:143] Rank 0 failed",
        "/env/lib/python3.11/site-packages/lightning/trainer.py:76: The 'train_dataloader' has few workers",
        "train.py:3: UserWarning: slow",
        "  warnings.warn(",
        "",
    ],
)
def test_noise_without_a_traceback(noise: str) -> None:
    assert reason(["epoch 1", "loss is nan, giving up", noise]) == "loss is nan, giving up"
    assert reason([noise]) == "it printed nothing"


def test_torch_writes_the_rank_in_front_of_every_line() -> None:
    lines = [f"[rank0]: {line}" for line in [*TRACEBACK, "RuntimeError: shapes differ"]]
    assert reason(["epoch 1", *lines, ""]) == "RuntimeError: shapes differ"


def test_two_local_ranks_fail_at_once() -> None:
    first = [f"[rank0]: {line}" for line in [*TRACEBACK, "ValueError: of rank 0"]]
    second = [f"[rank1]: {line}" for line in [*TRACEBACK, "ValueError: of rank 1"]]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    assert reason(mixed) == "ValueError: of rank 1"


def test_a_data_loader_passes_on_what_its_worker_printed() -> None:
    lines = [
        *TRACEBACK,
        "ValueError: Caught ValueError in DataLoader worker process 0.",
        "Original Traceback (most recent call last):",
        '  File "worker.py", line 349, in _worker_loop',
        "    data = fetcher.fetch(index)",
        "ValueError: broken image 17.png",
        "",
    ]
    assert reason(lines) == "ValueError: broken image 17.png"
    assert reason([f"[rank0]: {line}" if line else "" for line in lines]) == "ValueError: broken image 17.png"


def test_a_tail_that_begins_inside_a_traceback() -> None:
    assert reason(["in <module>", "    main()", "ValueError: the cause"]) == "ValueError: the cause"


def test_a_traceback_that_was_cut_off() -> None:
    assert reason(["epoch 3", *TRACEBACK]) == "~~~~^^"


@pytest.mark.parametrize(
    ("exit_code", "signal_number", "expected"),
    [
        (1, None, "exited with code 1"),
        (0, None, "exited with code 0"),
        (137, 9, "was killed by SIGKILL (often the kernel's, for want of memory: see dmesg there)"),
        (139, 11, "was killed by SIGSEGV"),
        (143, 15, "was killed by SIGTERM"),
        (163, 35, "was killed by signal 35"),
    ],
)
def test_how_it_ended(exit_code: int, signal_number: int | None, expected: str) -> None:
    assert how_it_ended(exit_code, signal_number) == expected


@pytest.mark.parametrize(("seconds", "after"), [(41.6, " after 42 s"), (0.2, " after 0 s"), (None, "")])
def test_sentence(seconds: float | None, after: str) -> None:
    lines = [*TRACEBACK, "ValueError: the cause"]
    assert sentence(3, "gpu-2", "exited with code 1", seconds, lines, "runs/id/logs/rank3-gpu-2.log") == (
        f"rank 3 (gpu-2) exited with code 1{after}: ValueError: the cause; see runs/id/logs/rank3-gpu-2.log"
    )
