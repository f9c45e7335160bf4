"""Bins of cells against a plain loop; a cell with its own bins is the cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.collate import Collator
from cellxpert.data.vocabulary import FeatureBlock, Vocabulary
from cellxpert.tasks.bins import bins_at, bins_of, measured, with_bins


def test_bins_at_places(subjects):
    tokens = subjects.collator.tokens
    rng = np.random.default_rng(0)
    rows = rng.permutation(tokens.n_cells)[:40]
    features = rng.permutation(subjects.collator.n_features)[:11]
    found = bins_at(subjects.collator, rows, features)
    for n, row in enumerate(rows):
        own = slice(tokens.start[row], tokens.start[row + 1])
        known = dict(zip(tokens.feature[own].tolist(), tokens.bin[own].tolist(), strict=True))
        assert found[n].tolist() == [known.get(f, 0) for f in features.tolist()]
    assert (found > 0).any()
    assert bins_at(subjects.collator, rows, np.zeros(0, np.int64)).shape == (40, 0)


def test_measured_features(subjects, screened):
    """Genes that were set count as not measured in their cells."""
    mdata = screened._data
    here = measured(subjects.collator, np.arange(mdata.n_obs))
    has_rna, has_protein = (mdata.obsmap[name].ravel() > 0 for name in ("rna", "protein"))
    assert (here[:, 44:] == has_protein[:, None]).all()
    names = screened._state.vocabulary.names[:44]
    for i, condition in enumerate(mdata.obs["perturbation"].astype(str)):
        assert here[i, :44].tolist() == [bool(has_rna[i]) and name not in condition.split("+") for name in names]


@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_cells_with_other_bins(tiny_cells, zeros):
    collator = tiny_cells
    if zeros == "keep":  # measured zeros are tokens
        from dataclasses import replace

        bin_NV = bins_at(collator, np.arange(3), np.arange(8))
        tokens = replace(
            collator.tokens,
            feature=np.tile(np.arange(8, dtype=np.int32), 3),
            bin=bin_NV.ravel().astype(np.uint8),
            start=np.arange(0, 25, 8),
        )
        collator = Collator(tokens, n_features=8, n_bins=3, zeros="keep", shuffle_positions=True, seed=5)
    rows, features = np.array([2, 0]), np.array([1, 4])
    same, plain = with_bins(collator, rows, features, bin_NM=bins_at(collator, rows, features)), collator(rows)
    for name in ("feature_T", "bin_T", "lengths_B", "measured_PV", "pattern_B", "row_B", "position_T"):
        one, other = getattr(same, name), getattr(plain, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    new = np.array([[0, 1], [2, 0]])
    batch = with_bins(collator, rows, features, bin_NM=new)
    for n, row in enumerate(rows):
        expected = dict(enumerate(bins_at(collator, np.array([row]), np.arange(8))[0].tolist()))
        expected |= dict(zip(features.tolist(), new[n].tolist(), strict=True))
        if zeros == "drop":
            expected = {f: b for f, b in expected.items() if b}
        own = slice(int(batch.lengths_B[:n].sum()), int(batch.lengths_B[: n + 1].sum()))
        found = dict(zip(batch.feature_T[own].tolist(), batch.bin_T[own].tolist(), strict=True))
        assert found.pop(8) == 0  # [CLS]
        assert found == expected
    assert bins_at(collator, rows, features).tolist() != new.tolist()  # the tokens given are as they were


def _vocabulary(edges: list[float], means: list[float]) -> Vocabulary:
    def block(role: str, shift: float) -> FeatureBlock:
        return FeatureBlock(
            role=role,
            names=("a", "b"),
            ids=None,
            edges=np.array(edges) + shift,
            bin_means=np.array([0.0, *(np.array(means) + shift)]),
            counts=np.ones(2),
            transform="log" if role == "rna" else "clr",
        )

    return Vocabulary((block("rna", 0.0), block("protein", 5.0)), len(means) + 1, "global")


@settings(deadline=None)
@given(st.lists(st.integers(10, 4000), min_size=5, max_size=5, unique=True), st.integers(0, 2**32 - 1))
def test_bins_of_magnitudes(thousandths, seed):
    """By the edges of each feature's own modality; what a bin stands for falls into it."""
    numbers = [n / 1000 for n in sorted(thousandths)]  # so far apart that 5 can be added without rounding them together
    edges, means = numbers[1::2], numbers[0::2]
    vocabulary = _vocabulary(edges, means)
    level = np.random.default_rng(seed).uniform(0, 9, (6, 4))
    level[0] = 0
    found = bins_of(vocabulary, np.arange(4), level)
    for n, m in np.ndindex(*level.shape):
        own = edges if m < 2 else [e + 5 for e in edges]
        assert found[n, m] == (0 if level[n, m] == 0 else 1 + sum(e <= level[n, m] for e in own))
    some = np.array([3, 0])
    for b in range(4):
        decoded = vocabulary.decode(some, np.full(2, b))
        assert bins_of(vocabulary, some, decoded).tolist() == [b, b]


def test_the_vocabulary_of_a_model_is_inverted(screened):
    vocabulary = screened._state.vocabulary
    feature = np.arange(vocabulary.n_features)
    means = [vocabulary.block(role).bin_means for role in vocabulary.roles]
    distinct = [b for b in range(50) if all(b == 0 or m[b] > m[b - 1] for m in means)]
    assert len(distinct) > 40
    for b in distinct:
        assert (bins_of(vocabulary, feature, vocabulary.decode(feature, b)) == b).all()
