from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import energy_distance as energy_distance_1d
from scipy.stats import pearsonr

from cellxpert import metrics
from cellxpert.errors import MetricError

GENES = [f"g{i}" for i in range(12)]
CONDITIONS = ["g0", "g1", "g2", "g3", "x4"]

CELL_EVAL = {
    "pearson_delta": [0.313290193, -0.476198014, -0.475466296, -0.48267379, 0.159879445],
    "mse": [0.018260557, 0.043728232, 0.037253723, 0.042263881, 0.017323825],
    "mae": [0.104728419, 0.167393608, 0.172565443, 0.193694562, 0.117677185],
    "discrimination_score_l1": [1.0, 0.8, 0.4, 0.4, 0.4],
    "discrimination_score_l2": [1.0, 0.8, 0.6, 0.4, 0.2],
    "discrimination_score_cosine": [1.0, 0.4, 0.2, 0.6, 0.8],
    "discrimination_score_l1, exclude_target_gene=False": [1.0, 0.8, 0.6, 0.4, 0.4],
    "overlap_at_N": [0.6, 0.571428571, 0.666666667, 0.666666667, 0.5],
}
"""What cell-eval 0.8.2 says of ``toy(5)`` as a prediction of ``toy(0)``, and of ``toy_de(3)`` as one of ``toy_de(0)``."""

PERTPY = {
    "edistance": [0.197952869, 0.348406947, 0.317578014, 0.310081075, 0.184790311],
    "mse": [0.018260557, 0.043728232, 0.037253723, 0.042263881, 0.017323825],
    "mean_absolute_error": [0.104728419, 0.167393608, 0.172565443, 0.193694562, 0.117677185],
    "pearson_distance": [0.392973472, 1.218884238, 1.546493907, 1.290845226, 0.39923218],
}
"""``pertpy.tools.Distance`` (1.0.3) between the cells of ``toy(5)`` and ``toy(0)``. Its root mean squared error is no mean: left out."""


def toy(shift: int) -> dict[str, np.ndarray]:
    """Twenty cells per condition and of the control, by integer arithmetic: the same on every machine."""
    cells = {}
    for c, name in enumerate(["control", *CONDITIONS]):
        i, g = np.arange(20)[:, None], np.arange(12)[None, :]
        signal = (i % 3 == 0) * c * (g + 2) * 5 + shift * (i * i + 3 * g + c * g * i)
        cells[name] = np.log1p(((i * i * 31 + i * g * 17 + g * g * 7 + signal) % 101 % 5).astype(float))
    return cells


def toy_de(shift: int) -> dict[str, np.ndarray]:
    p, g = np.arange(5)[:, None], np.arange(12)[None, :]
    fdr = (p * 37 + g * 23 + shift * 11 * g + p * g * 7) % 29 / 290
    return {"fdr": fdr, "lfc": ((p * 41 + g * g * 19 + shift * g * 5 + p * g) % 31 - 15) / 7.0}


def centroids(cells: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([cells[c].mean(axis=0) for c in CONDITIONS]), cells["control"].mean(axis=0)


def panel(n: int = 7, n_genes: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, n_genes))
    return truth + rng.normal(size=truth.shape), truth


# --- an independent implementation ---


def test_distances_equal_pertpy() -> None:
    cells, others = toy(5), toy(0)
    (prediction, _), (truth, _) = centroids(cells), centroids(others)
    zero = {"prediction_reference": np.zeros(12), "truth_reference": np.zeros(12)}
    got = {
        "edistance": [metrics.energy_distance(cells[c], others[c], unbiased=False) for c in CONDITIONS],
        "mse": metrics.mse(prediction, truth),
        "mean_absolute_error": metrics.mae(prediction, truth),
        "pearson_distance": 1 - metrics.pearson_delta(prediction, truth, **zero),
    }
    assert got.keys() == PERTPY.keys()
    for name, values in PERTPY.items():
        np.testing.assert_allclose(got[name], values, atol=1e-8, err_msg=name)


def test_scores_equal_cell_eval():
    (truth, control), (prediction, predicted_control) = centroids(toy(0)), centroids(toy(5))
    own = metrics.target_mask(CONDITIONS, GENES)
    effects = prediction - predicted_control, truth - control
    references = {"prediction_reference": predicted_control, "truth_reference": control}
    got = {
        "pearson_delta": metrics.pearson_delta(prediction, truth, **references),
        "mse": metrics.mse(prediction, truth),
        "mae": metrics.mae(prediction, truth),
        "discrimination_score_l1, exclude_target_gene=False": metrics.discrimination_score(*effects, distance="l1"),
        "overlap_at_N": metrics.de_overlap(toy_de(3), toy_de(0)),
    }
    for distance in ("l1", "l2", "cosine"):
        score = metrics.discrimination_score(*effects, distance=distance, exclude=own)
        got[f"discrimination_score_{distance}"] = score
    assert got.keys() == CELL_EVAL.keys()
    for name, values in got.items():
        np.testing.assert_allclose(values, CELL_EVAL[name], atol=1e-8, err_msg=name)


# --- Pearson ---


def test_pearson_against_scipy_with_two_references_and_genes_left_out():
    prediction, truth = panel()
    rng = np.random.default_rng(1)
    model, held_out = rng.normal(size=9), rng.normal(size=(7, 9))
    exclude = rng.random((7, 9)) < 0.3
    got = metrics.pearson_delta(
        prediction, truth, prediction_reference=model, truth_reference=held_out, exclude=exclude
    )
    for p in range(7):
        keep = ~exclude[p]
        expected = pearsonr((prediction[p] - model)[keep], (truth[p] - held_out[p])[keep]).statistic
        assert got[p] == pytest.approx(expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pearson_of_a_prediction_of_the_reference_is_undefined(kind):
    """A difference of rounding errors must not be correlated with anything."""
    rng = np.random.default_rng(0)
    control = rng.normal(3, 1, (200, 50)).astype(kind)
    mean = control.mean(axis=0)
    prediction = np.tile((mean * kind(3) + mean * kind(7)) / kind(10), (4, 1))
    assert kind is np.float64 or (prediction != mean).any()
    truth = rng.normal(size=(4, 50))
    score = {"prediction_reference": mean, "truth_reference": rng.normal(size=50)}
    np.testing.assert_array_equal(metrics.pearson_delta(prediction, truth, **score), np.zeros(4))
    assert np.isnan(metrics.pearson_delta(prediction, truth, **score, undefined=np.nan)).all()
    shifted = metrics.pearson_delta(prediction + kind(0.5), truth, **score)  # the same for every gene
    np.testing.assert_array_equal(shifted, np.zeros(4))


def test_shared_control_noise_fakes_a_correlation():
    """The trap that the two references are for: a prediction without any information on perturbations that do nothing."""
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(3, 200, 500)).mean(axis=1)  # three means of 200 cells
    truth = rng.normal(scale=0.05, size=(20, 500))
    prediction = np.tile(controls[2], (20, 1))  # other control cells
    shared = {"prediction_reference": controls[0], "truth_reference": controls[0]}
    apart = {"prediction_reference": controls[0], "truth_reference": controls[1]}
    assert metrics.pearson_delta(prediction, truth, **shared).mean() > 0.4
    assert abs(metrics.pearson_delta(prediction, truth, **apart).mean()) < 0.1


# --- errors over genes ---


def test_errors_over_genes_against_loops():
    prediction, truth = panel()
    rng = np.random.default_rng(2)
    exclude, weights = rng.random((7, 9)) < 0.3, rng.random((7, 9))
    got = {
        "mse": metrics.mse(prediction, truth, exclude=exclude),
        "rmse": metrics.rmse(prediction, truth, exclude=exclude),
        "mae": metrics.mae(prediction, truth, exclude=exclude),
        "weighted": metrics.mse(prediction, truth, exclude=exclude, weights=weights),
    }
    for p in range(7):
        left = [g for g in range(9) if not exclude[p, g]]
        squares = [(prediction[p, g] - truth[p, g]) ** 2 for g in left]
        assert got["mse"][p] == pytest.approx(np.mean(squares))
        assert got["rmse"][p] == pytest.approx(np.sqrt(np.mean(squares)))
        assert got["mae"][p] == pytest.approx(np.mean(np.sqrt(squares)))
        assert got["weighted"][p] == pytest.approx(np.average(squares, weights=weights[p, left]))


def test_weights_refuse():
    prediction, truth = panel()
    for weights in (-np.ones(9), np.zeros(9)):
        with pytest.raises(MetricError, match="weights"):
            metrics.mse(prediction, truth, weights=weights)
    with pytest.raises(MetricError, match="weights"):
        metrics.mse(prediction, truth, weights=np.ones(8))


# --- ranks ---


def distance_loop(a, b, kind):
    if kind == "l1":
        return sum(abs(x - y) for x, y in zip(a, b, strict=True))
    if kind == "l2":
        return np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return 1 - np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["l1", "l2", "cosine"]), st.sampled_from([None, "all", "each"]))
def test_discrimination_against_loops(seed, kind, which):
    predicted, true = panel(seed=seed)
    rng = np.random.default_rng(seed)
    exclude = None if which is None else rng.random(9 if which == "all" else (7, 9)) < 0.3
    got = metrics.discrimination_score(predicted, true, distance=kind, exclude=exclude)
    for p in range(7):
        keep = np.ones(9, bool) if which is None else ~(exclude if which == "all" else exclude[p])
        own = distance_loop(predicted[p, keep], true[p, keep], kind)
        nearer = sum(distance_loop(predicted[p, keep], true[q, keep], kind) < own for q in range(7) if q != p)
        assert got[p] == pytest.approx(1 - nearer / 7)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_constant_predictions_have_chance(distance):
    _, true = panel(n=8)
    chance = metrics.discrimination_chance(8)
    assert chance == pytest.approx(np.mean([1 - rank / 8 for rank in range(8)]))
    constant = np.tile(true.mean(axis=0) + 0.3, (8, 1))
    assert metrics.discrimination_score(constant, true, distance=distance).mean() == pytest.approx(chance)
    nothing = np.zeros_like(true)
    assert metrics.discrimination_score(nothing, true, distance=distance).mean() == pytest.approx(chance)
    if distance == "cosine":  # no direction: all effects tie
        np.testing.assert_allclose(metrics.discrimination_score(nothing, true), chance)
        rounding = np.random.default_rng(0).normal(scale=1e-16, size=true.shape)
        np.testing.assert_allclose(metrics.discrimination_score(rounding, true), chance)


def test_own_target_exclusion_flatters_a_constant_prediction():
    """Why a headline leaves out the targets of all conditions: each knockout lowers its own target, and nothing else happens."""
    rng = np.random.default_rng(0)
    true = rng.normal(scale=0.05, size=(20, 60))
    names, genes = [f"g{i}" for i in range(20)], [f"g{i}" for i in range(60)]
    own = metrics.target_mask(names, genes)
    true[own] -= 1
    nothing = np.zeros_like(true)
    flattered = metrics.discrimination_score(nothing, true, distance="l2", exclude=own).mean()
    fair = metrics.discrimination_score(nothing, true, distance="l2", exclude=own.any(axis=0)).mean()
    assert fair == pytest.approx(metrics.discrimination_chance(20))
    assert flattered > 0.9


def test_discrimination_extremes_and_scale():
    predicted, true = panel()
    np.testing.assert_array_equal(metrics.discrimination_score(true, true, distance="l1"), np.ones(7))
    np.testing.assert_allclose(
        metrics.discrimination_score(predicted, true), metrics.discrimination_score(0.01 * predicted, true)
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_centroid_accuracy_against_loops(seed, more):
    prediction, truth = panel(seed=seed)
    others = panel(n=3, seed=seed + 1)[1] if more else None
    got = metrics.centroid_accuracy(prediction, truth, others_QG=others)
    rivals = truth if others is None else np.vstack([truth, others])
    for p in range(7):
        own = distance_loop(prediction[p], truth[p], "l2")
        farther = [distance_loop(prediction[p], r, "l2") > own for q, r in enumerate(rivals) if q != p]
        assert got[p] == pytest.approx(np.mean(farther))


def test_centroid_accuracy_counts_ties_half():
    truth = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(metrics.centroid_accuracy(np.zeros((2, 2)), truth), [0.5, 0.5])
    with pytest.raises(MetricError, match="two conditions"):
        metrics.centroid_accuracy(truth[:1], truth[:1])
    with pytest.raises(MetricError, match="3 genes, not 2"):
        metrics.centroid_accuracy(truth, truth, others_QG=np.ones((1, 3)))


# --- what all perturbations share ---


def test_systematic_variation():
    rng = np.random.default_rng(0)
    control, shift = rng.normal(size=30), rng.normal(size=30)
    means = control + np.array([[1.0], [2.0], [0.5]]) * shift
    np.testing.assert_allclose(
        metrics.systematic_variation(means, reference=control, shift_reference=control), np.ones(3)
    )
    means = control + rng.normal(size=(3, 30))
    other = control + rng.normal(size=30)
    got = metrics.systematic_variation(means, reference=control, shift_reference=other)
    for p in range(3):
        assert got[p] == pytest.approx(1 - distance_loop(means[p] - control, means.mean(axis=0) - other, "cosine"))
    still = np.tile(control, (2, 1))
    np.testing.assert_array_equal(metrics.systematic_variation(still, reference=control, shift_reference=other), [0, 0])


# --- cells ---


def test_de_overlap_counts_by_hand():
    truth = {"fdr": [0.01, 0.01, 0.01, 0.5], "lfc": [1.0, -3.0, 2.0, 9.0]}
    first_two = {"fdr": [0.01, 0.01, 0.9, 0.9], "lfc": [1.0, -3.0, 2.0, 9.0]}
    flooded = {"fdr": [0.01] * 4, "lfc": [1.0, -3.0, 2.0, 9.0]}
    none = {"fdr": [np.nan, 1.0, 1.0, 1.0], "lfc": [np.nan, 0, 0, 0]}
    assert metrics.de_overlap(first_two, truth) == pytest.approx([2 / 3])
    assert metrics.de_overlap(flooded, truth) == pytest.approx([2 / 3])  # its first three are genes 3, 1, 2
    assert metrics.de_overlap(none, truth) == metrics.de_overlap(truth, none) == [0]
    table = pd.DataFrame(truth, index=list("abcd"))
    assert metrics.de_overlap(table, table) == [1]
    with pytest.raises(MetricError, match="other genes"):
        metrics.de_overlap(table, table[::-1])
    with pytest.raises(MetricError, match="without lfc"):
        metrics.de_overlap({"fdr": [0.01], "lfc": [np.nan]}, {"fdr": [0.01], "lfc": [1.0]})
    with pytest.raises(MetricError, match="lfc"):
        metrics.de_overlap({"fdr": [0.01], "lfc": [1.0, 2.0]}, {"fdr": [0.01], "lfc": [1.0]})
    with pytest.raises(MetricError, match="same conditions"):
        metrics.de_overlap(truth, {"fdr": [0.01], "lfc": [1.0]})


def test_energy_distance_against_loops_and_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(1, 1, size=(9, 3))

    def mean(a, b, skip):
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return np.mean(pairs)

    unbiased = 2 * mean(x, y, skip=False) - mean(x, x, skip=True) - mean(y, y, skip=True)
    assert metrics.energy_distance(x, y) == pytest.approx(unbiased)
    assert metrics.energy_distance(sp.csr_array(x), y) == pytest.approx(unbiased)
    # scipy has the square root of the biased statistic in one dimension
    biased = metrics.energy_distance(x[:, :1], y[:, :1], unbiased=False)
    assert np.sqrt(biased) == pytest.approx(energy_distance_1d(x[:, 0], y[:, 0]))


def test_energy_distance_of_equal_distributions_is_zero_on_average_only_unbiased():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(10, 20)), rng.normal(size=(10, 20))) for _ in range(200)]
    unbiased = np.array([metrics.energy_distance(x, y) for x, y in draws])
    biased = np.array([metrics.energy_distance(x, y, unbiased=False) for x, y in draws])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / np.sqrt(200)
    assert biased.mean() > 0.5
    assert biased.min() >= 0


def test_bad_arrays():
    prediction, truth = panel()
    good = {"prediction_reference": np.zeros(9), "truth_reference": np.zeros(9)}
    with pytest.raises(MetricError, match="same conditions"):
        metrics.pearson_delta(prediction[1:], truth, **good)
    with pytest.raises(MetricError, match="truth_reference"):
        metrics.pearson_delta(prediction, truth, **(good | {"truth_reference": np.zeros(8)}))
    with pytest.raises(MetricError, match="prediction_reference"):
        metrics.pearson_delta(prediction, truth, **(good | {"prediction_reference": np.full(9, np.nan)}))
    with pytest.raises(MetricError, match="1 of 9 genes are left"):
        metrics.pearson_delta(prediction, truth, **good, exclude=np.arange(9) > 0)
    with pytest.raises(MetricError, match="distance"):
        metrics.discrimination_score(prediction, truth, distance="euclid")
    with pytest.raises(MetricError, match="not finite"):
        metrics.rmse(prediction * np.nan, truth)
    with pytest.raises(MetricError, match="two cells"):
        metrics.energy_distance(np.ones((1, 2)), np.ones((2, 2)))
    with pytest.raises(MetricError, match="same genes"):
        metrics.energy_distance(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(MetricError, match="n_conditions"):
        metrics.discrimination_chance(0)


def test_a_prediction_that_sets_its_targets_and_nothing_else_is_at_chance():
    """What is left beside the targets is rounding, which has a direction too."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(6, 30))
    predicted = rng.normal(size=(6, 30)) * 1e-9
    own = np.zeros((6, 30), bool)
    own[np.arange(6), np.arange(6)] = True
    predicted[own] = -3.0
    found = metrics.discrimination_score(predicted, true, exclude=own.any(axis=0))
    np.testing.assert_allclose(found, metrics.discrimination_chance(6))
