"""A Trainer that says itself that there is one node: an explicit argument wins over what the job says."""

import pytorch_lightning as pl
from trainer import DataLoader, Model, TensorDataset, torch

if __name__ == "__main__":
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, num_nodes=1, logger=False)
    trainer.fit(Model(), DataLoader(TensorDataset(torch.ones(24, 2)), batch_size=2))
