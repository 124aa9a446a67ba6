# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs train.py on several nodes: processes on this machine, each with a directory and the launcher's variables."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

# Forks of a server that has only done the slow imports: pytest's own process may have threads, which no fork survives.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytorch_lightning", "sklearn.model_selection", "torchmetrics.classification"])

TIMEOUT_SECONDS = 120


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def stay_in(directory: Path) -> None:
    """Let this process open nothing in the directories beside this one: real nodes share no disk."""

    def check(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            path = Path(os.path.abspath(arguments[0]))
            if directory.parent in path.parents and directory not in path.parents:
                raise FileNotFoundError(f"{path} is another node's, and {directory} is this one's")

    sys.addaudithook(check)


def die_at(step: int) -> None:
    """Have this process killed in the middle of the training step with that number."""
    import train

    training_step = train.Classifier.training_step

    def last_step(self: train.Classifier, batch: train.Batch, batch_idx: int) -> train.Tensor:
        loss = training_step(self, batch, batch_idx)
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    train.Classifier.training_step = last_step


def node(environment: dict[str, str], directory: Path, arguments: list[str], killed_at: int | None) -> None:
    os.environ.update(environment)
    os.chdir(directory)
    stay_in(directory)
    with (
        open("log", "a") as log,
        open("output", "w") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(log),
    ):
        try:
            import train

            if killed_at is not None:
                die_at(killed_at)
            train.main(arguments)
        except BaseException:
            traceback.print_exc()
            raise


def run_nodes(
    directories: list[Path], *arguments: str, checkpoint: str = "", killed_at: int | None = None
) -> list[str]:
    """Run a node in each directory, all at once, and return what each wrote to its standard output.

    Args:
        directories: where the nodes run, in rank order.
        *arguments: of train.py.
        checkpoint: path relative to each directory of the checkpoint that the launcher has put there.
        killed_at: the training step in which all ranks are killed.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PL_TRAINER_NUM_NODES": str(len(directories)),
        "WORLD_SIZE": str(len(directories)),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = []
    for rank, directory in enumerate(directories):
        directory.mkdir(exist_ok=True)
        own = {"NODE_RANK": str(rank), **({"CKPT_PATH": str(directory / checkpoint)} if checkpoint else {})}
        process = context.Process(target=node, args=(shared | own, directory, list(arguments), killed_at))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(TIMEOUT_SECONDS)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    logs = "\n".join((directory / "log").read_text() for directory in directories)
    expected = 0 if killed_at is None else -signal.SIGKILL
    assert ended == [expected] * len(directories), f"exit codes {ended} (None: still running)\n{logs}"
    return [(directory / "output").read_text() for directory in directories]


def result(output: str) -> dict[str, float]:
    """Return what train.py prints last."""
    return json.loads(output.splitlines()[-1])
