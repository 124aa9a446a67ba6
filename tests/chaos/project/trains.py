"""A training small enough to be watched: lines per epoch and step, and at the end losses and weights to the last bit.

It names no checkpoint to go on from, and tests one that only rank 0 has saved. With an argument, it saves one every so
many steps, in the middle of epochs of four.
"""

import hashlib
import json
import os
import sys
import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10
SECONDS_PER_EPOCH = 0.2  # time enough to be killed in between
SECONDS_PER_STEP = 0.05


class Model(pl.LightningModule):
    """Samples (n, 8) to values (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean squared error."""
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.print(f"step {self.global_step}", flush=True)
        time.sleep(SECONDS_PER_STEP)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Mean squared error."""
        self.log("test_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def on_train_epoch_start(self) -> None:
        """Say which epoch begins."""
        self.print(f"epoch {self.current_epoch}", flush=True)
        time.sleep(SECONDS_PER_EPOCH)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam: what it remembers has to come along."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    """Train, and test the last checkpoint."""
    torch.set_num_threads(1)
    every = int(sys.argv[1]) if sys.argv[1:] else None
    pl.seed_everything(7)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ["NUM_NODES"]),
        strategy="ddp",
        max_epochs=EPOCHS,
        callbacks=[ModelCheckpoint("checkpoints", save_last=True, every_n_train_steps=every)],
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    inputs = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
    model = Model()
    trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    weights = b"".join(one.detach().numpy().tobytes() for one in model.parameters())
    losses = {"train_loss": float(trainer.callback_metrics["train_loss"]).hex()}
    (tested,) = trainer.test(dataloaders=DataLoader(data, batch_size=32), ckpt_path="last", verbose=False)
    losses["test_loss"] = tested["test_loss"].hex()
    if trainer.is_global_zero:
        about = {"weights": hashlib.sha256(weights).hexdigest(), "world_size": trainer.world_size}
        print(json.dumps({**losses, **about}), flush=True)
    torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process


main()
