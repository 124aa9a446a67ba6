# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read py-spy's output and describe what a rank is doing."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

RENDEZVOUS, COLLECTIVE, BACKWARD, LOADER, IMPORT, RUNNING, UNKNOWN = (
    *("rendezvous", "collective", "backward", "loader", "import", "running", "unknown"),
)
"""Kinds of activity."""
WAITING = (RENDEZVOUS, COLLECTIVE, BACKWARD)
"""In these, a backward pass that is idle, a rank waits for others."""

# In torch 2.13: distributed/distributed_c10d.py, rendezvous.py, elastic/agent/server/api.py, elastic/rendezvous/.
_RENDEZVOUS = {
    *("init_process_group", "new_group", "_new_process_group_helper", "rendezvous", "_create_c10d_store"),
    *("_store_based_barrier", "_rendezvous", "next_rendezvous"),
}
_COLLECTIVES = {
    *("all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_reduce"),
    *("all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "batch_isend_irecv", "broadcast"),
    *("broadcast_object_list", "destroy_process_group", "gather", "gather_object", "monitored_barrier", "recv"),
    *("recv_object_list", "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list"),
    *("send", "send_object_list", "wait_tensor", "_exit_barrier"),
    # DistributedDataParallel's own, and the first in which its ranks meet
    *("_verify_param_shape_across_processes", "_sync_module_states", "_sync_params_and_buffers"),
}
_JOBS_CODE = "/".join(("", "jobs", "[^/]+", "work", ""))  # a job's own copy of the code on its node
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python3\.\d+/|/companion/thunderhead_companion/|^<")
_THREAD = re.compile(r'Thread (\S+) \(([^)]*)\)(?:: "(.*)")?')


@dataclass(frozen=True)
class Frame:
    """One call in a stack."""

    function: str
    file: str
    line: int

    @property
    def name(self) -> str:
        """The function's name without its class."""
        return self.function.rpartition(".")[2]

    @property
    def is_library(self) -> bool:
        """Whether it is Python's or an installed package's, not the user's own."""
        return bool(_LIBRARY.search(self.file))

    @property
    def place(self) -> str:
        """File and line, the file as one would name it."""
        for pattern in (_JOBS_CODE, r"/(?:site|dist)-packages/", r"/lib/python3\.\d+/"):
            if found := re.search(pattern, self.file):
                return f"{self.file[found.end() :]}:{self.line}"
        return f"{self.file}:{self.line}"


def _frame(line: str) -> Frame | None:
    """Return the call in "    function (file:line)", or None. Some lines would keep a regular expression busy."""
    function, _space, place = line.removeprefix("    ").partition(" (")
    if not line.startswith("    ") or not function or len(place) < 2 or not place.endswith(")"):
        return None
    file, _colon, number = place[:-1].rpartition(":")
    is_numbered = bool(file) and number.isascii() and number.isdigit() and len(number) < 10
    return Frame(function, file, int(number)) if is_numbered else Frame(function, place[:-1], 0)


@dataclass(frozen=True)
class Process:
    """One process of a job, as ``take_stacks`` found it.

    Attributes:
        pid: its id.
        parent: its parent's.
        local_rank: LOCAL_RANK in the environment it was started with, or None.
        state: R, S, D, ...; see proc(5).
        python: it is a Python interpreter.
        text: py-spy's, or the kernel's, printable.
        cpu: seconds of CPU time that it used while it was measured.
        io: bytes that it read and wrote meanwhile.
    """

    pid: int
    parent: int
    local_rank: int | None
    state: str
    python: bool
    text: str
    cpu: float = 0.0
    io: int = 0

    @functools.cached_property
    def main_thread(self) -> tuple[bool, list[Frame]]:
        """Whether the main thread is idle, and its calls, the innermost first; none if they are not known."""
        threads: list[tuple[str, bool, list[Frame]]] = []
        for line in self.text.split("\n"):
            if found := _THREAD.match(line):
                threads.append((found[3] or "", "idle" in found[2], []))
            elif threads and (frame := _frame(line)):
                threads[-1][2].append(frame)
        named = [thread for thread in threads if thread[0] == "MainThread"] or threads[:1]
        return (named[0][1], named[0][2]) if named else (False, [])


def members(processes: Sequence[Process]) -> list[Process]:
    """Return those of a node's processes that are ranks, by local rank; or the launcher, as long as there are none.

    A rank is the script itself, or was started by it or by torchrun with a LOCAL_RANK of its own; a data loader's
    worker inherits that of its rank. Nobody told torch.multiprocessing.spawn's what they are, but their stacks do.
    """
    pythons = [process for process in processes if process.python]
    ranks_of = {process.pid: process.local_rank for process in pythons}
    spawned = [
        process
        for process in pythons
        if (process.local_rank is not None and ranks_of.get(process.parent) != process.local_rank)
        or any("torch/multiprocessing/spawn.py" in frame.file and frame.name == "_wrap" for frame in _calls(process))
    ]
    first = pythons[:1]  # Lightning's is local rank 0 and starts the others; torchrun's starts all of them
    if any(process.local_rank in (0, None) for process in spawned):
        first = []
    found = [*first, *(process for process in spawned if process not in first)]
    return sorted(found, key=lambda process: process.local_rank or 0)


def started_by(process: Process) -> str:
    """Return whose code has a rank join the others: Accelerate, Lightning, or "" for the script's own, or torchrun."""
    if process.local_rank is not None:
        return "torchrun"
    files = [frame.file for frame in _calls(process) if frame.is_library]
    if any("/accelerate/" in file for file in files):
        return "Accelerate"
    return "Lightning" if any(re.search("/(pytorch_)?lightning(_fabric)?/", file) for file in files) else ""


def work(processes: Sequence[Process], ranks: Sequence[Process]) -> dict[int, tuple[float, int, bool]]:
    """Return what each rank used while it was measured, by its pid, with its children that are no ranks.

    Seconds of CPU time, bytes read and written, and whether one of its processes waits for a disk.
    """
    parents = {process.pid: process.parent for process in processes}
    found = {rank.pid: (0.0, 0, False) for rank in ranks}
    for process in processes:
        pid = process.pid
        while pid not in found and pid in parents:
            pid = parents[pid]
        if pid in found:
            cpu, transferred, waits = found[pid]
            found[pid] = (cpu + process.cpu, transferred + process.io, waits or process.state == "D")
    return found


def _calls(process: Process) -> list[Frame]:
    return process.main_thread[1]


@dataclass(frozen=True)
class Activity:
    """What a process is doing.

    Attributes:
        kind: one of the names above.
        description: for a sentence, such as ``in all_reduce at train.py:15``.
    """

    kind: str
    description: str


def activity(process: Process, others: Sequence[Process] = ()) -> Activity:
    """Return what a process is doing.

    Args:
        process: a rank's.
        others: on the same node, its data loader's workers among them.
    """
    idle, frames = process.main_thread
    if not frames:
        return Activity(UNKNOWN, f"in state {process.state}, with a stack that could not be taken")
    user = next((frame for frame in frames if not frame.is_library), None)
    at = f" at {user.place}" if user else ""
    meeting = [frame for frame in frames if frame.name in _RENDEZVOUS and "torch/distributed/" in frame.file]
    if meeting:
        elastic = "torch/distributed/elastic/" in meeting[-1].file
        return Activity(RENDEZVOUS, "in torchrun's rendezvous" if elastic else f"in {meeting[-1].name}")
    together = [frame for frame in frames if frame.name in _COLLECTIVES and "torch/" in frame.file]
    if together:
        return Activity(COLLECTIVE, f"in {together[-1].name}{at}")
    if idle and any(frame.name == "_engine_run_backward" for frame in frames[:3]):
        return Activity(BACKWARD, f"in backward{at}")
    if any("torch/utils/data/dataloader.py" in frame.file for frame in frames) and _waits_for_worker(frames):
        return Activity(LOADER, f"in the data loader{at}{_worker(process, others)}")
    if user and user.name == "<module>" and _is_importing(frames, user):
        return Activity(IMPORT, f"still importing{at}")
    inner = next((frame for frame in frames if not frame.file.startswith("<")), frames[0])
    if inner is user:
        return Activity(RUNNING, f"in {inner.function}{at}")
    is_past = all(frame.name != "<module>" for frame in frames)
    past = "at the end of the script, where Python runs exit handlers and waits for threads, " if is_past else ""
    return Activity(RUNNING, f"{past}in {inner.function} ({inner.place}){f', called{at}' if at else ''}")


def _waits_for_worker(frames: Sequence[Frame]) -> bool:
    return any(frame.name in ("_try_get_data", "_get_data", "_next_data") for frame in frames)


def _is_importing(frames: Sequence[Frame], user: Frame) -> bool:
    return any(frame.name == "_find_and_load" for frame in frames[: frames.index(user)])


def _worker(process: Process, others: Sequence[Process]) -> str:
    """Return what the data loader's workers are doing in the user's own code, or ""."""
    for other in others:
        if other.parent != process.pid:
            continue
        frames = _calls(other)
        loop = next((at for at, frame in enumerate(frames) if frame.name == "_worker_loop"), 0)
        user = next((frame for frame in frames[:loop] if not frame.is_library), None)
        if user:
            return f", whose worker is in {user.function} at {user.place}"
    return ""
