"""Components and Gaussians of labels against dense numpy, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from cellxpert.data import cell_types
from cellxpert.data.cell_types import (
    PRIOR_CELLS,
    Components,
    TypeModel,
    find_components,
    n_replicated,
)
from cellxpert.data.tokens import Tokens

MODALITY = np.array([0] * 9 + [1] * 6)
SCALE = np.array([[0.0, 0.5, 1.0, 2.0], [0.0, 1.0, 1.5, 3.0]])
N_CELLS, N_LABELS = 120, 3
CODES = np.arange(N_CELLS) % N_LABELS


def _bins() -> np.ndarray:
    """Bins of cells of three kinds that show different features; -1: no token."""
    rng = np.random.default_rng(0)
    rate = np.full((N_CELLS, len(MODALITY)), 0.3)
    rate[np.arange(len(MODALITY)) % 3 == CODES[:, None]] = 0.9
    bins = rng.integers(1, 4, rate.shape) * (rng.random(rate.shape) < rate)
    return np.where(bins == 0, -1, bins)


def _tokens(bins: np.ndarray, *, mosaic: bool = False) -> Tokens:
    """Tokens of cells; of a mosaic every third cell lacks the second modality, and another third feature 2."""
    measured = np.ones((3, len(MODALITY)), bool)
    measured[1, MODALITY == 1] = False
    measured[2, 2] = False
    pattern = np.arange(len(bins)) % 3 if mosaic else np.zeros(len(bins), int)
    pattern = np.roll(pattern, 1) if mosaic else pattern
    bins = np.where(measured[pattern], bins, -1)
    cell, feature = np.nonzero(bins >= 0)
    return Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins >= 0).sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=pattern.astype(np.int32),
        measured_features=measured,
    )


def _dense(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of all cells, and what was measured, token by token."""
    level = np.zeros((tokens.n_cells, len(MODALITY)))
    for i in range(tokens.n_cells):
        for k in range(tokens.start[i], tokens.start[i + 1]):
            level[i, tokens.feature[k]] = SCALE[MODALITY[tokens.feature[k]], tokens.bin[k]]
    return level, tokens.measured_features[tokens.pattern]


def _find(tokens: Tokens, rows: np.ndarray, *, seed: int = 0) -> Components:
    return find_components(tokens, rows, scale_MK=SCALE, modality_V=MODALITY, seed=seed)


def _random_components(n_components: int = 4) -> Components:
    rng = np.random.default_rng(1)
    direct, _ = np.linalg.qr(rng.normal(size=(len(MODALITY), n_components)))
    return Components(usual_V=rng.gamma(2.0, 0.5, len(MODALITY)), direct_VP=direct)


@pytest.mark.parametrize("mosaic", [False, True])
def test_coordinates_are_projected_deviations(mosaic: bool) -> None:
    tokens, components = _tokens(_bins(), mosaic=mosaic), _random_components()
    level, measured = _dense(tokens)
    rows = np.arange(N_CELLS)[::-7]
    expected = (measured * (level - components.usual_V))[rows] @ components.direct_VP
    assert np.allclose(components.project(tokens, rows, scale_MK=SCALE, modality_V=MODALITY), expected)
    first = components.first(2)
    assert np.allclose(first.project(tokens, rows, scale_MK=SCALE, modality_V=MODALITY), expected[:, :2])


def test_a_feature_that_was_not_measured_deviates_by_nothing() -> None:
    """A cell without it lies where it would with the usual magnitude, and a measured zero does not."""
    components = _random_components()
    bins = _bins()[[0, 0, 0]]
    bins[:, 2] = [-1, -1, 2]  # not measured; a measured zero; a magnitude of 1
    tokens = _tokens(bins)
    tokens.pattern[0] = 2
    usual = components.usual_V.copy()
    usual[2] = SCALE[0, 2]
    components = Components(usual_V=usual, direct_VP=components.direct_VP)
    point = components.project(tokens, np.arange(3), scale_MK=SCALE, modality_V=MODALITY)
    assert np.allclose(point[0], point[2])
    assert not np.allclose(point[0], point[1])


def test_components_are_those_of_scikit_learn() -> None:
    tokens = _tokens(_bins())
    rows = np.arange(0, N_CELLS, 2)
    found = _find(tokens, rows)
    level = _dense(tokens)[0][rows]
    pca = PCA().fit(level)
    n = found.direct_VP.shape[1]
    assert n == len(MODALITY) - 1
    assert np.allclose(found.usual_V, pca.mean_)
    assert np.allclose(np.abs((found.direct_VP * pca.components_[:n].T).sum(axis=0)), 1, atol=1e-6)
    point = found.project(tokens, rows, scale_MK=SCALE, modality_V=MODALITY)
    assert np.allclose(point.var(axis=0, ddof=1), pca.explained_variance_[:n])


def test_components_of_a_mosaic_are_those_of_what_was_measured() -> None:
    tokens = _tokens(_bins(), mosaic=True)
    rows = np.arange(10, N_CELLS)
    found = _find(tokens, rows)
    level, measured = (x[rows] for x in _dense(tokens))
    usual = level.sum(axis=0) / measured.sum(axis=0)
    _, _, expected = np.linalg.svd(measured * (level - usual), full_matrices=False)
    assert np.allclose(found.usual_V, usual)
    assert np.allclose(np.abs((found.direct_VP[:, :3] * expected[:3].T).sum(axis=0)), 1, atol=1e-6)
    assert np.allclose(found.direct_VP.T @ found.direct_VP, np.eye(found.direct_VP.shape[1]))


def test_components_come_from_the_cells_given_and_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bins, rows = _bins(), np.arange(0, N_CELLS, 2)
    first, again = _find(_tokens(bins), rows), _find(_tokens(bins), rows)
    assert np.array_equal(first.direct_VP, again.direct_VP)
    bins[1::2] = 3
    other = _find(_tokens(bins), rows)
    assert np.allclose(first.usual_V, other.usual_V)
    assert np.allclose(np.abs((first.direct_VP * other.direct_VP).sum(axis=0)), 1, atol=1e-6)
    monkeypatch.setattr(cell_types, "N_COMPONENTS", 4)
    fewer = _find(_tokens(bins), rows).direct_VP
    assert fewer.shape == (len(MODALITY), 4)
    assert np.allclose(np.abs((fewer * first.direct_VP[:, :4]).sum(axis=0)), 1, atol=1e-6)


def test_two_cells_have_the_direction_between_them() -> None:
    tokens = _tokens(_bins())
    level = _dense(tokens)[0]
    found = _find(tokens, np.array([0, 1])).direct_VP
    between = (level[0] - level[1]) / np.linalg.norm(level[0] - level[1])
    assert found.shape == (len(MODALITY), 1)
    assert abs(found[:, 0] @ between) == pytest.approx(1)


@pytest.mark.parametrize("value", [-1, 2])
def test_cells_that_do_not_differ_lie_in_one_place(value: int) -> None:
    """Whether nothing is seen of them or the same in all."""
    tokens, rows = _tokens(np.full((30, len(MODALITY)), value)), np.arange(30)
    found = _find(tokens, rows)
    assert found.direct_VP.shape == (len(MODALITY), 1)
    point = found.project(tokens, rows, scale_MK=SCALE, modality_V=MODALITY)
    assert np.allclose(point, 0)
    types = TypeModel.fit(found, point, rows % 2, n_labels=2)
    assert np.allclose(types.distance(point), 0)


def test_one_feature_is_the_component() -> None:
    bins = np.arange(30)[:, None] % 4
    cell, feature = np.nonzero(bins)
    tokens = Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(30),
        pattern=np.zeros(30, np.int32),
        measured_features=np.ones((1, 1), bool),
    )
    given = {"scale_MK": SCALE, "modality_V": np.zeros(1, int)}
    found = find_components(tokens, np.arange(30), seed=0, **given)
    level = SCALE[0, bins[:, 0]]
    assert np.allclose(found.project(tokens, np.arange(30), **given)[:, 0], level - level.mean())


def test_fewer_differences_than_components() -> None:
    """Three kinds of cells differ along two axes; the other components have no variance."""
    tokens = _tokens(np.tile(_bins()[:3], (20, 1)))
    point = _find(tokens, np.arange(60)).project(tokens, np.arange(60), scale_MK=SCALE, modality_V=MODALITY)
    variance = point.var(axis=0)
    assert (variance[:2] > 0.1).all()
    assert np.allclose(variance[2:], 0)
    assert np.isfinite(point).all()


def test_features_that_nobody_measured_are_harmless() -> None:
    bins = _bins()
    bins[:, 4] = -1
    tokens = _tokens(bins)
    tokens.measured_features[:, 4] = False
    found = _find(tokens, np.arange(N_CELLS))
    assert found.usual_V[4] == 0
    assert np.isfinite(found.direct_VP).all()
    assert np.abs(found.direct_VP[4, :5]).max() < 1e-9


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0, 0.9, 0.5, 0.6], 4),  # all are found again
        ([1.0, 0.9, 0.8, 0.49, 0.9], 3),  # the first that is not ends it
        ([0.1, 0.1, 0.1, 0.1], 2),  # two at least
        ([0.1], 1),  # but no more than there are
    ],
)
def test_components_that_are_found_again(ratios: list[float], expected: int) -> None:
    """The ratio of variances is averaged over folds, each of which has its own scale."""
    found = np.array([[1.0], [10.0]]) * np.ones(len(ratios))
    new = found * np.array(ratios) * np.array([[1.1], [0.9]])
    assert n_replicated(found, new) == expected


def test_a_component_without_variance_is_not_found_again() -> None:
    assert n_replicated(np.array([[1.0, 1.0, 1.0, 0.0]]), np.array([[1.0, 1.0, 1.0, 0.0]])) == 3


def _types(n_labels: int = N_LABELS) -> tuple[TypeModel, np.ndarray, Tokens]:
    tokens = _tokens(_bins(), mosaic=True)
    components = _find(tokens, np.arange(N_CELLS)).first(5)
    point = components.project(tokens, np.arange(N_CELLS), scale_MK=SCALE, modality_V=MODALITY)
    return TypeModel.fit(components, point, CODES, n_labels=n_labels), point, tokens


def test_distances_are_those_of_mahalanobis() -> None:
    types, point, tokens = _types()
    mean = np.stack([point[c == CODES].mean(axis=0) for c in range(N_LABELS)])
    covariance = LedoitWolf(assume_centered=True).fit(point - mean[CODES]).covariance_
    precision = np.linalg.inv(covariance)
    own = np.array([mahalanobis(x, mean[c], precision) ** 2 for x, c in zip(point, CODES, strict=True)])
    spread = [(own[c == CODES].sum() / own.mean() + PRIOR_CELLS) / (40 + PRIOR_CELLS) for c in range(N_LABELS)]
    expected = [
        min(mahalanobis(x, m, precision) ** 2 / np.sqrt(s) for m, s in zip(mean, spread, strict=True)) for x in point
    ]
    assert np.allclose(types.spread_C, spread, rtol=1e-4)
    assert np.allclose(types.mean_CP, mean)
    assert np.allclose(types.root_PP @ types.root_PP.T, precision, rtol=1e-4)
    assert types.n_C.tolist() == [40, 40, 40]
    assert np.allclose(types.distance(point), expected, rtol=1e-4)
    assert np.allclose(types.distances(tokens, scale_MK=SCALE, modality_V=MODALITY), expected, rtol=1e-4)


def test_a_label_without_cells_is_near_to_none() -> None:
    """Its mean of 0 is where the usual cell lies."""
    types, point, _ = _types()
    more, _, _ = _types(N_LABELS + 2)
    assert more.n_C.tolist() == [40, 40, 40, 0, 0]
    origin = np.zeros((1, point.shape[1]))
    assert more.distance(origin) == pytest.approx(types.distance(origin))
    assert more.distance(origin)[0] > 0.1


def test_the_mean_of_a_label_has_no_distance() -> None:
    types, _, _ = _types()
    assert np.allclose(types.distance(types.mean_CP), 0, atol=1e-9)


def test_cells_that_do_not_differ_within_a_label() -> None:
    """No variance is no division by zero, and what differs from all labels is still far."""
    components = _random_components(3)
    point = np.eye(3)[CODES]
    types = TypeModel.fit(components, point, CODES, n_labels=N_LABELS)
    assert np.allclose(types.distance(point), 0)
    assert types.distance(point + 0.1).min() > 1e6


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), n_components=st.integers(1, 6), n_labels=st.integers(1, 5))
def test_distances_do_not_depend_on_the_axes(seed: int, n_components: int, n_labels: int) -> None:
    """Neither shrinkage nor distance changes when points turn."""
    rng = np.random.default_rng(seed)
    point, codes = rng.normal(size=(40, n_components)), rng.integers(0, n_labels, 40)
    turn, _ = np.linalg.qr(rng.normal(size=(n_components, n_components)))
    components = _random_components(n_components)
    plain = TypeModel.fit(components, point, codes, n_labels=n_labels).distance(point)
    turned = TypeModel.fit(components, point @ turn, codes, n_labels=n_labels).distance(point @ turn)
    assert np.allclose(plain, turned, rtol=1e-6, atol=1e-9)
    assert (plain >= 0).all()
