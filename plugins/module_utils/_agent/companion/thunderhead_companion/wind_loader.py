# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Go on in the middle of an epoch with the batches that are left of it.

Lightning counts the batches of an epoch on from a checkpoint, but fetches them from the epoch's first one.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any


class SkipOnce:
    """Yield a batch sampler's batches, the first time from a later one on."""

    def __init__(self, batches: Any, count: int, says: str) -> None:
        """Skip so many batches, and print a sentence then, if it is not empty."""
        self.count = count
        self._batches = batches
        self._says = says

    def __iter__(self) -> Iterator[Any]:
        """Yield lists of indices."""
        # Only when the first is asked for: a loader with workers makes two iterators.
        count, self.count = self.count, 0
        if count and self._says:
            print(self._says, file=sys.stderr)
        yield from itertools.islice(self._batches, count, None)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        """Return what else is asked of a batch sampler."""
        return getattr(self._batches, name)


def process_wound(trainer: Any, earlier: list[SkipOnce | None], loader: Any) -> Any:
    """Do what a strategy's ``process_dataloader`` does; the loader that a training goes on with begins where it was.

    Args:
        trainer: Lightning's.
        earlier: what was done to the loaders that came before; this one's is added. Of several none is changed.
        loader: the training's, or another.
    """
    strategy = trainer.strategy
    loader = type(strategy).process_dataloader(strategy, loader)
    try:
        if trainer.training and (trainer.fit_loop.restarting or trainer.fit_loop.is_resuming):
            earlier.append(None if earlier else wind(trainer, loader))
            if len(earlier) > 1 and earlier[0]:
                earlier[0].count = 0
    except (AttributeError, TypeError):
        pass  # another Lightning
    return loader


def wind(trainer: Any, loader: Any) -> SkipOnce | None:
    """Have a loader skip the batches that a training has had, if it goes on in the middle of an epoch.

    None if it does not, or if the order of the samples does not depend on the epoch alone.
    """
    from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

    is_plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    if not is_plain or type(loader.sampler) not in (DistributedSampler, SequentialSampler):
        return None
    limit, loop = trainer.limit_train_batches, trainer.fit_loop
    length = min(len(loader), limit if isinstance(limit, int) else int(limit * len(loader)))
    count, epochs = loop.epoch_loop.batch_progress.current.processed, loop.epoch_progress.current
    if isinstance(loader.sampler, DistributedSampler):  # Lightning does that too late for a loader with workers
        loader.sampler.set_epoch(epochs.started if count >= length else epochs.processed)
    if not 0 < count < length:
        return None
    says = f"thunderhead: goes on at batch {count} of the {length} of this epoch" if trainer.is_global_zero else ""
    found = SkipOnce(loader.batch_sampler, count, says)
    object.__setattr__(loader, "batch_sampler", found)  # a loader refuses that once it is made
    return found
