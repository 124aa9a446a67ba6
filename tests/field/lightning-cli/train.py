"""LightningCLI, with a configuration in YAML."""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    """A line."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate
        self.layer = torch.nn.Linear(2, 1)

    def train_dataloader(self):
        """Return the data."""
        return DataLoader(TensorDataset(torch.ones(24, 2)), batch_size=2)

    def training_step(self, batch, batch_idx):
        """Return a loss."""
        return self.layer(batch[0]).square().mean()

    def on_train_start(self):
        """Say where it begins."""
        print(f"{self.trainer.global_rank} of {self.trainer.world_size} from step {self.global_step}", flush=True)

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=self.rate)


if __name__ == "__main__":
    LightningCLI(Model)
    torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process
