"""Choices against a loop, quantiles and thresholds against counting; a calibration before and after it went through a file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.calibration import LEVELS, Calibration, choose, quantiles_of
from cellxpert.data.cell_types import Components, TypeModel

scores = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=300)


def _types(seed: int = 0) -> TypeModel:
    rng = np.random.default_rng(seed)
    direct, _ = np.linalg.qr(rng.normal(size=(7, 3)))
    components = Components(usual_V=rng.gamma(1.0, 1.0, 7), direct_VP=direct)
    return TypeModel.fit(components, rng.normal(size=(60, 3)), np.arange(60) % 4, n_labels=5)


def _calibration(values: object = (), *, source: str = "out-of-fold") -> Calibration:
    value = np.asarray(values if len(values) else np.random.default_rng(1).random(200), float)
    return Calibration(
        source=source,
        n_cells=len(value),
        temperature=1.25,
        confidence_Q=quantiles_of(value),
        surprise_Q=quantiles_of(1 - value),
        distance_Q=quantiles_of(10 * value),
        steady_V=np.array([1.0, 0, 1, 1, 0, 1, 1]),
        least_features=17,
        types=_types(),
    )


@settings(deadline=None)
@given(values=scores)
def test_quantiles_are_values_and_as_many_lie_below_as_they_say(values: list[float]) -> None:
    found = quantiles_of(np.array(values))
    assert found.shape == (201,)
    assert set(found) <= set(values)
    for level, quantile in zip(LEVELS, found, strict=True):
        assert np.mean(np.array(values) <= quantile) >= level - 1e-12
    ordered = sorted(values)
    for k in range(0, 201, 20):  # the smallest value with that share at or below it
        rank = max(math.ceil(round(k / 200 * len(values), 9)), 1)
        assert found[k] <= ordered[min(rank, len(values) - 1)]
        assert found[k] >= ordered[rank - 1]


@settings(deadline=None)
@given(values=scores, level=st.floats(0, 1))
def test_a_threshold_covers_what_was_asked_for_and_little_more(values: list[float], level: float) -> None:
    threshold = _calibration(values).threshold("distance", level)
    at_most, below = np.mean(10 * np.array(values) <= threshold), np.mean(10 * np.array(values) < threshold)
    assert at_most >= level - 1e-9
    assert below <= level + 1 / 200 + 1 / len(values) + 1e-9


@settings(deadline=None)
@given(data=st.data(), n_labels=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_words_for_one_type_are_counted_together(data: st.DataObject, n_labels: int, seed: int) -> None:
    type_C = np.array(data.draw(st.lists(st.integers(0, n_labels - 1), min_size=n_labels, max_size=n_labels)))
    probability = np.random.default_rng(seed).dirichlet(np.full(n_labels, 0.5), size=20)
    label, total = choose(probability, type_C)
    for row, found, sum_of_type in zip(probability, label, total, strict=True):
        sums = {code: sum(p for p, c in zip(row, type_C, strict=True) if c == code) for code in set(type_C.tolist())}
        best = max(sums, key=sums.get)
        words = [c for c in range(n_labels) if type_C[c] == best]
        assert found == max(words, key=lambda c: row[c])
        assert sum_of_type == pytest.approx(sums[best])
    alone, largest = choose(probability, np.arange(n_labels))
    assert (alone == probability.argmax(axis=1)).all()
    assert (largest == probability.max(axis=1)).all()


def test_levels_are_rounded_to_those_that_are_kept() -> None:
    calibration = _calibration(np.arange(1, 201) / 200)
    for score in ("confidence", "surprise", "distance"):
        kept = getattr(calibration, f"{score}_Q")
        for k in range(201):  # a level that is kept is not rounded, however it was computed
            assert calibration.threshold(score, k / 200) == kept[k]
            assert calibration.threshold(score, 1 - (200 - k) / 200) == kept[k]
        up = score != "confidence"  # of which cells below are refused
        assert calibration.threshold(score, 0.9001) == kept[180 + up]
        assert calibration.threshold(score, 0.8951) == kept[179 + up]
        assert calibration.threshold(score, 1.0) == kept[200]


@settings(deadline=None)
@given(values=scores, new=st.lists(st.floats(0, 2), min_size=2, max_size=9, unique=True))
def test_a_rank_is_the_share_of_quantiles_that_a_cell_surpasses_in_doubt(values: list[float], new: list[float]) -> None:
    calibration, new = _calibration(values), sorted(new)
    far = calibration.rank("distance", np.array(new))
    unsure = calibration.rank("confidence", np.array(new))
    for value, d, c in zip(new, far.tolist(), unsure.tolist(), strict=True):
        farther_than = sum(value > q for q in calibration.distance_Q.tolist())
        less_sure_than = sum(value < q for q in calibration.confidence_Q.tolist())
        for rank, n in ((d, farther_than), (c, less_sure_than)):
            assert rank == n / 201 if n < 201 else 200 / 201 - 1e-12 <= rank <= 1
    assert (np.diff(far) >= 0).all()
    assert (np.diff(unsure) <= 0).all()
    beyond = np.array(new) > max(calibration.distance_Q.max(), 1e-6)
    assert (np.diff(far[beyond]) >= 0).all()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(20, 40), coverage=st.floats(0.3, 0.95), seed=st.integers(0, 1000))
def test_thresholds_keep_the_promise_of_conformal_prediction(n: int, coverage: float, seed: int) -> None:
    """Let each of n + 1 scores be the new one: the share asked for does not exceed the threshold of the others, and few more."""
    value = np.random.default_rng(seed).gamma(1.0, 1.0, n + 1)
    level = math.ceil((n + 1) * coverage) / n
    thresholds = [_calibration(np.delete(value, new)).threshold("distance", level) for new in range(n + 1)]
    within = np.mean(10 * value <= thresholds)
    assert coverage - 1e-9 <= within <= coverage + 2 / n + 1 / 200


@pytest.mark.parametrize("source", ["out-of-fold", "left-out batches", "validation"])
def test_a_calibration_survives_a_file(source: str) -> None:
    calibration = _calibration(source=source).rounded()
    arrays = {name: array.astype(np.float32) for name, array in calibration.to_arrays().items()}
    again = Calibration.of(json.loads(json.dumps(calibration.to_dict())), arrays)
    assert again.to_dict() == calibration.to_dict()
    assert again.to_dict()["source"] == source
    for name, array in calibration.to_arrays().items():
        assert again.to_arrays()[name].dtype == np.float64
        assert np.array_equal(again.to_arrays()[name], array), name
    point = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(again.types.distance(point), calibration.types.distance(point))


def test_rounding_changes_little_and_only_once() -> None:
    plain = _calibration()
    rounded = plain.rounded()
    for name, array in plain.to_arrays().items():
        assert np.allclose(rounded.to_arrays()[name], array, rtol=1e-6, atol=1e-7), name
        assert np.array_equal(rounded.rounded().to_arrays()[name], rounded.to_arrays()[name])
    assert any(not np.array_equal(rounded.to_arrays()[name], array) for name, array in plain.to_arrays().items())


def test_components_that_are_rounded_already_stay_the_same_object() -> None:
    once = _calibration().rounded()
    assert once.types.components is not _calibration().types.components
    assert once.rounded().types.components is once.types.components


def test_components_can_be_left_out_and_others_stand_in() -> None:
    calibration = _calibration()
    arrays = calibration.to_arrays(components=False)
    assert set(calibration.to_arrays()) - set(arrays) == {"usual_V", "direct_VP"}
    components = calibration.types.components
    again = Calibration.of(calibration.to_dict(), arrays, components=components)
    assert again.types.components is components
    assert np.array_equal(again.types.mean_CP, calibration.types.mean_CP)
    # those that are there are not replaced
    own = Calibration.of(calibration.to_dict(), calibration.to_arrays(), components=_types(1).components)
    assert np.array_equal(own.types.components.direct_VP, components.direct_VP)
