# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: MIT
"""Train a small network on 1,797 scanned handwritten digits, on one machine or on many.

On this machine:

    python train/train.py

On every node of the cluster, all at once:

    ansible-playbook run.yml -e script=train.py
    ansible-playbook run.yml -e script=train.py -e "script_args='--max-epochs 3'"

The launcher starts one process per node and says in the environment how many nodes there are (PL_TRAINER_NUM_NODES),
which of them this is (NODE_RANK) and where they meet (MASTER_ADDR, MASTER_PORT). Lightning reads all of it.

Rank 0 writes checkpoints/ and metrics/, and the result as JSON in the last line of its standard output. Training goes
on from the checkpoint that the launcher has put on every node (CKPT_PATH), which is how a job goes on from another:

    ansible-playbook run.yml -e script=train.py -e resume=20261122-173000-train-9f3a

Else, where rank 0 finds checkpoints/last.ckpt, it goes on from there, with another number of nodes too; remove it to
start anew. A job on the cluster has a directory of its own, so it starts anew unless --output-dir names one that stays.
With the same number of ranks, a training that was killed and went on ends with bit for bit the weights and the loss of
one that was not.
"""

import json
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import Batch, Digits
from lightning_fabric.utilities.exceptions import MisconfigurationException
from options import parse_options
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

# Between Lightning 2.6 and torch 2.13: no script can do anything about it.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
# It is meant to hold the last run's checkpoint.
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
# Each job has a directory of its own.
warnings.filterwarnings("ignore", message="The dirpath has changed")


class Classifier(pl.LightningModule):
    """A small convolutional network: images (n, 1, 8, 8) to logits (n, 10)."""

    def __init__(self, lr: float) -> None:
        """Build the network, to be trained by Adam at the learning rate lr."""
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )
        # These add up hits and samples over all ranks, so unequal shares do not skew them.
        self.val_accuracy = MulticlassAccuracy(num_classes=10, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (n, 10)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross entropy over this rank's share of the global batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the hits among this rank's share of the validation digits."""
        images, labels = batch
        self.val_accuracy.update(self(images), labels)
        self.log("val_accuracy", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the hits among this rank's share of the test digits."""
        images, labels = batch
        self.test_accuracy.update(self(images), labels)
        self.log("test_accuracy", self.test_accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at a constant rate: a schedule would have to know how far a resumed run goes."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Progress(pl.Callback):
    """A line per epoch on rank 0, and this run's steps and seconds of training, validation included.

    The last epoch's loss is kept in the checkpoints: a run that goes on where nothing is left to do still knows it.
    """

    steps = 0
    seconds = 0.0
    train_loss: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed run does not begin at step 0."""
        self.first_step = trainer.global_step
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        loss, accuracy = (trainer.callback_metrics[name].item() for name in ("train_loss", "val_accuracy"))
        self.train_loss = loss
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        pl_module.print(f"{epoch}: loss {loss:.4f}, validation accuracy {accuracy:.4f}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.steps = trainer.global_step - self.first_step
        self.seconds = time.perf_counter() - self.started

    def state_dict(self) -> dict[str, float | None]:
        """What goes into a checkpoint."""
        return {"train_loss": self.train_loss}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        """Take over what a checkpoint holds."""
        self.train_loss = state_dict["train_loss"]


def build_trainer(options: Namespace, progress: Progress) -> pl.Trainer:
    """The trainer of this process.

    Raises:
        SystemExit: the node lacks the devices asked for, or the world size does not divide the batch.
    """
    # Without monitor=: with it, Lightning 2.6 writes last.ckpt only in the epochs that improve what is monitored.
    checkpoints = ModelCheckpoint(options.output_dir / "checkpoints", save_last=True, enable_version_counter=False)
    try:
        trainer = pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            max_epochs=options.max_epochs,
            callbacks=[checkpoints, progress],
            logger=CSVLogger(options.output_dir, name="metrics"),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # Digits deals the samples out itself.
            enable_progress_bar=False,  # It redraws one line, which a log cannot.
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise SystemExit(f"train.py: --accelerator or --devices asks for what this node lacks: {error}") from None
    batch, ranks = options.batch_size, trainer.world_size
    if batch % ranks:
        raise SystemExit(
            f"train.py: a batch of {batch} samples cannot be shared equally by {ranks} ranks;"
            f" give --batch-size a multiple of {ranks}, such as {max(batch // ranks, 1) * ranks}"
        )
    return trainer


def use_one_thread() -> None:
    """Keep torch to one CPU thread per rank, unless OMP_NUM_THREADS says otherwise.

    So small a network gains little from more, and with more, ranks that share a machine train two to four times slower.
    The variable is set because Lightning chooses a number itself where there is none.
    """
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def share_checkpoint(trainer: pl.Trainer, path: Path) -> Path | None:
    """Give every node rank 0's last checkpoint: only rank 0 writes one, and the nodes may share no disk.

    To be called on all ranks, after they met.

    Returns:
        The path to resume from; None on all ranks if rank 0 has no checkpoint, whatever the others still have.
    """
    content = path.read_bytes() if trainer.is_global_zero and path.exists() else None
    content = trainer.strategy.broadcast(content)
    if content is None:
        return None
    if trainer.local_rank == 0 and not (path.exists() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    trainer.strategy.barrier()
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from where the last run ended, test, and print the result."""
    options = parse_options(arguments)
    use_one_thread()
    progress = Progress()
    trainer = build_trainer(options, progress)
    pl.seed_everything(options.seed)
    model = Classifier(options.lr)
    data = Digits(options.batch_size, options.seed)

    trainer.validate(model, data, verbose=False)  # Here the ranks meet: before, none knows what rank 0 has.
    last = options.output_dir / "checkpoints" / "last.ckpt"
    trainer.fit(model, data, ckpt_path=os.environ.get("CKPT_PATH") or share_checkpoint(trainer, last))
    [scores] = trainer.test(model, data, verbose=False)  # The model as it is: a checkpoint's path is rank 0's only.

    if trainer.is_global_zero:
        samples = progress.steps * options.batch_size
        result = {
            "test_accuracy": round(scores["test_accuracy"], 4),
            "world_size": trainer.world_size,
            "epochs": trainer.current_epoch,
            "train_loss": progress.train_loss,  # all digits: equal losses are equal to the last bit
            "train_seconds": round(progress.seconds, 2),
            "samples_per_second": round(samples / progress.seconds) if samples else 0,
        }
        print(json.dumps(result), flush=True)
    if torch.distributed.is_initialized():  # torch asks for it: left to the interpreter's end, it may abort the process
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
