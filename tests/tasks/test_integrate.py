"""Known and new batches, cells without a place, and limits of what is imputed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cellxpert.data.integration import LEVELS, BatchShifts, FactorReading, Integration
from cellxpert.data.tokens import Tokens
from cellxpert.errors import FewCellsError, QueryError
from cellxpert.tasks.integrate import MIN_NEW_CELLS, ImputeResult, impute, integrate, place_batches

MODALITY = np.array([0] * 4 + [2] * 3)
LEVEL = np.array([[0.0, 0.5, 1.0, 1.5, 2.0]] * 4)
N_CELLS = 90
RNA, PROTEIN, BOTH, NONE = ("rna",), ("protein",), ("rna", "protein"), ()


def _space() -> Integration:
    rng = np.random.default_rng(0)
    reading = FactorReading(
        level_MK=LEVEL,
        share_M=np.zeros(4),
        usual_V=np.full(7, 0.7),
        loading_VR=rng.normal(size=(7, 2)),
        unique_V=rng.uniform(0.2, 0.6, 7),
        stretch_RR=np.eye(2) * [2.0, 1.5],
    )
    shifts = BatchShifts(
        names=("a", "b"),
        centre_CR=np.array([[1.0, 0], [-1, 0]]),
        mean_CR=np.array([[2.0, 0], [-2, 0]]),
        offset_BCR=rng.normal(size=(2, 2, 2)) * 0.3,
    )
    error = np.sort(rng.normal(size=(len(LEVELS), 7)), axis=0)
    return Integration(reading=reading, shifts=shifts, told=BOTH, error_QV=error)


def _tokens(has: list[tuple[str, ...]] | None = None, seed: int = 0) -> Tokens:
    """Cells that have RNA, proteins, both or nothing."""
    has = [BOTH] * N_CELLS if has is None else has
    measured = np.array([[("rna", "", "protein")[m] in roles for m in MODALITY] for roles in has])
    bins = np.random.default_rng(seed).integers(0, 5, measured.shape) * measured
    patterns, pattern = np.unique(measured, axis=0, return_inverse=True)
    cell, feature = np.nonzero(bins)
    return Tokens(
        feature=feature.astype(np.int32),
        bin=bins[cell, feature].astype(np.uint8),
        start=np.r_[0, np.cumsum((bins > 0).sum(axis=1))],
        rows=np.arange(len(bins)),
        pattern=pattern.reshape(-1).astype(np.int32),
        measured_features=patterns,
    )


def _batches(*names: str) -> np.ndarray:
    return np.array([names[i % len(names)] for i in range(N_CELLS)], object)


def _integrate(batch: np.ndarray | None, new_batches: str = "error", **kwargs: object):
    given = {"tokens": _tokens(), "readings": [None], "space": _space()} | kwargs
    return integrate(
        given["space"],
        given["tokens"],
        modality_V=MODALITY,
        batch_N=batch,
        readings=given["readings"],
        new_batches=new_batches,
    )


# --- batches ---


def test_known_batches_are_placed_in_every_mode() -> None:
    shifts = _space().shifts
    for mode in ("error", "fit", "ignore"):
        found, new = place_batches(shifts, np.zeros((N_CELLS, 2)), _batches("b", "a"), new_batches=mode)
        assert found is shifts
        assert new == ()


def test_new_batches_are_an_error_that_names_them() -> None:
    with pytest.raises(QueryError, match=r"(?s)2 batches .*\['c', 'd'\].*\['a', 'b'\].*new_batches=\"fit\"") as error:
        place_batches(_space().shifts, np.zeros((N_CELLS, 2)), _batches("d", "a", "c"), new_batches="error")
    assert error.value.code == "CX407"


def test_new_batches_are_fitted_in_the_order_of_their_names() -> None:
    point = np.random.default_rng(0).normal(size=(N_CELLS, 2)) * 3
    batch = _batches("d", "a", "c")
    found, new = place_batches(_space().shifts, point, batch, new_batches="fit")
    assert new == ("c", "d")
    assert found.names == ("a", "b", "c", "d")
    by_hand = _space().shifts.with_batch("c", point[batch == "c"]).with_batch("d", point[batch == "d"])
    assert np.array_equal(found.offset_BCR, by_hand.offset_BCR)
    assert np.array_equal(found.offset_BCR[:2], _space().shifts.offset_BCR)


def test_ignored_batches_are_named_and_add_nothing() -> None:
    shifts = _space().shifts
    found, new = place_batches(shifts, np.zeros((N_CELLS, 2)), _batches("a", "c"), new_batches="ignore")
    assert found is shifts
    assert new == ("c",)


def test_a_model_of_one_batch_knows_none() -> None:
    assert place_batches(None, np.zeros((N_CELLS, 2)), _batches("x", "y"), new_batches="error") == (None, ())


def test_few_cells_of_a_new_batch_are_refused() -> None:
    """Cells without a place do not count."""
    point, batch = np.zeros((N_CELLS, 2)), _batches("a")
    batch[: MIN_NEW_CELLS - 1] = "c"
    with pytest.raises(FewCellsError, match=f"new batch 'c': {MIN_NEW_CELLS - 1} cells"):
        place_batches(_space().shifts, point, batch, new_batches="fit")
    batch[:MIN_NEW_CELLS] = "c"
    assert place_batches(_space().shifts, point, batch, new_batches="fit")[1] == ("c",)
    point[3] = np.nan
    with pytest.raises(FewCellsError, match="ignore"):
        place_batches(_space().shifts, point, batch, new_batches="fit")


# --- places ---


def test_places_are_coordinates_without_what_batches_add() -> None:
    space, batch = _space(), _batches("b", "a")
    (found,), new = _integrate(batch)
    point = space.coordinates(_tokens(), modality_V=MODALITY)
    assert found.dtype == np.float32
    assert new == ()
    assert np.array_equal(found, space.shifts.correct(point, 1 - np.arange(N_CELLS) % 2).astype(np.float32))
    (raw,), _ = _integrate(None)
    assert np.array_equal(raw, point.astype(np.float32))
    (alone,), _ = _integrate(batch, space=dataclasses.replace(space, shifts=None))
    assert np.array_equal(alone, raw)


def test_cells_without_the_modalities_are_nan_and_others_do_not_notice() -> None:
    has = [[BOTH, RNA, PROTEIN, NONE][i % 4] for i in range(N_CELLS)]
    tokens, kind = _tokens(has), np.arange(N_CELLS) % 4
    found, _ = _integrate(_batches("a", "b"), tokens=tokens, readings=[None, RNA, PROTEIN])
    for array, lacking in zip(found, [(3,), (2, 3), (1, 3)], strict=True):
        assert np.array_equal(np.isnan(array).any(axis=1), np.isin(kind, lacking))
        assert np.array_equal(np.isnan(array).all(axis=1), np.isin(kind, lacking))
    assert np.array_equal(found[0][kind == 1], found[1][kind == 1])
    assert np.array_equal(found[0][kind == 2], found[2][kind == 2])
    assert not np.isclose(found[0][kind == 0], found[1][kind == 0]).all()


def test_ignored_cells_stay_where_they_were_read() -> None:
    batch = _batches("a", "c")
    (found,), new = _integrate(batch, "ignore")
    (raw,), _ = _integrate(None)
    assert new == ("c",)
    assert np.array_equal(found[batch == "c"], raw[batch == "c"])
    assert not np.array_equal(found[batch == "a"], raw[batch == "a"])


def test_fitting_a_batch_leaves_the_others_where_they_are() -> None:
    batch = _batches("a", "c")
    (fitted,), _ = _integrate(batch, "fit")
    (ignored,), _ = _integrate(batch, "ignore")
    assert np.array_equal(fitted[batch == "a"], ignored[batch == "a"])
    assert not np.array_equal(fitted[batch == "c"], ignored[batch == "c"])


# --- what is imputed ---


def test_limits_are_ordered_and_wider_for_more_cells() -> None:
    space, tokens = _space(), _tokens([[BOTH, RNA][i % 2] for i in range(N_CELLS)])
    outer = None
    for coverage in (0.98, 0.9, 0.5, 0.1):
        expected, lower, upper = impute(space, tokens, role="protein", modality_V=MODALITY, coverage=coverage)
        assert expected.shape == (N_CELLS, 3)
        assert expected.dtype == lower.dtype == upper.dtype == np.float32
        assert (lower >= 0).all()
        assert (lower <= upper).all()
        if outer is not None:
            assert (outer[0] <= lower).all()
            assert (upper <= outer[1]).all()
        outer = lower, upper


def test_what_is_imputed_is_told_by_the_others_alone() -> None:
    """By the closed form: given the RNA, expected factors times the proteins' loadings."""
    space = _space()
    reading, other = space.reading, MODALITY == 0
    tokens = _tokens()
    expected, lower, upper = impute(space, tokens, role="protein", modality_V=MODALITY, coverage=0.9)
    level = reading.magnitudes(tokens, np.arange(N_CELLS), modality_V=MODALITY).toarray()
    loading = reading.loading_VR[other]
    gain = loading.T @ np.linalg.inv(loading @ loading.T + np.diag(reading.unique_V[other]))
    z = (level[:, other] - reading.usual_V[other]) @ gain.T
    plain = np.maximum(reading.usual_V[~other] + z @ reading.loading_VR[~other].T, 0)
    np.testing.assert_allclose(expected, plain, atol=1e-6)
    low, high = space.error_QV[[LEVELS.tolist().index(0.05), LEVELS.tolist().index(0.95)]][:, ~other]
    np.testing.assert_allclose(lower, np.maximum(plain + low, 0), atol=1e-6)
    np.testing.assert_allclose(upper, np.maximum(plain + high, 0), atol=1e-6)


def test_cells_with_nothing_else_are_nan() -> None:
    has = [[BOTH, PROTEIN, RNA, NONE][i % 4] for i in range(N_CELLS)]
    for array in impute(_space(), _tokens(has), role="protein", modality_V=MODALITY, coverage=0.9):
        assert np.array_equal(np.isnan(array).all(axis=1), np.isin(np.arange(N_CELLS) % 4, (1, 3)))
        assert np.array_equal(np.isnan(array).any(axis=1), np.isin(np.arange(N_CELLS) % 4, (1, 3)))


def test_a_result_says_what_it_is() -> None:
    table = pd.DataFrame(np.zeros((3, 2)), columns=["CD3", "CD4"])
    result = ImputeResult(
        modality="protein",
        scale="",
        coverage=0.9,
        expected=table,
        lower=table,
        upper=table,
        measured=pd.Series([True, False, False]),
    )
    assert repr(result) == "ImputeResult: 2 features of protein in 3 cells, 2 of which lack it"
