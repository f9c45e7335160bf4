"""Batches in an order that a resumed run repeats: length-aware, seeded by (seed, epoch, batch)."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch

from cellxpert.batch import Batch
from cellxpert.data.collate import Collator

__all__ = ["CellDataModule", "inference_batches", "length_aware_batches"]

Rows = npt.NDArray[np.int64]

TRAINING_TOKENS = 2**16
"""Most tokens in a training batch: bounds memory when cells are long."""
INFERENCE_TOKENS = 2**12
"""Most tokens in an inference batch: larger outputs leave the CPU's caches (see benchmarks)."""


def _cut(rows: Rows, lengths: Rows, *, batch_size: int, max_tokens: int) -> list[Rows]:
    """Cut rows, in their order, into batches of at most ``batch_size`` cells and ``max_tokens`` (padded) tokens."""
    batches, begin, longest = [], 0, 0
    for i, row in enumerate(rows):
        longest_with = max(longest, int(lengths[row]) + 1)
        size = i - begin + 1
        if size > batch_size or (size > 1 and size * longest_with > max_tokens):
            batches.append(rows[begin:i])
            begin, longest_with = i, int(lengths[row]) + 1
        longest = longest_with
    if begin < len(rows):
        batches.append(rows[begin:])
    return batches


def length_aware_batches(
    rows: Rows,
    lengths: Rows,
    *,
    batch_size: int,
    rng: np.random.Generator | None,
    max_tokens: int = TRAINING_TOKENS,
) -> list[Rows]:
    """Cut cells into batches that their lengths bound.

    Parameters
    ----------
    rows
        Cells to batch.
    lengths
        Number of tokens of every cell of the object.
    batch_size, max_tokens
        Bounds of a batch; a single cell may exceed the second.
    rng
        Shuffles cells (training); None sorts them by length, so that a batch holds cells of similar length (inference).

    Returns
    -------
    Rows of each batch; together every row once.
    """
    if rng is None:
        order = rows[np.argsort(lengths[rows], kind="stable")]
        return _cut(order, lengths, batch_size=batch_size, max_tokens=max_tokens)
    # not sorted even in part: cells of one type are of similar length, and a batch of one type is a biased gradient
    return _cut(rng.permutation(rows), lengths, batch_size=batch_size, max_tokens=max_tokens)


def inference_batches(collator: Collator, rows: Rows, *, batch_size: int | None = None) -> Iterator[tuple[Rows, Batch]]:
    """Yield (rows, batch) sorted by length, without masks or questions."""
    lengths = np.diff(collator.tokens.start)
    size = len(rows) if batch_size is None else batch_size
    for chosen in length_aware_batches(rows, lengths, batch_size=max(1, size), rng=None, max_tokens=INFERENCE_TOKENS):
        yield chosen, collator(chosen)


class _Epoch:
    """The batches of one epoch; batch i draws from a generator of its own.

    Not a ``DataLoader``: making a batch takes a few milliseconds, so that worker processes would cost more than they save.
    """

    def __init__(self, collator: Collator, batches: list[Rows], *, labels: Rows | None, seeds: list[int]) -> None:
        self.collator, self.batches, self.labels, self.seeds = collator, batches, labels, seeds

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for i, rows in enumerate(self.batches):
            yield self.collator(rows, rng=np.random.default_rng([*self.seeds, i]), labels=self.labels)


class CellDataModule(pl.LightningDataModule):
    """Training and validation batches.

    Parameters
    ----------
    collator
        Makes batches of tokens.
    train_rows, validation_rows
        Cells of either side; no validation if the second is empty.
    labels
        Label code of every cell of the object (``IGNORE``: none), or None.
    batch_size
        Cells per step (and process).
    clones
        How often a cell occurs in an epoch, each time with its own order and mask (4 as published, with learned positions).
    seed
        Seed of shuffling and masking.
    """

    def __init__(
        self,
        collator: Collator,
        *,
        train_rows: Rows,
        validation_rows: Rows,
        labels: Rows | None,
        batch_size: int,
        seed: int,
        clones: int = 1,
    ) -> None:
        super().__init__()
        self.collator, self.labels, self.batch_size, self.seed = collator, labels, batch_size, seed
        self.train_rows, self.validation_rows, self.clones = train_rows, validation_rows, clones

    def _batches(self, epoch: int) -> list[Rows]:
        rows = np.tile(self.train_rows, self.clones)
        rng = np.random.default_rng([self.seed, epoch])
        lengths = np.diff(self.collator.tokens.start)
        return length_aware_batches(rows, lengths, batch_size=self.batch_size, rng=rng)

    def n_steps(self, n_epochs: int, *, n_processes: int = 1) -> int:
        """Optimiser steps in a number of epochs (their batches depend on the order of the cells)."""
        return sum(len(self._batches(epoch)) // n_processes or 1 for epoch in range(n_epochs))

    def train_dataloader(self) -> _Epoch:
        """Batches of the current epoch, shared out among the processes."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        batches = self._batches(epoch)
        if self.trainer is not None and (size := self.trainer.world_size) > 1:
            batches = batches[: max(size, len(batches) // size * size)][self.trainer.global_rank :: size]
        seeds = [self.seed, epoch, 0 if self.trainer is None else self.trainer.global_rank]
        return _Epoch(self.collator, batches, labels=self.labels, seeds=seeds)

    def val_dataloader(self) -> _Epoch:
        """Held-out cells with the same masks at every epoch, so that losses compare."""
        lengths = np.diff(self.collator.tokens.start)
        batches = length_aware_batches(self.validation_rows, lengths, batch_size=self.batch_size, rng=None)
        return _Epoch(self.collator, batches, labels=self.labels, seeds=[self.seed, 2**31])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch; lengths stay on the CPU."""
        return batch.to(device)
