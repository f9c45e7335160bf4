"""Principal components against numpy's dense decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from cellxpert.data import components
from cellxpert.data.components import principal_components
from cellxpert.data.tokens import Tokens

SCALE = np.array([0.0, 0.5, 0.75, 1.0])
MODALITY = np.array([0] * 12 + [1] * 8)


def _bins(n_cells: int, *, structured: bool, mosaic: bool = False) -> np.ndarray:
    """Three groups of cells that express different features (or none), a third of them without the second modality."""
    rng = np.random.default_rng(0)
    rate = np.full((n_cells, 20), 0.5)
    if structured:
        group = np.arange(n_cells) % 3
        rate[np.arange(20) % 3 == group[:, None]] = 0.95
        rate[np.arange(20) % 3 == (group[:, None] + 1) % 3] = 0.1
    bins = rng.integers(1, 4, (n_cells, 20)) * (rng.random((n_cells, 20)) < rate)
    if mosaic:
        bins[: n_cells // 3, 12:] = 0
    return bins


def _tokens(bins: np.ndarray) -> Tokens:
    cell, feature = np.nonzero(bins)
    return Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=np.zeros(len(bins), np.int32),
        measured_features=np.ones((1, 20), bool),
    )


def _find(bins: np.ndarray, rows: np.ndarray, *, max_components: int = 19, seed: int = 0):
    return principal_components(
        _tokens(bins), rows, modality_V=MODALITY, scale_K=SCALE, max_components=max_components, seed=seed
    )


@pytest.mark.parametrize("mosaic", [False, True])
def test_components_are_those_of_a_dense_decomposition(mosaic: bool) -> None:
    bins = _bins(150, structured=True, mosaic=mosaic)
    rows = np.arange(0, 150, 2)
    usual, vectors = _find(bins, rows)
    magnitude = SCALE[bins[rows]]
    deviation = np.zeros_like(magnitude)
    for m in (0, 1):
        block = magnitude[:, m == MODALITY]
        has = block.sum(axis=1) > 0
        share = block[has] / block[has].sum(axis=1, keepdims=True)
        assert np.allclose(usual[m == MODALITY], share.mean(axis=0), atol=1e-6)
        centred = share - share.mean(axis=0)
        deviation[np.ix_(has, m == MODALITY)] = centred / np.sqrt((centred**2).sum() / has.sum())
    _, _, expected = np.linalg.svd(deviation, full_matrices=False)
    assert 2 <= vectors.shape[1] < 8  # three groups differ along two axes
    for c in (0, 1):
        found = vectors[:, c]
        # undo the weights of the modalities: the directions of the weighted matrix are orthonormal
        weighted = expected[c] * _weights(bins[rows])
        cosine = found @ weighted / np.linalg.norm(found) / np.linalg.norm(weighted)
        assert abs(cosine) == pytest.approx(1, abs=1e-5)


def _weights(bins: np.ndarray) -> np.ndarray:
    weights = np.zeros(20)
    for m in (0, 1):
        block = SCALE[bins[:, m == MODALITY]]
        block = block[block.sum(axis=1) > 0]
        share = block / block.sum(axis=1, keepdims=True)
        weights[m == MODALITY] = 1 / np.sqrt(share.var(axis=0).sum())
    return weights


def test_training_cells_have_length_c() -> None:
    bins = _bins(150, structured=True)
    usual, vectors = _find(bins, np.arange(150))
    score = np.zeros((150, vectors.shape[1]))
    for m in (0, 1):
        block = SCALE[bins[:, m == MODALITY]]
        score += (block / block.sum(axis=1, keepdims=True) - usual[m == MODALITY]) @ vectors[m == MODALITY]
    assert (score**2).sum(axis=1).mean() == pytest.approx(vectors.shape[1], rel=1e-4)


def test_chance_gives_few_components() -> None:
    """Of data without structure, parallel analysis keeps next to nothing of 19 directions."""
    assert _find(_bins(300, structured=False), np.arange(300))[1].shape[1] <= 2


def test_same_seed_same_components_and_a_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    bins, rows = _bins(600, structured=True), np.arange(600)
    whole = _find(bins, rows)
    assert all(np.array_equal(a, b) for a, b in zip(whole, _find(bins, rows), strict=True))
    monkeypatch.setattr(components, "MAX_CELLS", 200)
    sampled = _find(bins, rows)[1]
    overlap = np.linalg.svd(np.linalg.qr(sampled[:, :2])[0].T @ np.linalg.qr(whole[1][:, :2])[0])[1]
    assert (overlap > 0.95).all()


@pytest.mark.parametrize("n_cells", [1, 2])
def test_too_few_cells_have_at_most_one_component(n_cells: int) -> None:
    usual, vectors = _find(_bins(n_cells, structured=True), np.arange(n_cells))
    assert vectors.shape[1] <= n_cells - 1
    assert np.isfinite(usual).all()


def test_cells_without_tokens_do_no_harm() -> None:
    usual, vectors = _find(np.zeros((5, 20), int), np.arange(5))
    assert not usual.any()
    assert vectors.shape == (20, 0)
