"""Principal components and factors against numpy's dense decomposition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from cellxpert.data import components
from cellxpert.data.components import FactorModel, deviations, factor_model, principal_components, scaled_magnitudes
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
        measured_features=np.ones((1, bins.shape[1]), bool),
    )


def test_magnitudes_are_those_of_a_loop() -> None:
    tokens, rows = _tokens(_bins(30, structured=False)), np.array([5, 2, 2, 29, 7])
    scale = np.stack([SCALE, 3 * SCALE])
    expected = np.zeros((len(rows), 20))
    for i, row in enumerate(rows):
        for k in range(tokens.start[row], tokens.start[row + 1]):
            expected[i, tokens.feature[k]] = scale[MODALITY[tokens.feature[k]], tokens.bin[k]]
    assert np.array_equal(scaled_magnitudes(tokens, rows, scale_MK=scale, modality_V=MODALITY).toarray(), expected)


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


# --- factors -----------------------------------------------------------------------------------------------------------

LEVELS = np.array([[0.0, 0.4, 1.1, 2.3], [0.0, 0.9, 1.0, 1.6]])


def _mosaic(bins: np.ndarray) -> Tokens:
    """A third of the cells, and the other ones, have patterns of their own; the third lacks the second modality."""
    tokens = _tokens(bins)
    pattern = np.where(np.arange(len(bins)) < len(bins) // 3, 2, 1).astype(np.int32)
    measured = np.ones((3, 20), bool)
    measured[0] = False  # of cells that are not there
    measured[2, 12:] = False
    return dataclasses.replace(tokens, pattern=pattern, measured_features=measured)


def _factors(tokens: Tokens, rows: np.ndarray, **kwargs: object) -> FactorModel:
    given = {"modality_V": MODALITY, "level_MK": LEVELS, "n_factors": 4, "seed": 0}
    return factor_model(tokens, rows, **(given | kwargs))


def _dense(bins: np.ndarray, tokens: Tokens, rows: np.ndarray, groups: np.ndarray | None = None) -> tuple:
    """Centre, deviation and standardised values of the rows, cell by cell; NaN where nothing was measured."""
    value = np.array([[LEVELS[MODALITY[v], bins[i, v]] for v in range(20)] for i in rows])
    value[~tokens.measured_features[tokens.pattern[rows]]] = np.nan
    centre, deviation = np.nanmean(value, axis=0), np.nanstd(value, axis=0)
    told = deviation.copy()
    for v in np.flatnonzero(told > 1e-4):  # a rare feature's cap is 10 deviations above the centre
        shown = value[value[:, v] > 0, v]
        cap = shown.mean() + 2 * (shown.std() if shown.std() > 1e-4 else 1)
        deviation[v] = max(told[v], (cap - centre[v]) / 10)
    told[told < 1e-4] = deviation[deviation < 1e-4] = 1.0
    x = (value - centre) / deviation
    if groups is not None:
        for g in set(groups[rows]):
            own = groups[rows] == g
            x[own] -= x[own].mean(axis=0)  # all of it NaN where nothing was measured
    return centre, deviation, (told / deviation) ** 2, np.nan_to_num(x)


@pytest.mark.parametrize("conditions", [False, True])
@pytest.mark.parametrize("mosaic", [False, True])
def test_factors_are_those_of_a_dense_decomposition(mosaic: bool, conditions: bool) -> None:
    """Tipping and Bishop's maximum-likelihood loadings; what was not measured is at its mean: of its group, where there are any."""
    bins = _bins(150, structured=True, mosaic=mosaic)
    bins[:, 3] = 2  # a feature that never varies
    bins[:, 4] = 0
    bins[60, 4] = 3  # one that a single cell shows
    tokens = _mosaic(bins) if mosaic else _tokens(bins)
    rows = np.arange(0, 150, 2)
    condition = np.random.default_rng(0).integers(0, 3, 150)
    # a group is a condition within a pattern
    groups = condition + 10 * tokens.pattern if conditions else None
    found = _factors(tokens, rows, condition_N=condition if conditions else None)
    centre, deviation, variance, x = _dense(bins, tokens, rows, groups)
    np.testing.assert_allclose(found.centre_V, centre, atol=1e-6)
    np.testing.assert_allclose(found.deviation_V, deviation, atol=1e-6)
    _, size, right = np.linalg.svd(x, full_matrices=False)
    explained = size**2 / len(rows)
    measured = np.delete(
        tokens.measured_features[tokens.pattern[rows]], 3, axis=1
    )  # what is left is left of what was measured
    assert variance[4] < 0.5
    rest = (measured.mean(axis=0) @ np.delete(variance, 3) - explained[:4].sum()) / 15
    loading = right[:4].T * np.sqrt(np.maximum(explained[:4] - rest, 0))
    np.testing.assert_allclose(found.loading_VR @ found.loading_VR.T, loading @ loading.T, atol=1e-5)
    np.testing.assert_allclose((found.loading_VR**2).sum(axis=0), (loading**2).sum(axis=0), atol=1e-5)  # largest first
    np.testing.assert_allclose(found.unique_V, np.clip(1 - (loading**2).sum(axis=1), 0.1, 1), atol=1e-5)
    assert not found.loading_VR[3].any()
    assert (found.deviation_V[3], found.unique_V[3]) == (1, 1)
    assert found.loading_VR.dtype == found.centre_V.dtype == np.float32


def test_a_planted_covariance_is_found() -> None:
    """Of two factors and noise, through 250 bins: loadings up to a rotation, and what they leave."""
    rng = np.random.default_rng(0)
    n_cells, n_features = 4000, 20
    loading = rng.normal(size=(n_features, 2)) * [0.6, 0.4]
    loading /= np.maximum(1, np.sqrt((loading**2).sum(axis=1, keepdims=True) / 0.8))
    unique = np.full(n_features, 0.45)
    x = rng.normal(size=(n_cells, 2)) @ loading.T + rng.normal(size=(n_cells, n_features)) * np.sqrt(unique)
    mean, scale = rng.uniform(2, 4, n_features), rng.uniform(0.2, 0.5, n_features)
    grid = np.linspace(0, 8, 250)
    bins = np.abs(grid - (mean + scale * x)[..., None]).argmin(-1)
    found = factor_model(
        _tokens(bins),
        np.arange(n_cells),
        modality_V=np.zeros(n_features, np.int64),
        level_MK=grid[None],
        n_factors=2,
        seed=0,
    )
    total = (loading**2).sum(axis=1) + unique
    np.testing.assert_allclose(found.centre_V, mean, atol=0.03)
    np.testing.assert_allclose(found.deviation_V, scale * np.sqrt(total), rtol=0.06)
    standardised = loading / np.sqrt(total)[:, None]
    cosine = np.linalg.svd(np.linalg.qr(standardised)[0].T @ np.linalg.qr(found.loading_VR)[0])[1]
    assert (cosine > 0.98).all()
    np.testing.assert_allclose(found.loading_VR @ found.loading_VR.T, standardised @ standardised.T, atol=0.09)


def test_the_centre_may_be_that_of_other_cells() -> None:
    """As of control cells; a feature that none of these measured keeps the centre of all."""
    bins = _bins(150, structured=True, mosaic=True)
    tokens, rows = _mosaic(bins), np.arange(150)
    usual = rows[:30:2]  # all without the second modality
    found, plain = _factors(tokens, rows, usual_rows=usual), _factors(tokens, rows)
    value = np.stack([LEVELS[MODALITY, b] for b in bins])
    np.testing.assert_allclose(found.centre_V[:12], value[usual, :12].mean(axis=0), atol=1e-6)
    assert not np.allclose(found.centre_V[:12], plain.centre_V[:12], atol=0.05)
    np.testing.assert_allclose(found.centre_V[12:], value[50:, 12:].mean(axis=0), atol=1e-6)
    some = _factors(tokens, rows, usual_rows=rows[40:60])  # ten of them measured all features
    np.testing.assert_allclose(some.centre_V[:12], value[40:60, :12].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(some.centre_V[12:], value[50:60, 12:].mean(axis=0), atol=1e-6)
    for name in ("deviation_V", "loading_VR", "unique_V"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_differences_between_conditions_are_no_factors() -> None:
    """A gene that follows the condition alone varies with nothing within one."""
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 2, (200, 20))
    condition = np.arange(200) % 2
    bins[:, :6] = 1 + 2 * condition[:, None] - (rng.random((200, 6)) < 0.2)
    found, blind = (_factors(_tokens(bins), np.arange(200), n_factors=1, condition_N=c) for c in (condition, None))
    assert (blind.loading_VR[:6] ** 2).mean() > 0.6
    assert (found.loading_VR[:6] ** 2).mean() < 0.1


def test_rare_features_make_no_factors() -> None:
    """Twelve features that one cell shows together are no way in which cells differ."""
    bins = _bins(600, structured=True)
    bins[:, :12] = 0
    bins[100, :12] = 3
    found = _factors(_tokens(bins), np.arange(600), n_factors=4)
    np.testing.assert_allclose(found.deviation_V[:12] * components.MAX_DEVIATIONS, found.cap_V[:12], rtol=0.01)
    assert np.abs(found.loading_VR[:12]).max() < 0.1
    assert (found.loading_VR[12:] ** 2).sum(axis=1).max() > 0.3


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_few_cells_have_few_factors(n_cells: int) -> None:
    found = _factors(_tokens(_bins(n_cells, structured=True)), np.arange(n_cells))
    assert found.loading_VR.shape[1] <= max(n_cells - 1, 0)
    for values in vars(found).values():
        assert np.isfinite(values).all()
    nothing = _factors(_tokens(np.zeros((5, 20), int)), np.arange(5))
    assert nothing.loading_VR.shape == (20, 0)
    assert (nothing.unique_V == 1).all()


def test_factors_of_a_sample_and_of_all_agree_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, rows = _tokens(_bins(600, structured=True)), np.arange(600)
    whole, again = _factors(tokens, rows, n_factors=2), _factors(tokens, rows, n_factors=2)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(values, getattr(again, name))
    monkeypatch.setattr(components, "MAX_CELLS", 200)
    sampled = _factors(tokens, rows, n_factors=2)
    cosine = np.linalg.svd(np.linalg.qr(sampled.loading_VR)[0].T @ np.linalg.qr(whole.loading_VR)[0])[1]
    assert (cosine > 0.95).all()
    assert not np.array_equal(sampled.centre_V, whole.centre_V)


def test_deviations_are_from_the_mean_of_the_own_group() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=(11, 7)) * (rng.random((11, 7)) < 0.5)
    group, mean = np.arange(11) % 3, rng.normal(size=(3, 7))
    member = sparse.csr_array(np.eye(3)[group])
    operator = deviations(sparse.csr_array(level), member, mean)
    assert operator.shape == (11, 7)
    assert np.allclose(operator @ np.eye(7), level - mean[group])
    assert np.allclose(operator.rmatmat(np.eye(11)), (level - mean[group]).T)
