"""Runs train.py on several nodes: processes on this machine, each with a directory and the launcher's variables."""

import contextlib
import multiprocessing
import os
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


def node(environment: dict[str, str], directory: Path, arguments: list[str]) -> None:
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

            train.main(arguments)
        except BaseException:
            traceback.print_exc()
            raise


def run_nodes(directories: list[Path], *arguments: str) -> list[str]:
    """Run a node in each directory, all at once, and return what each wrote to its standard output."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "NUM_NODES": str(len(directories)),
        "WORLD_SIZE": str(len(directories)),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = []
    for rank, directory in enumerate(directories):
        directory.mkdir(exist_ok=True)
        process = context.Process(target=node, args=(shared | {"NODE_RANK": str(rank)}, directory, list(arguments)))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(TIMEOUT_SECONDS)
    ended = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    logs = "\n".join((directory / "log").read_text() for directory in directories)
    assert ended == [0] * len(directories), f"exit codes {ended} (None: still running)\n{logs}"
    return [(directory / "output").read_text() for directory in directories]
