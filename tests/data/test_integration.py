"""Places of cells against conditioning of the full Gaussian, shares against a plain loop, batches against known offsets."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.integration import (
    LEVELS,
    NO_BATCH,
    BatchShifts,
    FactorReading,
    Integration,
    read_magnitudes,
    unit_rows,
)
from cellxpert.data.roles import MEASURED
from cellxpert.data.tokens import Tokens

MODALITY = np.array([0] * 5 + [1] * 4 + [2] * 3 + [3] * 2)
N_FEATURES, N_BINS, N_FACTORS = len(MODALITY), 6, 3
LEVEL = np.cumsum(np.r_[np.zeros((1, 4)), np.random.default_rng(9).uniform(0.2, 1.0, (N_BINS - 1, 4))], axis=0).T
SHARE = np.array([0.0, 1.0, 0.0, 0.0])
SUBSETS = [roles for n in range(4) for roles in itertools.combinations(MEASURED, n)]
DIRECTIONS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


def _bins(n_cells: int, seed: int = 0) -> np.ndarray:
    """Bins of cells that have every modality, many of them 0."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, N_BINS, (n_cells, N_FEATURES)) * (rng.random((n_cells, N_FEATURES)) < 0.7)


def _tokens(bins: np.ndarray, *, zeros: str = "drop") -> Tokens:
    """Of bins, -1 where nothing was measured; ``zeros="keep"`` makes tokens of bin 0 too."""
    measured, pattern = np.unique(bins >= 0, axis=0, return_inverse=True)
    shown = bins >= (0 if zeros == "keep" else 1)
    cell, feature = np.nonzero(shown)
    return Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum(shown.sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=pattern.reshape(-1).astype(np.int32),
        measured_features=measured,
    )


def _without(bins: np.ndarray, roles: tuple[str, ...]) -> np.ndarray:
    """The same cells, of which only some modalities were measured; niches stay."""
    lost = [m for m, role in enumerate(MEASURED) if role not in roles]
    return np.where(np.isin(MODALITY, lost), -1, bins)


def _reading(seed: int = 0) -> FactorReading:
    rng = np.random.default_rng(seed)
    loading = rng.normal(size=(N_FEATURES, N_FACTORS))
    loading[MODALITY == 3] = 0  # niches are not read
    return FactorReading(
        level_MK=LEVEL,
        share_M=SHARE,
        usual_V=rng.uniform(0, 2, N_FEATURES),
        loading_VR=loading,
        unique_V=rng.uniform(0.2, 1.5, N_FEATURES),
        stretch_RR=rng.normal(size=(N_FACTORS, N_FACTORS)),
    )


def _plain_magnitude(bins: np.ndarray) -> np.ndarray:
    """One cell after the other; NaN where nothing was measured."""
    out = np.full(bins.shape, np.nan)
    for i, cell in enumerate(bins):
        level = [LEVEL[MODALITY[v], b] if b >= 0 else np.nan for v, b in enumerate(cell)]
        total = sum(x for v, x in enumerate(level) if MODALITY[v] == 1 and cell[v] > 0)
        for v, b in enumerate(cell):
            if b < 0:
                continue
            out[i, v] = level[v]
            if MODALITY[v] == 1:
                out[i, v] = np.log(1 + 1000 * level[v] / total) if b > 0 else 0.0
    return out


def _conditioned(reading: FactorReading, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z given the features of a cell that are not NaN, from the joint covariance of both."""
    n = N_FACTORS
    joint = np.zeros((n + N_FEATURES, n + N_FEATURES))
    joint[:n, :n] = np.eye(n)
    joint[n:, :n] = reading.loading_VR
    joint[:n, n:] = reading.loading_VR.T
    joint[n:, n:] = reading.loading_VR @ reading.loading_VR.T + np.diag(reading.unique_V)
    seen = n + np.flatnonzero(np.isfinite(x))
    gain = joint[:n, seen] @ np.linalg.inv(joint[np.ix_(seen, seen)])
    return gain @ (x - reading.usual_V)[seen - n], joint[:n, :n] - gain @ joint[seen, :n]


# --- reading magnitudes ---


@pytest.mark.parametrize("zeros", ["drop", "keep"])
def test_counts_are_read_as_shares(zeros: str) -> None:
    bins = _bins(12)
    bins[3, MODALITY == 1] = 0  # a cell with no open peak
    bins[5] = np.where(MODALITY == 1, -1, bins[5])
    rows = np.array([11, 3, 5, 0, 7])
    found = read_magnitudes(_tokens(bins, zeros=zeros), rows, level_MK=LEVEL, share_M=SHARE, modality_V=MODALITY)
    np.testing.assert_allclose(found.toarray(), np.nan_to_num(_plain_magnitude(bins)[rows]), rtol=1e-12)


def test_no_modality_of_counts_leaves_magnitudes_as_they_are() -> None:
    bins = _bins(4)
    found = read_magnitudes(_tokens(bins), np.arange(4), level_MK=LEVEL, share_M=np.zeros(4), modality_V=MODALITY)
    assert np.array_equal(found.toarray(), LEVEL[MODALITY, bins])


def test_shares_do_not_depend_on_depth() -> None:
    bins = np.zeros((2, N_FEATURES), int)
    bins[0, 5:7], bins[1, 5:7] = [1, 2], [2, 3]
    level = np.array([[0.0, 1, 2, 4, 8, 16]] * 4)
    found = read_magnitudes(_tokens(bins), np.arange(2), level_MK=level, share_M=SHARE, modality_V=MODALITY).toarray()
    assert np.allclose(found[0], found[1])
    assert np.allclose(found[0, 5:7], np.log1p([1000 / 3, 2000 / 3]))


# --- factors ---


@pytest.mark.parametrize("zeros", ["drop", "keep"])
@pytest.mark.parametrize("roles", SUBSETS)
def test_factors_are_what_is_expected_given_what_was_measured(roles: tuple[str, ...], zeros: str) -> None:
    reading, bins = _reading(), _bins(9)
    tokens = _tokens(bins, zeros=zeros)
    found = reading.factors(tokens, modality_V=MODALITY, roles=roles)
    if not roles:
        assert np.isnan(found).all()
        return
    x = _plain_magnitude(_without(bins, roles))
    x[:, MODALITY == 3] = np.nan
    np.testing.assert_allclose(found, [_conditioned(reading, cell)[0] for cell in x], atol=1e-10)
    measured = np.isfinite(x[0])
    _, spread = reading.posterior(reading.magnitudes(tokens, np.arange(9), modality_V=MODALITY), measured)
    np.testing.assert_allclose(spread, _conditioned(reading, x[0])[1], atol=1e-10)


@pytest.mark.parametrize("roles", SUBSETS)
def test_not_reading_a_modality_is_not_having_it(roles: tuple[str, ...]) -> None:
    reading, bins = _reading(), _bins(9)
    chosen = reading.factors(_tokens(bins), modality_V=MODALITY, roles=roles)
    lacking = reading.factors(_tokens(_without(bins, roles)), modality_V=MODALITY)
    np.testing.assert_allclose(chosen, lacking, atol=1e-10)


def test_a_mosaic_is_read_cell_by_cell() -> None:
    """A cell alone is read as in the company of cells with other gaps, whatever their order."""
    reading, bins = _reading(), _bins(24)
    for i, roles in enumerate(itertools.islice(itertools.cycle(SUBSETS), 24)):
        bins[i] = _without(bins[i], roles)
    together = reading.factors(_tokens(bins), modality_V=MODALITY)
    x = _plain_magnitude(bins)
    x[:, MODALITY == 3] = np.nan
    for i, roles in enumerate(itertools.islice(itertools.cycle(SUBSETS), 24)):
        alone = reading.factors(_tokens(bins[i : i + 1]), modality_V=MODALITY)[0]
        np.testing.assert_allclose(together[i], alone, rtol=1e-12, atol=1e-12)
        if roles:
            np.testing.assert_allclose(alone, _conditioned(reading, x[i])[0], atol=1e-10)
        else:
            assert np.isnan(alone).all()  # what its neighbours have is not read
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_allclose(
        reading.factors(_tokens(bins[order]), modality_V=MODALITY), together[order], rtol=1e-12, atol=1e-12
    )


def test_a_feature_that_was_not_measured_is_no_zero() -> None:
    reading, bins = _reading(), _bins(6)
    bins[:, 2] = -1
    found = reading.factors(_tokens(bins), modality_V=MODALITY)
    other = reading.factors(_tokens(np.maximum(bins, 0)), modality_V=MODALITY)
    x = _plain_magnitude(bins)
    x[:, MODALITY == 3] = np.nan
    np.testing.assert_allclose(found, [_conditioned(reading, cell)[0] for cell in x], atol=1e-10)
    assert np.abs(found - other).max() > 0.01


def test_no_factors_leave_cells_without_coordinates() -> None:
    reading = dataclasses.replace(
        _reading(), loading_VR=np.zeros((N_FEATURES, 0)), stretch_RR=np.zeros((0, 0)), usual_V=np.ones(N_FEATURES)
    )
    space = Integration(reading=reading)
    assert space.coordinates(_tokens(_bins(5)), modality_V=MODALITY).shape == (5, 0)
    assert np.array_equal(reading.expected(np.zeros((5, 0)), MODALITY == 2), np.ones((5, 3)))


def test_expected_magnitudes_are_never_negative() -> None:
    reading, z = _reading(), np.random.default_rng(0).normal(size=(20, N_FACTORS)) * 3
    z[7] = np.nan
    found = reading.expected(z, MODALITY == 2)
    plain = reading.usual_V[MODALITY == 2] + np.einsum("nr,vr->nv", z, reading.loading_VR[MODALITY == 2])
    assert np.isnan(found[7]).all()
    kept = np.arange(20) != 7
    assert (plain[kept] < 0).any()
    np.testing.assert_allclose(found[kept], np.where(plain[kept] < 0, 0, plain[kept]), atol=1e-12)


def test_coordinates_are_stretched_factors() -> None:
    reading, tokens = _reading(), _tokens(_bins(5))
    found = Integration(reading=reading).coordinates(tokens, modality_V=MODALITY, roles=["rna"])
    z = reading.factors(tokens, modality_V=MODALITY, roles=["rna"])
    np.testing.assert_allclose(found, [[sum(z[i] * reading.stretch_RR[:, r]) for r in range(3)] for i in range(5)])


# --- batches ---


def _shifts(offset: np.ndarray, names: tuple[str, ...] = ("a", "b")) -> BatchShifts:
    return BatchShifts(names=names, centre_CR=DIRECTIONS, mean_CR=8 * DIRECTIONS, offset_BCR=offset)


def _clusters(n_each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three tight groups of cells, far from the origin and from each other, and the group of each cell."""
    kind = np.repeat(np.arange(3), n_each)
    noise = np.random.default_rng(seed).normal(scale=0.3, size=(len(kind), 3))
    return 8 * DIRECTIONS[kind] + noise, kind


def test_known_batches_have_codes() -> None:
    shifts = _shifts(np.zeros((3, 3, 3)), names=("10", "9", "x"))
    assert shifts.codes(np.array(["x", "9", "?", "10"], object)).tolist() == [2, 1, NO_BATCH, 0]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
def test_memberships_are_shares(seed: int, scale: float) -> None:
    """They sum to 1, are those of the angle alone, and are the softmax of what is written of them."""
    point = np.random.default_rng(seed).normal(size=(7, 3)) * scale
    found = _shifts(np.zeros((2, 3, 3))).memberships(point)
    for x, share in zip(point, found, strict=True):
        weight = [np.exp(-np.sum((x / np.linalg.norm(x) - c) ** 2) / 0.1) for c in DIRECTIONS]
        np.testing.assert_allclose(share, np.array(weight) / sum(weight), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_the_origin_belongs_to_all_clusters_alike() -> None:
    assert np.allclose(_shifts(np.zeros((2, 3, 3))).memberships(np.zeros((1, 3))), 1 / 3)
    assert np.array_equal(unit_rows(np.zeros((2, 3))), np.zeros((2, 3)))


def test_what_a_batch_adds_to_each_cluster_is_taken_out() -> None:
    point, kind = _clusters()
    offset = np.random.default_rng(1).normal(size=(2, 3, 3))
    code = np.arange(len(point)) % 2
    found = _shifts(offset).correct(point + offset[code, kind], code)
    np.testing.assert_allclose(found, point, atol=1e-3)


def test_cells_of_no_known_batch_and_without_a_place_stay() -> None:
    point, _ = _clusters(4)
    point[2, 1] = np.nan
    code = np.array([0, NO_BATCH] * 6)
    found = _shifts(np.ones((2, 3, 3))).correct(point, code)
    stays = (code == NO_BATCH) | (np.arange(12) == 2)
    assert np.array_equal(found[stays], point[stays], equal_nan=True)
    np.testing.assert_allclose(found[~stays], point[~stays] - 1, atol=1e-12)


def test_a_cell_is_corrected_alone_as_in_company() -> None:
    point = np.random.default_rng(0).normal(size=(30, 3)) * 4
    shifts, code = _shifts(np.random.default_rng(1).normal(size=(2, 3, 3))), np.arange(30) % 2
    together = shifts.correct(point, code)
    alone = np.concatenate([shifts.correct(point[i : i + 1], code[i : i + 1]) for i in range(30)])
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-12)


def test_a_new_batch_comes_to_the_others_and_changes_nothing_for_them() -> None:
    """A copy of known cells, each kind shifted in its own way, comes back to where they are."""
    point, kind = _clusters()
    code = np.arange(len(point)) % 2
    before = _shifts(np.random.default_rng(1).normal(size=(2, 3, 3)))
    added = np.random.default_rng(2).normal(size=(3, 3))
    copy = point + added[kind]
    copy[5] = np.nan
    after = before.with_batch("new", copy)
    assert after.names == ("a", "b", "new")
    assert np.array_equal(after.correct(point, code), before.correct(point, code))
    for name in ("centre_CR", "mean_CR"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
    back = after.correct(copy, np.full(len(copy), 2))
    assert np.isnan(back[5]).all()
    kept = np.arange(len(copy)) != 5
    n = np.bincount(kind[kept])[kind[kept]][:, None]
    # one cell at no distance is added to each cluster: 1 / (n + 1) of the offset is left, beside the distance of the kind's mean
    mean = np.stack([point[kept & (kind == c)].mean(axis=0) for c in range(3)])
    left = (mean - before.mean_CR + added)[kind[kept]]
    np.testing.assert_allclose(back[kept], copy[kept] - left * n / (n + 1), atol=5e-3)


def test_a_new_batch_without_a_place_adds_nothing() -> None:
    after = _shifts(np.ones((2, 3, 3))).with_batch("new", np.full((4, 3), np.nan))
    assert not after.offset_BCR[2].any()


# --- the space as a whole ---


def _space(*, told: bool = True, batches: bool = True) -> Integration:
    rng = np.random.default_rng(3)
    error = np.sort(rng.normal(size=(len(LEVELS), N_FEATURES)), axis=0)
    return Integration(
        reading=_reading(),
        shifts=_shifts(rng.normal(size=(2, 3, 3)), names=("1", "b/c")) if batches else None,
        told=("rna", "protein") if told else (),
        error_QV=error if told else None,
    )


def _same(a: Integration, b: Integration) -> bool:
    one, other = a.to_arrays(), b.to_arrays()
    return (
        a.to_dict() == b.to_dict()
        and one.keys() == other.keys()
        and all(np.array_equal(one[name], other[name]) for name in one)
    )


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_through_json_and_arrays_and_back(told: bool, batches: bool) -> None:
    space = _space(told=told, batches=batches)
    again = Integration.of(json.loads(json.dumps(space.to_dict())), space.to_arrays())
    assert _same(space, again)
    assert (again.shifts is None) == (not batches)
    assert (again.error_QV is None) == (not told)


def test_what_is_rounded_is_what_a_file_holds() -> None:
    space = _space()
    rounded = space.rounded()
    file = {name: array.astype(np.float32) for name, array in rounded.to_arrays().items()}
    assert _same(rounded, Integration.of(rounded.to_dict(), file))
    assert _same(rounded, rounded.rounded())
    tokens = _tokens(_bins(20))
    np.testing.assert_allclose(
        rounded.coordinates(tokens, modality_V=MODALITY), space.coordinates(tokens, modality_V=MODALITY), atol=1e-5
    )


def test_batches_without_their_shifts_are_refused() -> None:
    space = _space()
    arrays = space.to_arrays()
    with pytest.raises(ValueError, match="2 shifts of 3 batches"):
        Integration.of(space.to_dict() | {"batches": ["1", "2", "3"]}, arrays)
    with pytest.raises(KeyError, match="centre_CR"):
        Integration.of(space.to_dict(), {name: x for name, x in arrays.items() if name != "centre_CR"})


@pytest.mark.parametrize("name", ["usual_V", "unique_V", "stretch_RR", "error_QV"])
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    space = _space()
    arrays = space.to_arrays()
    with pytest.raises(ValueError, match=f"shapes of .*{name}.* do not fit 14 features and 3 factors"):
        Integration.of(
            space.to_dict(), arrays | {name: arrays[name][:, :-1] if arrays[name].ndim > 1 else arrays[name][1:]}
        )
    with pytest.raises(KeyError, match=name):
        Integration.of(space.to_dict(), {key: x for key, x in arrays.items() if key != name})


def test_errors_are_interpolated_between_levels() -> None:
    space = _space()
    assert space.error_QV is not None
    for q, level in enumerate(LEVELS):
        assert np.array_equal(space.errors(level), space.error_QV[q])
    middle = space.errors(0.5 * (LEVELS[3] + LEVELS[4]))
    np.testing.assert_allclose(middle, 0.5 * (space.error_QV[3] + space.error_QV[4]))
    with pytest.raises(AssertionError, match="no modality is told"):
        _space(told=False).errors(0.5)
