"""Batches: every cell once, bounded, of similar length, and the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.collate import Collator
from cellxpert.data.loaders import CellDataModule, inference_batches, length_aware_batches
from cellxpert.data.tokens import Tokens


def _tokens(lengths: np.ndarray, n_features: int = 50) -> Tokens:
    feature = [np.arange(n) for n in lengths]
    n = len(lengths)
    return Tokens(
        feature=np.concatenate([*feature, []]).astype(np.int32),
        bin=np.ones(lengths.sum(), np.uint8),
        start=np.r_[0, np.cumsum(lengths)],
        rows=np.arange(n),
        pattern=np.zeros(n, np.int32),
        measured_features=np.ones((1, n_features), bool),
    )


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    max_tokens=st.integers(1, 200),
    seed=st.one_of(st.none(), st.integers(0, 5)),
)
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_cell_once_within_bounds(lengths, batch_size, max_tokens, seed) -> None:
    sizes = np.array(lengths)
    rows = np.arange(len(sizes))
    rng = None if seed is None else np.random.default_rng(seed)
    batches = length_aware_batches(rows, sizes, batch_size=batch_size, rng=rng, max_tokens=max_tokens)
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * (sizes[batch].max() + 1) <= max_tokens


def test_inference_batches_are_sorted_by_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = length_aware_batches(np.arange(200), lengths, batch_size=16, rng=None)
    assert (np.diff(lengths[np.concatenate(batches)]) >= 0).all()


def test_inference_batches_have_no_questions() -> None:
    lengths = np.array([3, 9, 1, 4])
    collator = Collator(_tokens(lengths), n_features=50, n_bins=5)
    rows = []
    for chosen, batch in inference_batches(collator, np.arange(4), batch_size=2):
        assert batch.masked is None
        assert batch.whole is None
        assert batch.lengths_B.tolist() == (lengths[chosen] + 1).tolist()
        rows += chosen.tolist()
    assert sorted(rows) == [0, 1, 2, 3]


@pytest.fixture
def module() -> CellDataModule:
    lengths = np.random.default_rng(1).integers(5, 40, 30)
    collator = Collator(_tokens(lengths), n_features=50, n_bins=5, n_queries=8)
    return CellDataModule(
        collator,
        train_rows=np.arange(24),
        validation_rows=np.arange(24, 30),
        labels=np.arange(30) % 3,
        batch_size=8,
        seed=4,
    )


def test_training_batches_repeat_for_a_seed(module: CellDataModule) -> None:
    first, second = list(module.train_dataloader()), list(module.train_dataloader())
    assert module.n_steps(1) == len(first) == 3
    for a, b in zip(first, second, strict=True):
        assert a.feature_T.equal(b.feature_T)
        assert a.masked.query_BQ.equal(b.masked.query_BQ)
    rows = np.concatenate([b.row_B.numpy() for b in first])
    assert sorted(rows.tolist()) == list(range(24))


def test_validation_masks_are_the_same_every_time(module: CellDataModule) -> None:
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert sorted(np.concatenate([b.row_B.numpy() for b in first]).tolist()) == list(range(24, 30))
    assert all(a.masked.query_BQ.equal(b.masked.query_BQ) for a, b in zip(first, second, strict=True))


def test_clones_repeat_cells(module: CellDataModule) -> None:
    module.clones = 4
    rows = np.concatenate([b.row_B.numpy() for b in module.train_dataloader()])
    assert sorted(rows.tolist()) == sorted(list(range(24)) * 4)
