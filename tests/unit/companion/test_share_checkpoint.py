# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks that share no disk load a checkpoint: three processes, of which two are on node 0 and one on node 1."""

import datetime
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.companion.thunderhead_companion import (
    share_checkpoint,
)
from job_folder import free_port, lay_out_companion

NODES = ("0", "0", "1")
"""Of each rank."""
PATH = "checkpoints/best.ckpt"
OF_RANK_0 = ""
"""In the place of a path: that which PATH has on rank 0, as Lightning broadcasts it."""
FOLDER = b"folder"
CASES: dict[str, tuple[dict[str, bytes], list[str | None], list[object]]] = {
    "rank 0 alone has it": ({"0": b"weights"}, [PATH] * 3, [b"weights"] * 3),
    "only the other node has it": ({"1": b"weights"}, [PATH] * 3, [b"weights"] * 3),
    "the other node has an older one": ({"0": b"new weights", "1": b"old"}, [PATH] * 3, [b"new weights"] * 3),
    "the older one has the same size": ({"0": b"new", "1": b"old"}, [PATH] * 3, [b"new"] * 3),
    "both have it": ({"0": b"same", "1": b"same"}, [PATH] * 3, [b"same"] * 3),
    "it is longer than a piece": ({"0": bytes(range(256)) * 10}, [PATH] * 3, [bytes(range(256)) * 10] * 3),
    "it is empty": ({"0": b""}, [PATH] * 3, [b""] * 3),
    "nobody has it": ({}, [PATH] * 3, ["FileNotFoundError"] * 3),
    "rank 0 names it for all": ({"0": b"its"}, [PATH, OF_RANK_0, OF_RANK_0], [b"its"] * 3),
    "it is a folder": ({"0": FOLDER}, [PATH] * 3, ["IsADirectoryError", "IsADirectoryError", "FileNotFoundError"]),
    "on a single device": ({"0": b"its", "1": b"mine"}, [PATH] * 3, [b"its", b"its", b"mine"]),
    "in its own way": ({"0": b"its", "1": b"mine"}, [PATH] * 3, [b"its", b"its", b"mine"]),
    "the other node knows of none": ({"0": b"its"}, [PATH, PATH, None], [b"its"] * 3),
    "nobody names one": ({"0": b"its"}, [None] * 3, [None] * 3),
    "each means another": ({"0": b"mine"}, [PATH, PATH, "other.ckpt"], [b"mine", b"mine", "FileNotFoundError"]),
}
"""What lies at PATH on each node, what each rank loads, and what it gets."""


class Strategy:
    """What is needed of Lightning's."""

    root_device = torch.device("cpu")
    world_size = len(NODES)

    def load_checkpoint(self, path: Path, weights_only: bool) -> bytes:
        assert weights_only
        return Path(path).read_bytes()

    load_checkpoint.__module__ = "pytorch_lightning.strategies.strategy"


class SingleDevice(Strategy):
    world_size = 1


class OwnWay(Strategy):
    """As that of FSDP."""

    def load_checkpoint(self, path: Path, weights_only: bool) -> bytes:
        return super().load_checkpoint(path, weights_only)


class Connector:
    """As Lightning's between a Trainer and its checkpoint."""

    def __init__(self, strategy: Strategy) -> None:
        self.loaded: bytes | None = None
        self._strategy = strategy
        self._ckpt_path: Path | None = None

    def resume_start(self, checkpoint_path: Path | None, weights_only: bool) -> None:
        self._ckpt_path = checkpoint_path
        if checkpoint_path:
            self.loaded = self._strategy.load_checkpoint(checkpoint_path, weights_only)


STRATEGIES = {"on a single device": SingleDevice, "in its own way": OwnWay}


def load_cases(rank: int, folder: Path) -> None:
    """Be a rank: load what each case says, and write down what came of it."""
    os.environ.update(NODE_RANK=NODES[rank], GLOO_SOCKET_IFNAME="lo")
    share_checkpoint.PIECE_BYTES = 1000
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(NODES), timeout=patience)
    found: dict[str, tuple[object, list[str]]] = {}
    for case, (_there, paths, _expected) in CASES.items():
        job = folder / case / NODES[rank]
        os.environ["JOB_DIR"] = str(job)
        os.chdir(job / "work")
        try:
            name = paths[rank]
            path = folder / case / NODES[0] / "work" / PATH if name == OF_RANK_0 else Path(name) if name else None
            strategy = STRATEGIES.get(case, Strategy)()
            connector = Connector(strategy)
            nodes = 1 if case == "on a single device" else 2
            trainer = SimpleNamespace(
                strategy=strategy, _checkpoint_connector=connector, num_nodes=nodes, is_global_zero=rank == 0
            )
            share_checkpoint.resume_shared(trainer, path, weights_only=True)
            loaded: object = connector.loaded
            assert path in (connector._ckpt_path, None), "the script does not see where it lay"
        except OSError as error:
            loaded = type(error).__name__
        dist.barrier()
        found[case] = loaded, sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file())
    dist.destroy_process_group()
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[object, list[str]]]]:
    """By rank and case: what was loaded, and the files that the job's folder has then."""
    folder = tmp_path_factory.mktemp("jobs")
    for case, (there, _paths, _expected) in CASES.items():
        for node in set(NODES):
            (folder / case / node / "companion").mkdir(parents=True)
            work = folder / case / node / "work"
            work.mkdir(parents=True)
            if there.get(node) == FOLDER:
                (work / PATH).mkdir(parents=True)
            elif node in there:
                (work / PATH).parent.mkdir()
                (work / PATH).write_bytes(there[node])
    torch.multiprocessing.spawn(load_cases, (folder,), len(NODES))
    return [pickle.loads((folder / f"found-{rank}").read_bytes()) for rank in range(len(NODES))]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_loads_the_same(case: str, found: list[dict[str, tuple[object, list[str]]]]) -> None:
    there, _paths, expected = CASES[case]
    assert [of_rank[case][0] for of_rank in found] == expected
    for rank, of_rank in enumerate(found):
        files = [f"work/{PATH}" for node, content in there.items() if node == NODES[rank] and content != FOLDER]
        if case == "in its own way" and NODES[rank] == "0":
            files.insert(0, "companion/no_retry")
        assert of_rank[case][1] == files, "nothing else that is new stays"


def test_a_rank_that_raised_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where Lightning's Tuner restores what was before: the others wait elsewhere."""
    monkeypatch.setattr(share_checkpoint, "is_shared", lambda _strategy: True)
    monkeypatch.setattr(share_checkpoint, "find_transfer", lambda _path: pytest.fail("would wait for the others"))
    (tmp_path / "own.ckpt").write_bytes(b"own")
    connector = Connector(Strategy())
    trainer = SimpleNamespace(strategy=connector._strategy, _checkpoint_connector=connector)
    with pytest.raises(ZeroDivisionError):
        try:
            print(1 / 0)
        finally:
            share_checkpoint.resume_shared(trainer, tmp_path / "own.ckpt", weights_only=True)
    assert connector.loaded == b"own"


SCRIPT = """
import os
import sys

folder = os.path.dirname(os.environ["JOB_DIR"])
stat = os.stat

def require_own(path):  # real nodes share no disk
    if isinstance(path, str) and path.startswith(folder + "/") and not path.startswith(os.environ["JOB_DIR"]):
        raise FileNotFoundError(2, "lies on another node", path)

def stat_own(path, *given, **named):
    require_own(path)
    return stat(path, *given, **named)

os.stat = stat_own
sys.addaudithook(lambda event, given: require_own(given[0]) if event == "open" else None)

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import pytorch_lightning as pl
import torch

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _number):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, _number):
        self.log("loss", self.layer(batch).square().mean(), sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch, _number):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)
best = pl.callbacks.ModelCheckpoint("checkpoints", monitor="loss", save_last=True)
quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(max_epochs=2, callbacks=[best], **quiet)
trainer.fit(Model(), data, data)
if trainer.is_global_zero:  # one of its own, of which the others know nothing
    pl.Trainer(devices=1, num_nodes=1, **quiet).test(Model(), data, ckpt_path=best.best_model_path, verbose=False)
for stage in (trainer.validate, trainer.predict):
    stage(dataloaders=data, ckpt_path="last")  # which each rank looks for on its own disk
print("tested:", trainer.test(dataloaders=data, ckpt_path="best", verbose=False)[0]["loss"])
torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process
"""


@pytest.mark.parametrize("companion", [True, False])
def test_the_best_checkpoint_is_tested_on_all_nodes(companion: bool, tmp_path: Path) -> None:
    """And without the companion it is not, or this tests nothing."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    nodes = []
    for rank in range(2):
        job = tmp_path / str(rank)
        (job / "work").mkdir(parents=True)
        (job / "work" / "train.py").write_text(SCRIPT)
        path = {"PYTHONPATH": str(lay_out_companion(job))} if companion else {}
        own = {"NODE_RANK": str(rank), "PL_TRAINER_NUM_NODES": "2", "JOB_DIR": str(job), **path}
        nodes.append(
            subprocess.Popen(
                [sys.executable, "train.py"],
                cwd=job / "work",
                env={**os.environ, **shared, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [node.communicate(timeout=120) for node in nodes]
    if companion:
        assert [node.returncode for node in nodes] == [0, 0], said
        (first, second) = (re.findall("tested: .*", output) for output, _errors in said)
        assert first == second and len(first) == 1
        assert not list((tmp_path / "1").rglob("*.ckpt"))
    else:
        assert nodes[1].returncode == 1 and "FileNotFoundError" in said[1][1], said
