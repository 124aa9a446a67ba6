# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which loaders begin in the middle of an epoch; that Lightning's trainings do is in test_thunderhead_companion.py."""

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.companion.thunderhead_companion import (
    wind_loader,
)
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, SubsetRandomSampler

NUMBERS: Dataset[Any] = range(10)  # type: ignore[assignment]
WHOLE = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


class Strategy:
    """What is needed of Lightning's."""

    def process_dataloader(self, loader: object) -> object:
        return loader


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


def trainer(done: int, limit: float = 1.0, training: bool = True, restarting: bool = True) -> Any:
    """Return a Trainer that goes on after so many batches of an epoch, in the second one."""
    batches = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done)))
    epochs = SimpleNamespace(current=SimpleNamespace(started=2, processed=1))
    loop = SimpleNamespace(epoch_loop=batches, epoch_progress=epochs, restarting=restarting, is_resuming=False)
    about = {"training": training, "fit_loop": loop, "limit_train_batches": limit, "strategy": Strategy()}
    return SimpleNamespace(is_global_zero=True, **about)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(NUMBERS, 2, collate_fn=list, **options)


def first_epoch(about: Any, *loaders: DataLoader[Any]) -> list[list[list[int]]]:
    """Return the batches of each loader's first epoch after the start, and see that the second is whole."""
    earlier: list[Any] = []
    processed = [wind_loader.process_wound(about, earlier, one) for one in loaders]
    lengths = [len(one) for one in processed]
    found = [list(one) for one in processed]
    assert [len(list(one)) for one in processed] == lengths == [len(one) for one in loaders]
    return found


@pytest.mark.parametrize(
    ("about", "left"),
    [
        (trainer(2), WHOLE[2:]),
        (trainer(0), WHOLE),
        (trainer(5), WHOLE),
        (trainer(3, limit=3), WHOLE),
        (trainer(3, limit=4), WHOLE[3:]),
        (trainer(3, limit=0.6), WHOLE),
        (trainer(2, training=False), WHOLE),
        (trainer(2, restarting=False), WHOLE),
        (SimpleNamespace(strategy=Strategy(), training=True), WHOLE),
    ],
    ids=["middle", "start", "end", "limit", "in-limit", "share", "validation", "anew", "another-lightning"],
)
def test_what_is_left(about: Any, left: list[list[int]]) -> None:
    assert first_epoch(about, loader()) == [left]


def test_of_several_loaders_none_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert first_epoch(trainer(2), loader(), loader(), loader()) == [WHOLE] * 3
    assert capsys.readouterr().err == ""


def test_where_the_order_does_not_depend_on_the_epoch_alone_none_is_left_out() -> None:
    assert len(first_epoch(trainer(2), loader(shuffle=True))[0]) == 5
    assert len(first_epoch(trainer(2), loader(sampler=SubsetRandomSampler(range(10))))[0]) == 5
    streamed = wind_loader.process_wound(trainer(2), [], DataLoader(Stream(), 2, collate_fn=list))
    assert list(streamed) == WHOLE


@pytest.mark.parametrize(("done", "epoch", "skipped"), [(2, 1, 2), (0, 1, 0), (5, 2, 0)])
def test_the_epoch_of_a_distributed_sampler_is_set(done: int, epoch: int, skipped: int) -> None:
    samplers = [DistributedSampler(NUMBERS, 1, 0, shuffle=True) for _number in range(2)]
    samplers[1].set_epoch(epoch)
    (found,) = first_epoch(trainer(done), loader(sampler=samplers[0]))
    assert found == list(loader(sampler=samplers[1]))[skipped:]
