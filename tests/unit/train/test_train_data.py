# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the digits are split, and dealt out to the ranks."""

from types import SimpleNamespace

import pytest
import torch
from digits import TEST_SIZE, TRAIN_SIZE, VAL_SIZE, Digits, load_splits
from sklearn.datasets import load_digits


def rank_data(rank: int, world_size: int, batch_size: int = 84, seed: int = 0) -> Digits:
    data = Digits(batch_size, seed)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    data.setup("fit")
    return data


def rows(images: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, images.flatten(1).tolist()))


def test_splits_are_disjoint_and_complete():
    splits = [split.tensors[0] for split in load_splits().values()]
    assert [len(split) for split in splits] == [TRAIN_SIZE, VAL_SIZE, TEST_SIZE]
    everything = rows(torch.tensor(load_digits().images, dtype=torch.float32) / 16)
    assert rows(torch.cat(splits)) == everything
    assert len(set(everything)) == len(everything) == 1797  # no digit is in the collection twice


def test_splits_are_stratified():
    whole = torch.tensor(load_digits().target).bincount() / 1797
    for split in load_splits().values():
        labels = split.tensors[1]
        assert torch.allclose(labels.bincount().float(), whole * len(labels), atol=1.0)


def test_splits_are_the_same_every_time():
    again = load_splits.__wrapped__()
    for name, split in load_splits().items():
        assert all(torch.equal(first, second) for first, second in zip(split.tensors, again[name].tensors, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["val", "test"])
def test_evaluation_sees_every_digit_once(name: str, world_size: int):
    loaders = [getattr(rank_data(rank, world_size), f"{name}_dataloader")() for rank in range(world_size)]
    seen = torch.cat([images for loader in loaders for images, _ in loader])
    assert rows(seen) == rows(load_splits()[name].tensors[0])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_batches_of_one_process(world_size: int):
    def batches(rank: int, world_size: int, epoch: int) -> list[torch.Tensor]:
        loader = rank_data(rank, world_size).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [images for images, _ in loader]

    for epoch in (0, 1):
        shares = [batches(rank, world_size, epoch) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        together = [rows(torch.cat(parts)) for parts in zip(*shares, strict=True)]
        assert together == [rows(batch) for batch in batches(0, 1, epoch)]


def test_order_follows_seed_and_epoch():
    def first_batch(seed: int, epoch: int) -> list[tuple[float, ...]]:
        loader = rank_data(0, 1, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return rows(next(iter(loader))[0])

    assert first_batch(0, 0) == first_batch(0, 0)
    assert first_batch(0, 0) != first_batch(1, 0)
    assert first_batch(0, 0) != first_batch(0, 1)
