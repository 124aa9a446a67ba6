# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: MIT
"""Scikit-learn's handwritten digits, which travel inside the package, as a LightningDataModule."""

import warnings
from functools import cache

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

Batch = tuple[Tensor, ...]  # images (n, 1, 8, 8), float32 in 0..1, and labels (n,), int64

TRAIN_SIZE, VAL_SIZE, TEST_SIZE = 1259, 179, 359

# The digits lie in memory: worker processes would only add their start to every epoch.
warnings.filterwarnings("ignore", message=".*does not have many workers")


@cache
def load_splits() -> dict[str, TensorDataset]:
    """The digits as "train", "val" and "test": disjoint, stratified by label, and the same every time."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    rest, test = train_test_split(range(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=VAL_SIZE, stratify=labels[rest], random_state=0)
    parts = {"train": train, "val": val, "test": test}
    return {name: TensorDataset(images[part], labels[part]) for name, part in parts.items()}


class Digits(pl.LightningDataModule):
    """Deals the digits out to the ranks so that the world size changes the speed, not the result."""

    def __init__(self, batch_size: int, seed: int) -> None:
        """Remember the options.

        Args:
            batch_size: samples per optimizer step, all ranks together; a multiple of the world size.
            seed: decides the order of the training samples.
        """
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Load the digits, and learn which rank this is."""
        assert self.trainer is not None
        self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        self.splits = load_splits()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batch k of all ranks together holds the samples of batch k of a single process."""
        train = self.splits["train"]
        mine = DistributedSampler[Batch](train, self.world_size, self.rank, seed=self.seed, drop_last=True)
        return DataLoader(train, self.batch_size // self.world_size, sampler=mine, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the validation digits."""
        return self._share("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the test digits."""
        return self._share("test")

    def _share(self, name: str) -> DataLoader[Batch]:
        # Not a DistributedSampler: it repeats samples until all ranks have equally many, and they would count twice.
        indices = range(self.rank, len(self.splits[name]), self.world_size)
        return DataLoader(Subset(self.splits[name], indices), batch_size=len(indices))
