"""Bins of chosen features in chosen cells, and cells in which these have other bins.

Letters: N cells, M chosen features, V features, B cells of a batch.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cellxpert.batch import Batch
from cellxpert.data.collate import Collator
from cellxpert.data.vocabulary import Vocabulary

__all__ = ["bins_at", "bins_of", "measured", "rebinned", "with_bins"]

Ints = npt.NDArray[np.int64]
NOTHING = 1e-9
"""Magnitudes up to this are zeros."""


def bins_at(collator: Collator, rows: Ints, feature_M: Ints) -> Ints:
    """Return the bins (N, M) of chosen features in chosen cells; 0 where a cell has no token of one."""
    tokens = collator.tokens
    place_V = np.full(collator.n_features, -1)
    place_V[feature_M] = np.arange(len(feature_M))
    lengths = tokens.start[rows + 1] - tokens.start[rows]
    cell = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(cell)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = tokens.start[rows][cell] + within
    place = place_V[tokens.feature[at]]
    bin_NM = np.zeros((len(rows), len(feature_M)), np.int64)
    bin_NM[cell[place >= 0], place[place >= 0]] = tokens.bin[at[place >= 0]]
    return bin_NM


def measured(collator: Collator, rows: Ints) -> npt.NDArray[np.bool_]:
    """Return which features were measured in each of the cells, (N, V)."""
    return collator.tokens.measured_features[collator.tokens.pattern[rows]]


def with_bins(collator: Collator, rows: Ints, feature_M: Ints, *, bin_NM: Ints) -> Batch:
    """Make a batch of cells in which chosen features have these bins, whether or not they were measured there."""
    return rebinned(collator, rows, feature_M, bin_NM=bin_NM)(np.arange(len(rows)))


def rebinned(collator: Collator, rows: Ints, feature_M: Ints, *, bin_NM: Ints) -> Collator:
    """Return the maker of batches of these cells alone, in which chosen features have other bins."""
    bin_NV = bins_at(collator, rows, np.arange(collator.n_features))
    bin_NV[:, feature_M] = bin_NM
    keep_NV = bin_NV > 0
    if collator.zeros == "keep":
        keep_NV |= measured(collator, rows)
    cell, feature = np.nonzero(keep_NV)
    tokens = replace(
        collator.tokens,
        feature=feature.astype(np.int32),
        bin=bin_NV[cell, feature].astype(np.uint8),
        start=np.concatenate([[0], np.cumsum(keep_NV.sum(axis=1))]),
        rows=collator.tokens.rows[rows],
        pattern=collator.tokens.pattern[rows],
        place=None if collator.tokens.place is None else collator.tokens.place[rows],
        image=None if collator.tokens.image is None else collator.tokens.image[rows],
    )
    other = copy.copy(collator)  # the same patterns and the same order of positions
    other.tokens = tokens
    return other


def bins_of(vocabulary: Vocabulary, feature_M: Ints, level_NM: npt.NDArray[np.float64]) -> Ints:
    """Return the bins (N, M), or (M,), that magnitudes fall into, by the edges of each feature's modality."""
    bin_NM = np.zeros(level_NM.shape, np.int64)
    for role in vocabulary.roles:
        first, edges = vocabulary.offset(role), vocabulary.block(role).edges
        own_M = (feature_M >= first) & (feature_M < first + len(vocabulary.block(role).names))
        level_NO = level_NM[..., own_M]
        bin_NM[..., own_M] = np.where(level_NO > NOTHING, 1 + np.searchsorted(edges, level_NO, side="right"), 0)
    return bin_NM
