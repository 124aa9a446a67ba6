"""A Trainer to which nobody said how many nodes there are, as in Lightning's own examples and bug reports."""

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

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet)
    trainer.fit(Model(), DataLoader(TensorDataset(torch.ones(24, 2)), batch_size=2))
    print(f"{trainer.global_rank} of {trainer.world_size}", flush=True)
    torch.distributed.destroy_process_group()  # left to Python's exit, one of gloo's threads may abort the process
