# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Go on in the middle of an epoch with the batches that are left of it.

Lightning counts the batches of an epoch on from a checkpoint, but fetches them from the epoch's first one.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from typing import Any


class SkipOnce:
    """Yield the batches of indices of torch's ``BatchSampler``, the first time from a later one on.

    Attributes:
        count: how many to skip.
        sampler, batch_size, drop_last: the batch sampler's.
    """

    def __init__(self, batches: Any, count: int, says: str) -> None:
        """Skip so many batches, and print a text then."""
        self.count = count
        self.sampler, self.batch_size, self.drop_last = batches.sampler, batches.batch_size, batches.drop_last
        self._batches = batches
        self._says = says

    def __iter__(self) -> Iterator[list[int]]:
        """Yield them."""
        # Only when the first is asked for: a loader with workers makes two iterators.
        count, self.count = self.count, 0
        if count and self._says:
            sys.stderr.write(self._says)
        yield from itertools.islice(self._batches, count, None)

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return len(self._batches)


def process_and_wind(trainer: Any, seen: list[SkipOnce | None], loader: Any) -> Any:
    """Do what a strategy's ``process_dataloader`` does; the loader that a training goes on with begins where it was.

    Args:
        trainer: Lightning's.
        seen: what skips batches of each loader that came before; this one's is added. Of several none skips.
        loader: the training's, or another.
    """
    from torch.utils.data import DistributedSampler

    strategy = trainer.strategy
    loader = type(strategy).process_dataloader(strategy, loader)
    loop = trainer.fit_loop
    # Before 2.5, Lightning counts on from the batch before; is_resuming is there since 2.5.3.
    is_resuming = loop.restarting or getattr(loop, "is_resuming", False)
    if not trainer.training or not is_resuming or not hasattr(loop, "restarted_mid_epoch"):
        return loader
    if isinstance(getattr(loader, "sampler", None), DistributedSampler):
        # Lightning does that, too, but after a loader with workers has begun.
        epochs, is_over = loop.epoch_progress.current, loop.epoch_loop.batch_progress.is_last_batch
        loader.sampler.set_epoch(epochs.started if is_over else epochs.processed)
    wound = wind(trainer, loader) if loop.restarting and not seen else None  # else a new epoch begins
    for one in filter(None, seen):
        one.count = 0
    seen.append(None if wound is None else wound.batch_sampler)
    return loader if wound is None else wound


def wind(trainer: Any, loader: Any) -> Any:
    """Return a copy of a loader that skips what a training has had, if that goes on in the middle of an epoch.

    None if it does not, if the order of the samples does not depend on seed and epoch alone, or if the datamodule
    restores where it was itself.
    """
    from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

    is_plain = loader.__class__ is DataLoader and loader.batch_sampler.__class__ is BatchSampler
    restores = getattr(type(trainer.datamodule), "load_state_dict", None)
    is_own = restores and not restores.__module__.startswith(("pytorch_lightning.", "lightning."))
    if is_own or not is_plain or loader.sampler.__class__ not in (DistributedSampler, SequentialSampler):
        return None
    count, limit = trainer.fit_loop.epoch_loop.batch_progress.current.processed, trainer.limit_train_batches
    length = min(len(loader), limit if isinstance(limit, int) else int(limit * len(loader)))
    if not 0 < count < length:
        return None
    says = f"thunderhead: goes on at batch {count} of the {length} of this epoch\n" if trainer.is_global_zero else ""
    wound = copy.copy(loader)  # the script's own may be used again
    skips = SkipOnce(loader.batch_sampler, count, says)
    vars(wound).update(batch_sampler=skips, _iterator=None)  # a loader that is made refuses to be changed
    return wound
