# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.settings import NodeSettings
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.cluster.topology import rank_nodes
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.explain_failure import (
    Explanation,
    LogEnd,
    explain,
    read_log_end,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.diagnosis.rank_ending import RankEnding
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.output.rank_log import RankLog

TRACEBACK = ["Traceback (most recent call last):", '  File "train.py", line 1, in <module>', "    main()", "    ~~~~^^"]


def output_of(script: str) -> list[str]:
    """What a real Python prints when it runs ``script``, as lines."""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(script)], stderr=subprocess.STDOUT, stdout=subprocess.PIPE
    )
    return result.stdout.decode().split("\n")


def test_what_an_earlier_attempt_printed_is_no_cause() -> None:
    before = ["Traceback (most recent call last):", '  File "train.py", line 1', "ValueError: of the first"]
    lines = [*before, "thunderhead: attempt 2 goes on from a.ckpt, 2026-11-30 21:51:25 UTC", "epoch 3"]
    assert (reason_of(before), reason_of(lines)) == ("ValueError: of the first", "epoch 3")


def reason_of(lines: Sequence[str]) -> str:
    return read_log_end(lines).reason


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
    assert reason_of(output_of(script)) == expected


@pytest.mark.parametrize(
    "script",
    [
        "import os, subprocess\nos.environ['PATH'] = ''\nsubprocess.check_output(['git', 'rev-parse', 'HEAD'])",
        "import subprocess\nsubprocess.run('git -C / rev-parse HEAD', shell=True, check=True)",
        "open('/nowhere/.git/HEAD')",
        "raise ValueError('/jobs/j/work: fatal: not a git repository (or any of the parent directories): .git')",
    ],
)
def test_a_script_that_asks_git_for_its_commit(script: str) -> None:
    """The cause says that .git does not travel."""
    assert reason_of(output_of(script)).endswith(
        " (the job's code has no .git, and a node may have no git; read the environment variable JOB_GIT_COMMIT "
        "instead)"
    )


def test_a_file_whose_name_begins_as_git_s() -> None:
    assert "JOB_GIT_COMMIT" not in reason_of(output_of("open('.github/conf')"))


def test_a_relative_import_of_a_script() -> None:
    """One that comes too late to be seen before the start."""
    assert reason_of(output_of("def main():\n    from . import net\nmain()")).endswith(
        " (start it as a module, as in -e module=pkg.train instead of -e script=pkg/train.py)"
    )


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
    assert reason_of([*TRACEBACK, "ValueError: the cause", *noise]) == "ValueError: the cause"


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
    assert reason_of(["epoch 1", "loss is nan, giving up", noise]) == "loss is nan, giving up"
    assert reason_of([noise]) == "it printed nothing"


def test_torch_writes_the_rank_in_front_of_every_line() -> None:
    lines = [f"[rank0]: {line}" for line in [*TRACEBACK, "RuntimeError: shapes differ"]]
    assert reason_of(["epoch 1", *lines, ""]) == "RuntimeError: shapes differ"


def test_two_local_ranks_fail_at_once() -> None:
    first = [f"[rank0]: {line}" for line in [*TRACEBACK, "ValueError: of rank 0"]]
    second = [f"[rank1]: {line}" for line in [*TRACEBACK, "ValueError: of rank 1"]]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    assert reason_of(mixed) == "ValueError: of rank 1"


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
    assert reason_of(lines) == "ValueError: broken image 17.png"
    assert reason_of([f"[rank0]: {line}" if line else "" for line in lines]) == "ValueError: broken image 17.png"


def test_a_tail_that_begins_inside_a_traceback() -> None:
    assert reason_of(["in <module>", "    main()", "ValueError: the cause"]) == "ValueError: the cause"


def test_a_traceback_that_was_cut_off() -> None:
    assert reason_of(["epoch 3", *TRACEBACK]) == "~~~~^^"


@pytest.mark.parametrize(
    ("exit_code", "signal_number", "expected"),
    [
        (1, None, "exited with code 1"),
        (0, None, "exited with code 0"),
        (137, 9, "was killed by SIGKILL"),
        (139, 11, "was killed by SIGSEGV"),
        (143, 15, "was killed by SIGTERM"),
        (163, 35, "was killed by signal 35"),
    ],
)
def test_how_it_ended(exit_code: int, signal_number: int | None, expected: str) -> None:
    assert RankEnding("failed", exit_code, signal_number).how == expected


# ------------------------------------------------------------------------------------------- log ends of real trainings


def log_of(name: str) -> str:
    """What torch 2.13 and Lightning 2.6 wrote when it happened; gloo, two nodes on one machine."""
    return (Path(__file__).parent / "log_ends" / f"{name}.log").read_text()


def log_end_of(name: str) -> LogEnd:
    return read_log_end(log_of(name).split("\n"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gloo-raised", "ValueError: bad batch"),
        ("lightning-two-ranks-raised", "ValueError: bad batch"),
        ("lightning-observer-raised", "ValueError: bad batch"),
        ("lightning-observer-killed", "its process of global rank 1 was killed by SIGKILL"),
        ("torchrun-raised", "ValueError: bad batch"),
        ("torchrun-killed", "its process of global rank 1 was killed by SIGKILL"),
        (
            "store-port-in-use",
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
            "port: 29723, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use (another "
            "process on this node has taken that port since the job began; if it is MASTER_PORT, set "
            "cluster_master_port in the inventory to a port that nothing else uses)",
        ),
        (
            "lightning-weights-only",
            "UnpicklingError: torch.load with weights_only refuses an object of type __main__.Config in the "
            "checkpoint, such as a hyperparameter; if you trust it, add -e "
            '\'{"env": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}}\', or call '
            "torch.serialization.add_safe_globals([Config]) before it is loaded",
        ),
        (
            "lightning-num-nodes",
            "RuntimeError: [enforce fail at /build/pytorch/third_party/gloo/gloo/context.cc:23] rank < size. 1 vs 1 "
            "(num_nodes or devices in its Trainer disagrees with the job; use "
            'num_nodes=int(os.environ["NUM_NODES"]))',
        ),
    ],
)
def test_causes(name: str, expected: str) -> None:
    log_end = log_end_of(name)
    assert (log_end.reason, log_end.victim) == (expected, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gloo-closed-by-peer", "Connection closed by peer [127.0.0.1]:4481."),
        ("gloo-reset-by-peer", "Read error [127.0.0.1]:10648: Connection reset by peer."),
        ("gloo-timed-out", "Timed out waiting 5000ms for recv operation to complete"),
        ("lightning-two-ranks-killed", "Connection closed by peer [127.0.0.1]:56532."),
        ("torchrun-victim", "Connection closed by peer [127.0.0.1]:5256."),
        ("store-lost", "Failed to recv, got 0 bytes. Connection was likely closed."),
        ("store-no-clients", "Timed out after 13 seconds waiting for clients. 1/2 clients joined."),
        ("store-no-server", "The client socket has timed out after 12000ms while trying to connect to"),
    ],
)
def test_victims(name: str, expected: str) -> None:
    log_end = log_end_of(name)
    assert log_end.victim
    assert expected in log_end.reason


@pytest.mark.parametrize(
    "lines",
    [
        [
            "step 12",
            "[rank1]:[E1122 17:30:05.1 ProcessGroupNCCL.cpp:621] Some NCCL operations have failed or timed out.",
            "[rank1]:[E1122 17:30:05.2 ProcessGroupNCCL.cpp:627] [Rank 1] we are taking the entire process down.",
            "terminate called after throwing an instance of 'c10::DistBackendError'",
            "  what():  [PG ID 0 PG GUID 0(default_pg) Rank 1] Process group watchdog thread terminated with x",
            "Exception raised from checkTimeout at ProcessGroupNCCL.cpp:632 (most recent call first):",
            "frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f5a9616c1b6 in libc10.so)",
            "",
        ],
        [
            "[rank3]: Traceback (most recent call last):",
            '[rank3]:   File "train.py", line 3, in <module>',
            "[rank3]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1275, internal error",
            "[rank3]: ncclInternalError: Internal check failed.",
            "[rank3]: Last error:",
            "[rank3]: Net : Connection closed by remote peer gpu-2<50260>",
        ],
        [
            "[rank3]:[F1122 17:30:05.3 ProcessGroupNCCL.cpp:1554] [Rank 3] Terminating the process after attempting to "
            "dump debug info, due to ProcessGroupNCCL watchdog hang.",
        ],
    ],
)
def test_victims_of_nccl(lines: list[str]) -> None:
    assert read_log_end(lines).victim


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_a_process_group_that_was_left_to_the_exit_of_python(launcher: str) -> None:
    lines = ["epoch 9", "terminate called without an active exception"]
    if launcher:
        lines += log_of("torchrun-killed").replace("exitcode  : -9", "exitcode  : -6").splitlines()
    log_end = read_log_end(lines)
    assert not log_end.victim
    assert log_end.reason == (
        f"{'its process of global rank 1 was killed by SIGABRT: ' if launcher else ''}"
        "terminate called without an active exception (a C++ thread still ran when the process ended: probably one of "
        "torch.distributed's, while Python exited; call torch.distributed.destroy_process_group() at the end of the "
        "script; without Lightning, delete the model and its trainer before it (del, then gc.collect()): they hold the "
        "process group)"
    )


def test_a_warning_of_torch_alone_makes_no_victim() -> None:
    warning = "[W1122 21:12:39.0 TCPStore.cpp:138] [c10d] recvValue failed on SocketImpl: Connection reset by peer"
    assert not read_log_end([*TRACEBACK, "ValueError: the cause", warning]).victim
    assert not read_log_end(["step 1", warning]).victim
    assert not read_log_end([*TRACEBACK, "ConnectionResetError: [Errno 104] Connection reset by peer"]).victim
    assert not read_log_end([*TRACEBACK, "torch.distributed.DistBackendError: NCCL error: unhandled cuda error"]).victim


PEER_GONE = "RuntimeError: Connection closed by peer [198.18.0.1]:4481"
HANDLED = ["", "During handling of the above exception, another exception occurred:", ""]


@pytest.mark.parametrize("prefix", ["", "[rank0]: "])
def test_what_happens_while_an_exception_is_handled(prefix: str) -> None:
    def prefixed(*lines: str) -> list[str]:
        return [f"{prefix}{line}" if line else "" for line in lines]

    teardown = prefixed(*TRACEBACK, "ValueError: the cause", *HANDLED, *TRACEBACK, PEER_GONE)
    assert (read_log_end(teardown).reason, read_log_end(teardown).victim) == ("ValueError: the cause", False)
    translated = prefixed(*TRACEBACK, PEER_GONE, *HANDLED, *TRACEBACK, "TrainingError: it did not work")
    assert read_log_end(translated).victim


def test_a_handled_exception_is_no_cause() -> None:
    lines = [*TRACEBACK, "ValueError: skipped one image", "epoch 2", *(f"[rank0]: {line}" for line in TRACEBACK)]
    assert read_log_end([*lines, f"[rank0]: {PEER_GONE}"]).victim
    assert read_log_end([*TRACEBACK, "ValueError: skipped one image", "epoch 2", *TRACEBACK, PEER_GONE]).victim


def test_tail_is_the_traceback() -> None:
    assert log_end_of("torchrun-raised").tail == [
        "Traceback (most recent call last):",
        '  File "/opt/thunderhead/jobs/20261122-173000-train-1a2b/work/plain.py", line 8, in <module>',
        '    if mode == "raise": raise ValueError("bad batch")',
        "                        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        "ValueError: bad batch",
    ]
    long = log_end_of("lightning-two-ranks-raised").tail
    assert (len(long), long[0], long[-1]) == (40, "Traceback (most recent call last):", "ValueError: bad batch")
    assert long[1] == "  …"
    assert read_log_end([f"step {number}" for number in range(30)]).tail == [
        f"step {number}" for number in range(20, 30)
    ]


def test_segmentation_fault_of_a_python_with_faulthandler() -> None:
    lines = output_of(
        "import faulthandler, os, signal\nfaulthandler.enable()\nprint('step 1', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    assert reason_of(lines) == "Fatal Python error: Segmentation fault"


# ------------------------------------------------------------------------------------------------------ the whole gang


def explained(tmp_path: Path, *ranks: tuple[RankEnding, str]) -> Explanation | None:
    """What is reported of a job; each rank's ending, and its log or the name of one."""
    settings = [NodeSettings(f"node{rank}", None, "/", 29500, "", {}) for rank in range(len(ranks))]
    located = {one.host: {"address": f"198.18.0.{rank}", "interface": "eth0"} for rank, one in enumerate(settings)}
    logs = {one.host: RankLog(tmp_path / one.host) for one in settings}
    for log, (_ending, text) in zip(logs.values(), ranks, strict=True):
        log.write((text if " " in text or not text else log_of(text)).encode(), 0)
        log.close()
    endings = {one.host: ending for one, (ending, _log) in zip(settings, ranks, strict=True)}
    return explain(rank_nodes(settings, located), endings, logs)


def sentence_of(tmp_path: Path, *ranks: tuple[RankEnding, str]) -> str:
    found = explained(tmp_path, *ranks)
    assert found is not None
    assert found.state == "failed"
    return found.sentence.replace(str(tmp_path), "LOGS")


def failed(seconds: float, exit_code: int = 1, **more: object) -> RankEnding:
    return RankEnding("failed", exit_code, seconds=seconds, arrived=seconds, **more)  # type: ignore[arg-type]


def killed(seconds: float, number: int, **more: object) -> RankEnding:
    return failed(seconds, 128 + number, signal=number, **more)


def stopped(seconds: float, stopping: float | None = None, because: str = "") -> RankEnding:
    return RankEnding("stopped", 143, 15, seconds, because=because, stopping=stopping, arrived=seconds)


def lost(arrived: float, note: str = "sent no heartbeat for 30 s") -> RankEnding:
    return RankEnding("lost", note=note, arrived=arrived)


def unknown(arrived: float, note: str) -> RankEnding:
    return RankEnding("lost", note=note, unknown=True, arrived=arrived)


GOOD = RankEnding("succeeded", 0, seconds=9, arrived=9)
VALUE_ERROR = "\n".join([*TRACEBACK, "ValueError: the cause"])
KEY_ERROR = "\n".join([*TRACEBACK, "KeyError: 'lr'"])
CLOSED = "\n".join([*TRACEBACK, PEER_GONE])
WHY = "rank 1 (node1) exited with code 1"


def test_all_is_well(tmp_path: Path) -> None:
    assert explained(tmp_path, (GOOD, ""), (GOOD, "")) is None


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # The victim's end can be heard of first.
        (
            [(failed(41.2), "gloo-closed-by-peer"), (failed(41.6), "gloo-raised")],
            "rank 1 (node1) exited with code 1 after 42 s: ValueError: bad batch; see LOGS/node1. Failed after it: "
            "rank 0 (node0)",
        ),
        (
            [(failed(7), "gloo-reset-by-peer"), (killed(8, 9), "step 3"), (stopped(9, 8, WHY), "")],
            "rank 1 (node1) was killed by SIGKILL after 8 s: step 3; see LOGS/node1. Failed after it: rank 0 (node0)",
        ),
        (
            [(failed(7), CLOSED), (killed(8, 9, oom=2), "step 3")],
            "rank 1 (node1) was killed by SIGKILL because its node ran out of memory (the kernel's OOM killer ended "
            "2 processes on this node meanwhile) after 8 s: step 3; see LOGS/node1. Failed after it: rank 0 (node0)",
        ),
        (
            [(failed(7), CLOSED), (failed(8, oom=1), CLOSED)],
            "rank 1 (node1) exited with code 1 (the kernel's OOM killer ended 1 process on this node meanwhile) after "
            "8 s: RuntimeError: Connection closed by peer [198.18.0.1]:4481; see LOGS/node1. Failed after it: rank "
            "0 (node0)",
        ),
        (
            [(failed(7), CLOSED), (killed(12, 9), "lightning-observer-raised")],
            "rank 1 (node1) was ended by Lightning after 12 s: ValueError: bad batch; see LOGS/node1. Failed "
            "after it: rank 0 (node0)",
        ),
        (
            [(failed(7), CLOSED), (killed(12, 9, oom=1), "lightning-observer-killed")],
            "rank 1 (node1) was ended by Lightning because its node ran out of memory (the kernel's OOM killer ended 1 "
            "process on this node meanwhile) after 12 s: its process of global rank 1 was killed by SIGKILL; see "
            "LOGS/node1. Failed after it: rank 0 (node0)",
        ),
        (
            [(failed(7), "torchrun-victim"), (failed(8), "torchrun-killed"), (killed(6, 15), "step 3")],
            "rank 1 (node1) exited with code 1 after 8 s: its process of global rank 1 was killed by SIGKILL; see "
            "LOGS/node1. Failed after it: rank 2 (node2), rank 0 (node0)",
        ),
        (
            [(killed(7, 6), "  what():  [Rank 0] NCCL watchdog thread terminated with x"), (killed(8, 11), "step 3")],
            "rank 1 (node1) was killed by SIGSEGV after 8 s: step 3; see LOGS/node1. Failed after it: rank 0 (node0)",
        ),
        (
            [(stopped(3), ""), (RankEnding("failed", seconds=0.1, note="did not start: no such file", arrived=2), "")],
            "rank 1 (node1) did not start: no such file after 0 s; see LOGS/node1",
        ),
        # Several causes, each in its sentence.
        (
            [(failed(7), VALUE_ERROR), (failed(6), KEY_ERROR), (failed(8), CLOSED)],
            "rank 1 (node1) exited with code 1 after 6 s: KeyError: 'lr'; see LOGS/node1\n"
            "rank 0 (node0) exited with code 1 after 7 s: ValueError: the cause; see LOGS/node0. Failed after it: "
            "rank 2 (node2)",
        ),
        # The same one everywhere.
        (
            [(failed(3 + rank / 10), VALUE_ERROR) for rank in range(9)],
            "rank 0 (node0) exited with code 1 after 3 s: ValueError: the cause; see LOGS/node0. Failed after it: "
            "rank 1 (node1), rank 2 (node2), rank 3 (node3), rank 4 (node4), rank 5 (node5) and 3 more",
        ),
        # Nobody says why.
        (
            [(failed(7), CLOSED), (stopped(8, 7.5, "rank 0 (node0) exited with code 1"), "step 3")],
            "rank 0 (node0) exited with code 1 after 7 s: RuntimeError: Connection closed by peer [198.18.0.1]:4481; "
            "see LOGS/node0\nIt lost rank 1 (node1), where a process ended and printed no error; see LOGS/node1",
        ),
        (
            [(failed(7), CLOSED), (RankEnding("succeeded", 0, seconds=6.6, arrived=6.6), "")],
            "rank 0 (node0) exited with code 1 after 7 s: RuntimeError: Connection closed by peer [198.18.0.1]:4481; "
            "see LOGS/node0\nIt lost rank 1 (node1), which had ended with code 0 after 7 s; see LOGS/node1",
        ),
        # A lost node.
        (
            [
                (stopped(41, 40, "the node of rank 1 (node1) sent no heartbeat for 30 s"), "x y"),
                (lost(40), "step 3"),
            ],
            "rank 1 (node1) sent no heartbeat for 30 s; see LOGS/node1",
        ),
        (
            [(failed(7), VALUE_ERROR), (lost(37), "step 3")],
            "rank 0 (node0) exited with code 1 after 7 s: ValueError: the cause; see LOGS/node0. Failed after it: "
            "rank 1 (node1)",
        ),
        (
            [(failed(7), CLOSED), (lost(37), "step 3")],
            "rank 1 (node1) sent no heartbeat for 30 s; see LOGS/node1. Failed after it: rank 0 (node0)",
        ),
        # Only the gang's own watch knows.
        (
            [(stopped(41, 40, "the node of rank 1 (node1) sent no heartbeat for 30 s"), ""), (GOOD, "")],
            "the node of rank 1 (node1) sent no heartbeat for 30 s",
        ),
        (
            [
                (stopped(9, 8, WHY), ""),
                (unknown(30, "was asked to stop, and may still run there"), ""),
            ],
            "rank 1 (node1) exited with code 1\nrank 1 (node1) was asked to stop, and may still run there",
        ),
        # It failed first, and was stopped then.
        (
            [(failed(7), VALUE_ERROR), (stopped(9, 8), "")],
            "rank 0 (node0) exited with code 1 after 7 s: ValueError: the cause; see LOGS/node0",
        ),
    ],
)
def test_the_cause(tmp_path: Path, ranks: Sequence[tuple[RankEnding, str]], expected: str) -> None:
    assert sentence_of(tmp_path, *ranks) == expected


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([(stopped(9, 8), ""), (stopped(9.2, 8.1), "")], "on request after 8 s"),
        ([(stopped(9), "")], "on request"),
        # A rank that was not asked to stop yet lost those that were.
        ([(stopped(9, 8), ""), (failed(8.2), CLOSED)], "on request after 8 s"),
        ([(stopped(9, 8), ""), (failed(8.2), VALUE_ERROR)], "on request after 8 s"),
        ([(stopped(9, 8), ""), (stopped(9, 8, "the job was stopped"), "")], "on request after 8 s"),
        (
            [
                (stopped(9, 8), ""),
                (unknown(30, "was asked to stop, and may still run there"), ""),
            ],
            "on request after 8 s\nrank 1 (node1) was asked to stop, and may still run there",
        ),
    ],
)
def test_stopped_on_request(tmp_path: Path, ranks: Sequence[tuple[RankEnding, str]], expected: str) -> None:
    assert explained(tmp_path, *ranks) == Explanation(expected, [], "stopped")


def test_the_tail_is_of_the_cause(tmp_path: Path) -> None:
    found = explained(tmp_path, (failed(3), CLOSED), (failed(4), VALUE_ERROR))
    assert found is not None
    assert found.tail == [*TRACEBACK, "ValueError: the cause"]


def test_a_long_message_is_cut(tmp_path: Path) -> None:
    text = sentence_of(tmp_path, (failed(3), "a " * 4000))
    assert len(text) < 700
    assert "a…; see" in text or "a …; see" in text


def test_300_ranks_that_all_lost_one(tmp_path: Path) -> None:
    ranks = [(failed(7 + rank / 1000), CLOSED) for rank in range(299)]
    text = sentence_of(tmp_path, *ranks, (killed(7.5, 9), "step 3"))
    assert text == (
        "rank 299 (node299) was killed by SIGKILL after 8 s: step 3; see LOGS/node299. Failed after it: rank 0 "
        "(node0), rank 1 (node1), rank 2 (node2), rank 3 (node3), rank 4 (node4) and 294 more"
    )
