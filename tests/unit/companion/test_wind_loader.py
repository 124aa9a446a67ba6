# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which loaders begin in the middle of an epoch; that Lightning's trainings do is in test_thunderhead_companion.py."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.companion.thunderhead_companion import (
    wind_loader,
)
from pytorch_lightning import LightningDataModule
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


class Restores(LightningDataModule):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where it was."""


def trainer(
    done: int,
    limit: float = 1.0,
    training: bool = True,
    restarting: bool = True,
    is_resuming: bool | None = None,
    **more: Any,
) -> Any:
    """Return a Trainer that goes on after so many batches of an epoch, in the second one."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=done), is_last_batch=done == len(WHOLE))
    epochs = SimpleNamespace(current=SimpleNamespace(started=2, processed=1))
    state = {"restarting": restarting, "restarted_mid_epoch": False}
    state |= {} if is_resuming is None else {"is_resuming": is_resuming}  # since Lightning 2.5.3
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress), epoch_progress=epochs, **state)
    about = {"training": training, "fit_loop": loop, "limit_train_batches": limit, "strategy": Strategy()}
    return SimpleNamespace(**{"is_global_zero": True, "datamodule": None, **about, **more})


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(NUMBERS, 2, collate_fn=list, **options)


def first_epoch(about: Any, *loaders: DataLoader[Any]) -> list[list[list[int]]]:
    """Return the batches of each loader's first epoch after the start, and see that the second is whole."""
    skipping: list[Any] = []
    processed = [wind_loader.process_and_wind(about, skipping, one) for one in loaders]
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
        (trainer(2, restarting=False, is_resuming=True), WHOLE),  # a new epoch, of another length than the last one
        (trainer(2, fit_loop=SimpleNamespace(restarting=True)), WHOLE),
        (trainer(2, datamodule=LightningDataModule()), WHOLE[2:]),
        (trainer(2, datamodule=Restores()), WHOLE),
    ],
    ids=[
        *("middle", "start", "end", "limit", "in-limit", "share", "validation", "anew", "new-epoch", "lightning-2.4"),
        *("datamodule", "restores"),
    ],
)
def test_what_is_left(about: Any, left: list[list[int]]) -> None:
    assert first_epoch(about, loader()) == [left]


def test_of_several_loaders_none_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert first_epoch(trainer(2), loader(), loader(), loader()) == [WHOLE] * 3
    assert capsys.readouterr().err == ""


class Own(DataLoader[Any]):
    """A loader of the user's."""


@pytest.mark.parametrize(
    "own",
    [
        loader(shuffle=True),
        loader(sampler=SubsetRandomSampler(range(10))),
        Own(NUMBERS, 2, collate_fn=list),
        DataLoader(Stream(), 2, collate_fn=list),
        DataLoader(NUMBERS, batch_size=None),
    ],
    ids=["random", "sampler", "subclass", "stream", "unbatched"],
)
def test_where_the_order_does_not_depend_on_seed_and_epoch_alone_nothing_is_changed(own: DataLoader[Any]) -> None:
    assert wind_loader.process_and_wind(trainer(2), [], own) is own


@pytest.mark.parametrize(("done", "epoch", "skipped"), [(2, 1, 2), (0, 1, 0), (5, 2, 0)])
def test_the_epoch_of_distributed_samplers_is_set(done: int, epoch: int, skipped: int) -> None:
    """Of several, too: their samples belong together."""
    samplers = [DistributedSampler(NUMBERS, 1, 0, shuffle=True) for _number in range(4)]
    samplers[0].set_epoch(epoch)
    expected = list(loader(sampler=samplers[0]))
    assert first_epoch(trainer(done), loader(sampler=samplers[1])) == [expected[skipped:]]
    assert first_epoch(trainer(done), *(loader(sampler=one) for one in samplers[2:])) == [expected, expected]


def test_the_scripts_own_loader_stays_as_it_is() -> None:
    own = loader()
    wound = wind_loader.process_and_wind(trainer(2), [], own)
    assert wound is not own and list(own) == WHOLE and list(pickle.loads(pickle.dumps(wound))) == WHOLE[2:]
    assert list(wind_loader.process_and_wind(trainer(3), [], own)) == WHOLE[3:]
