# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts that know nothing of a checkpoint, run as a job runs them: with the companion's folder on their path."""

import contextlib
import importlib.metadata
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.companion import thunderhead_companion
from job_folder import lay_out_companion

MODEL = """\
import pytorch_lightning as pl
import torch

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.learning_rate = 0.1

    def training_step(self, batch, _number):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)

torch.manual_seed(0)
data = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2)
quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)

def trainer(**options):
    return pl.Trainer(**{"max_epochs": 3, "enable_checkpointing": False, **quiet, **options})
"""
SAVES = """
class Save(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, _model):
        trainer.save_checkpoint(self.path)

"""
COUNT = """
class Count(pl.Callback):
    steps = 0
    def on_train_batch_end(self, *_about):
        self.steps += 1

count = Count()
"""
LEFT_STEPS, ALL_STEPS = 2, 6
"""Of three epochs of two batches: those that are left after a checkpoint of two epochs, and all of them."""


class Job:
    """A job's folder, and what its script does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work = folder / "work"
        self.checkpoint = folder / "two epochs.ckpt"
        self._monkeypatch = monkeypatch
        self.work.mkdir()
        monkeypatch.setenv("JOB_DIR", str(folder))
        for method in ("fit", "validate", "test", "predict"):  # back as they were, whoever replaces them
            monkeypatch.setattr(pl.Trainer, method, getattr(pl.Trainer, method))
        for count in ("one epoch", "two epochs"):
            save = f"one.save_checkpoint('{count}.ckpt')"
            self.run(f"one = trainer(max_epochs={1 + (count[-1] == 's')})\none.fit(Model(), data)\n{save}\n")
        monkeypatch.syspath_prepend(lay_out_companion(folder))
        for name in [name for name in sys.modules if name.startswith("thunderhead_companion")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setenv("JOB_FIT_CKPT_PATH", str(self.checkpoint))

    def run(self, script: str, *arguments: str) -> dict[str, Any]:
        """Run a script in the job's folder, and return its variables."""
        path = self.work / "script.py"
        path.write_text(MODEL + script)
        self._monkeypatch.chdir(self.work.parent)
        self._monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        main = sys.modules["__main__"]
        try:
            return runpy.run_path(str(path), run_name="__main__")
        finally:
            sys.modules["__main__"] = main


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A job, of which nothing stays: in this process DDP leaves variables, a process group and a number of threads."""
    before, threads = dict(os.environ), torch.get_num_threads()
    yield Job(tmp_path, monkeypatch)
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trained(variables: dict[str, Any]) -> int:
    """Return how many steps a script's training took itself."""
    return int(variables["count"].steps)


FIT = "trainer(callbacks=[count]).fit(Model(), data)\n"
TUNED = """\
from pytorch_lightning.tuner import Tuner
model, one = Model(), trainer(callbacks=[count])
Tuner(one).lr_find(model, data, num_training=5)
count.steps = 0
one.fit(model, data)
"""


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        (FIT, LEFT_STEPS),
        ("trainer(callbacks=[count]).fit(Model(), data, None, None, None)", LEFT_STEPS),
        ("trainer(callbacks=[count]).fit(model=Model(), train_dataloaders=data, ckpt_path=None)", LEFT_STEPS),
        ("trainer(callbacks=[count]).fit(Model(), data, ckpt_path='two epochs.ckpt')", LEFT_STEPS),
        ("one = trainer(callbacks=[count])\none.ckpt_path = 'one epoch.ckpt'\none.fit(Model(), data)", 4),
        ("trainer(fast_dev_run=True).fit(Model(), data)\n" + FIT, LEFT_STEPS),
        (TUNED, LEFT_STEPS),
    ],
    ids=["nothing", "by-place", "none", "its-own", "set", "trial", "tuner"],
)
def test_fit_goes_on_where_the_script_leaves_that_open(job: Job, script: str, steps: int) -> None:
    assert trained(job.run(COUNT + script)) == steps


@pytest.mark.parametrize("finder", ["LearningRateFinder(num_training_steps=5)", "BatchSizeFinder()"])
def test_where_lightning_would_not_go_on_it_is_said(finder: str, job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(Exception):  # a finder may want more of the script; that is later
        job.run(f"trainer(callbacks=[pl.callbacks.{finder}]).fit(Model(), data)")
    name = finder.partition("(")[0]
    said = f"thunderhead: this fit starts from the beginning, because Lightning does not go on with a {name}\n"
    assert said in capfd.readouterr().err


def test_without_a_checkpoint_nothing_changes(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOB_FIT_CKPT_PATH")
    assert trained(job.run(COUNT + FIT)) == ALL_STEPS


@pytest.mark.parametrize("is_given_one", [False, True])
def test_after_a_second_fit_the_job_is_not_started_again_by_itself(
    is_given_one: bool, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_given_one:
        monkeypatch.delenv("JOB_FIT_CKPT_PATH")
    refusal = job.work.parent / "companion" / "no_retry"
    search = "class Search(pl.Callback):\n    _early_exit = True\n"
    job.run(f"{search}trainer(callbacks=[Search()]).fit(Model(), data)\ntrainer().fit(Model(), data)\n")
    assert not refusal.exists(), "a Tuner's fit is none of the script's"
    job.run("trainer().fit(Model(), data)\n")
    assert refusal.read_text() == "it has begun a second fit, and its checkpoints may be of either"


@pytest.mark.parametrize("finder", ["", "LearningRateFinder(num_training_steps=5)"])
def test_what_a_training_saves_is_noted(finder: str, job: Job) -> None:
    """Not what Lightning saves for a search, and what others have left there."""
    folder = job.work.parent
    (folder / "old.ckpt").write_bytes(b"of somebody")
    saves = "pl.callbacks.ModelCheckpoint('best', save_last=True, save_top_k=-1)"
    more = f", pl.callbacks.{finder}" if finder else ""
    job.run(f"trainer(enable_checkpointing=True, callbacks=[{saves}{more}]).fit(Model(), data)\n")
    saved = sorted(set((folder / "companion" / "checkpoints").read_text().splitlines()))
    assert saved == sorted(str(path) for path in (folder / "best").iterdir())
    assert str(folder / "best" / "last.ckpt") in saved


def test_what_cannot_be_noted_is_saved_all_the_same(job: Job) -> None:
    script = "one = trainer()\none.save_checkpoint = print\none.fit(Model(), data)\nown = one.save_checkpoint"
    assert job.run(script)["own"] is print, "a script's own method stays"
    (job.work.parent / "companion" / "checkpoints").mkdir()
    odd = "caf\udce9.ckpt"
    job.run(f"trainer(callbacks=[Save({odd!r})]).fit(Model(), data)\n".join([SAVES, ""]))
    assert odd in os.listdir(job.work.parent)


def test_a_script_that_mentions_the_checkpoint_and_passes_none_is_not_started_again(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin anew with its weights."""
    monkeypatch.setenv("JOB_SCRIPT_MENTIONS_CKPT_PATH", "1")
    refusal = job.work.parent / "companion" / "no_retry"
    job.run("trainer().fit(Model(), data, ckpt_path=None)\n")
    assert not refusal.exists()
    for name in [name for name in sys.modules if name.startswith("thunderhead_companion")]:
        monkeypatch.delitem(sys.modules, name)
    job.run("trainer().fit(Model(), data)\n")
    assert refusal.exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("other.ckpt", "its fit is passed a checkpoint of the script's own, and would begin there again"),
        ("two epochs.ckpt", None),
    ],
)
def test_a_fit_from_a_checkpoint_of_the_script_s_own_is_not_started_again(
    given: str, why: str | None, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_PATH", str(job.checkpoint))
    shutil.copy(job.checkpoint, job.work.parent / "other.ckpt")
    job.run(f"trainer().fit(Model(), data, ckpt_path={str(job.work.parent / given)!r})\n")
    refusal = job.work.parent / "companion" / "no_retry"
    assert (refusal.read_text() if refusal.exists() else None) == why


def test_a_second_fit_starts_from_the_beginning_and_says_so(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    variables = job.run(COUNT + "trainer().fit(Model(), data)\n" + FIT)
    assert trained(variables) == ALL_STEPS
    assert (
        f"thunderhead: this fit starts from the beginning, because an earlier one went on from {job.checkpoint}; if "
        "this is the one to go on, pass it ckpt_path=os.environ.get('CKPT_PATH')\n"
    ) in capfd.readouterr().err


def test_a_fit_that_lightning_refuses_is_refused_by_lightning(job: Job) -> None:
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epochs'"):
        job.run("trainer().fit(Model(), data, epochs=3)")


def test_weights_and_steps_are_those_of_a_training_that_was_not_interrupted(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "model = Model()\none = trainer()\none.fit(model, data)\nweights = model.state_dict()\n"
    went_on = job.run(script)
    monkeypatch.delenv("JOB_FIT_CKPT_PATH")
    whole = job.run(script)
    assert went_on["one"].global_step == whole["one"].global_step == ALL_STEPS
    for name, tensor in whole["weights"].items():
        assert torch.equal(tensor, went_on["weights"][name]), name


PIECEWISE = """\
class Wide(Model):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, _number):
        self.seen += batch.flatten().tolist()
        return super().training_step(batch, _number)

numbers = torch.arange(20.0).reshape(20, 1) / 20
def loader(**options):
    return torch.utils.data.DataLoader(numbers, batch_size=2, **options)

class Stop(pl.Callback):
    def stop(self, trainer, *_about):
        if trainer.global_step == self.step:
            trainer.save_checkpoint("middle.ckpt")
            raise KeyboardInterrupt

def fit(data, step=None, hook="on_train_batch_end", **options):
    callback = Stop()
    callback.step = step
    setattr(callback, hook, callback.stop)
    wide = Wide()
    one = trainer(max_epochs=3, strategy="ddp", devices=1, callbacks=[callback], **options)
    try:
        one.fit(wide, data)
    except SystemExit:
        pass
    return wide
"""
"""Ten batches an epoch, in three epochs."""


@pytest.mark.parametrize(
    ("step", "hook"),
    [(3, "on_train_batch_end"), (10, "on_train_batch_end"), (10, "on_train_epoch_end"), (17, "on_train_batch_end")],
)
@pytest.mark.parametrize("loader", ["loader(shuffle=True)", "loader()", "loader(shuffle=True, num_workers=1)"])
def test_a_training_goes_on_with_the_batches_that_are_left(
    loader: str, step: int, hook: str, job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = os.environ["JOB_FIT_CKPT_PATH"]
    monkeypatch.delenv("JOB_FIT_CKPT_PATH")
    before = job.run(f"{PIECEWISE}whole, begun = fit({loader}), fit({loader}, {step}, {hook!r})")
    monkeypatch.setenv("JOB_FIT_CKPT_PATH", checkpoint.replace("two epochs", "middle"))
    capfd.readouterr()
    went_on = job.run(f"{PIECEWISE}model = fit({loader})")["model"]
    assert len(before["whole"].seen) == 60 and len(before["begun"].seen) == 2 * step
    assert before["begun"].seen + went_on.seen == before["whole"].seen
    for name, tensor in before["whole"].state_dict().items():
        assert torch.equal(tensor, went_on.state_dict()[name]), name
    said = f"thunderhead: goes on at batch {step % 10} of the 10 of this epoch\n"
    assert (said in capfd.readouterr().err) is (step % 10 > 0)


def test_a_trainer_can_be_sent_to_ranks_that_it_spawns_and_is_as_before_in_the_end() -> None:
    one = pl.Trainer(accelerator="cpu", logger=False)
    changed = (one.strategy, one._checkpoint_connector)
    before = [set(vars(part)) for part in changed]
    received = pickle.loads(thunderhead_companion.accompanied(lambda trainer: pickle.dumps(trainer))(one))
    assert received._checkpoint_connector.resume_start.args == (received,)
    assert received.strategy.process_dataloader.args == (received, [])
    assert [set(vars(part)) for part in changed] == before


def test_both_names_of_lightning_have_an_entry_point(job: Job) -> None:
    for group in ("pytorch_lightning.callbacks_factory", "lightning.pytorch.callbacks_factory"):
        assert "thunderhead_companion:callbacks" in [one.value for one in importlib.metadata.entry_points(group=group)]
