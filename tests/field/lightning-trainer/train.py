"""Lightning's Trainer in a script for one machine: it names no checkpoint to go on from, and tests the best."""

import sys

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    """A line."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        """Return a loss."""
        return self.layer(batch[0]).square().mean()

    def test_step(self, batch, batch_idx):
        """Say what is tested."""
        print(f"{self.trainer.global_rank} of {self.trainer.world_size} tests", flush=True)

    def on_train_start(self):
        """Say where it begins."""
        print(f"{self.trainer.global_rank} of {self.trainer.world_size} from step {self.global_step}", flush=True)

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = DataLoader(TensorDataset(torch.ones(24, 2)), batch_size=2)
trainer = Trainer(max_epochs=int(sys.argv[1]), accelerator="cpu", devices=1, enable_progress_bar=False)
trainer.fit(Model(), data)
trainer.test(dataloaders=data, ckpt_path="best")
torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process
