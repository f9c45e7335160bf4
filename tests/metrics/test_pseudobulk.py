from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from cellxpert import metrics
from cellxpert.errors import MetricError


def cells(n: int = 40, n_genes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.log1p(rng.poisson(1.5, (n, n_genes))), rng.choice(["a", "b", "c"], n)


# --- centroids ---


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_array])
def test_centroids_against_a_loop(form):
    matrix, conditions = cells()
    got = metrics.centroids(form(matrix), conditions, order=["c", "a"])
    for row, condition in zip(got, ["c", "a"], strict=True):
        mine = [matrix[i] for i in range(len(matrix)) if conditions[i] == condition]
        np.testing.assert_allclose(row, sum(mine) / len(mine))


def test_perturbed_mean_counts_conditions_not_cells():
    matrix = np.array([[1.0], [1.0], [1.0], [5.0]])
    means = metrics.centroids(matrix, ["a", "a", "a", "b"], order=["a", "b"])
    assert metrics.perturbed_mean(means) == pytest.approx([3.0])


def test_centroids_refuse_what_has_no_cells():
    matrix, conditions = cells()
    with pytest.raises(MetricError, match=r"no cells of \['x'\]"):
        metrics.centroids(matrix, conditions, order=["a", "x"])
    with pytest.raises(MetricError, match="one condition per cell"):
        metrics.centroids(matrix, conditions[1:], order=["a"])
    with pytest.raises(MetricError, match="none"):
        metrics.centroids(matrix, conditions, order=[])


# --- genes ---


def test_target_mask():
    mask = metrics.target_mask(["B", "A+C", ["C", "elsewhere"], "A-C"], ["A", "B", "C"])
    np.testing.assert_array_equal(mask, [[0, 1, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert mask.dtype == bool
    np.testing.assert_array_equal(metrics.target_mask(["A-C"], ["A", "B", "C"], sep="-"), [[1, 0, 1]])
    with pytest.raises(MetricError, match="twice"):
        metrics.target_mask(["A"], ["A", "A"])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_t_scores_equal_scipys_welch_test(form):
    x, y = cells(30, seed=1)[0], cells(50, seed=2)[0]
    x[:, 2] = y[:, 2] = 1.0  # varies in neither
    got = metrics.t_scores(form(x), form(y))
    expected = ttest_ind(np.delete(x, 2, axis=1), np.delete(y, 2, axis=1), equal_var=False).statistic
    np.testing.assert_allclose(np.delete(got, 2), expected, rtol=1e-9)
    assert got[2] == 0


def test_t_scores_refuse():
    with pytest.raises(MetricError, match="1 cell"):
        metrics.t_scores(np.ones((1, 2)), np.ones((3, 2)))
    with pytest.raises(MetricError, match="same genes"):
        metrics.t_scores(np.ones((2, 3)), np.ones((3, 2)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-4, 4), min_size=5, max_size=5),
    st.lists(st.booleans(), min_size=5, max_size=5).filter(lambda x: not all(x)),
    st.integers(1, 6),
)
def test_top_genes_against_sorting(scores, left_out, n):
    candidates = [g for g in range(5) if not left_out[g]]
    expected = sorted(candidates, key=lambda g: (-abs(scores[g]), g))[:n]
    mask = metrics.top_genes([scores], n=n, exclude=np.array(left_out))
    assert list(np.flatnonzero(mask[0])) == sorted(expected)


# --- noise ---


def test_noise_ceiling_halves_share_no_cell_and_use_all():
    """With one-hot cells a centroid shows which cells it is made of."""
    conditions = np.array(["b", "a", "b", "a", "b"])
    seen = []

    def score(first, second):
        seen.append((first, second))
        return np.array([1.0, 0.0])

    got = metrics.noise_ceiling(np.eye(5), conditions, score, order=["a", "b"], n_splits=4)
    np.testing.assert_array_equal(got, [1, 0])
    for first, second in seen:
        np.testing.assert_array_equal((first > 0) & (second > 0), np.zeros((2, 5), dtype=bool))
        np.testing.assert_array_equal((first > 0) | (second > 0), [conditions == "a", conditions == "b"])
        np.testing.assert_array_equal((first > 0).sum(axis=1), [1, 1])
    assert any((a != b).any() for (a, _), (b, _) in zip(seen, seen[1:], strict=False))


def test_noise_ceiling_of_noise_and_of_signal():
    rng = np.random.default_rng(0)
    conditions, names = np.repeat(["a", "b", "c", "d"], 40), ["a", "b", "c", "d"]
    noise = rng.normal(size=(160, 300))
    effects = np.repeat(rng.normal(size=(4, 300)), 40, axis=0)

    def score(p, t):
        return metrics.pearson_delta(p, t, prediction_reference=np.zeros(300), truth_reference=np.zeros(300))

    empty = metrics.noise_ceiling(noise, conditions, score, order=names)
    # correlation of effect + noise of variance 1/20 with the same effect and other noise
    full = metrics.noise_ceiling(noise + effects, conditions, score, order=names)
    assert np.abs(empty.mean()) < 0.1
    assert full == pytest.approx(1 / (1 + 1 / 20), abs=0.02)


def test_noise_ceiling_refuses():
    with pytest.raises(MetricError, match=r"\['a'\] have fewer"):
        metrics.noise_ceiling(np.eye(3), ["a", "b", "b"], lambda p, t: p, order=["a", "b"])
    with pytest.raises(MetricError, match="n_splits"):
        metrics.noise_ceiling(np.eye(2), ["a", "a"], lambda p, t: p, order=["a"], n_splits=0)


def test_bootstrap_interval_is_that_of_the_normal_for_many_conditions():
    rng = np.random.default_rng(3)
    scores, rival = rng.normal(0.6, 0.2, 400), rng.normal(0.5, 0.1, 400)
    got = metrics.bootstrap_interval(scores, rival=rival)
    difference = scores - rival
    half = 1.96 * difference.std() / np.sqrt(400)
    assert got["mean"] == pytest.approx(difference.mean())
    assert got["low"] == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert got["high"] == pytest.approx(difference.mean() + half, abs=0.1 * half)
    narrow = metrics.bootstrap_interval(scores, rival=rival, level=0.5)
    assert got["low"] < narrow["low"] < narrow["high"] < got["high"]


def test_bootstrap_interval_enumerated():
    """Two conditions, scores 0 and 1: the mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    assert metrics.bootstrap_interval([0, 1], level=0.4) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert metrics.bootstrap_interval([0, 1], level=0.9) == {"mean": 0.5, "low": 0.0, "high": 1.0}
    assert metrics.bootstrap_interval([0, 1], rival=1.0, level=0.9) == {"mean": -0.5, "low": -1.0, "high": 0.0}


def test_bootstrap_pairs_conditions():
    scores = np.linspace(0, 1, 20)
    got = metrics.bootstrap_interval(scores, rival=scores - 0.1)
    assert got["low"] == pytest.approx(0.1)
    assert got["high"] == pytest.approx(0.1)


def test_bootstrap_interval_refuses():
    with pytest.raises(MetricError, match="shapes"):
        metrics.bootstrap_interval([0.5, 0.6], rival=[0.5])
    with pytest.raises(MetricError, match="shapes"):
        metrics.bootstrap_interval([])
    with pytest.raises(MetricError, match="not finite"):
        metrics.bootstrap_interval([np.nan, 0.6])
    with pytest.raises(MetricError, match="level"):
        metrics.bootstrap_interval([0.5], level=95)


def test_targets_are_found_in_the_names_that_predictions_have():
    genes = ["A", "B", "C(x)"]
    names = ["A(knockdown 0.5)", "A + B", "B(overexpression)+A", "C(x)", "D(fold 2)", "A(fold 1e-05)"]
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert metrics.target_mask(names, genes).astype(int).tolist() == expected


def test_scores_are_paired_by_condition():
    scores, rival = pd.Series([1.0, 2.0], ["a", "b"]), pd.Series([2.0, 1.0], ["b", "a"])
    assert metrics.bootstrap_interval(scores, rival=rival)["mean"] == 0
    assert metrics.bootstrap_interval(scores, rival=rival)["high"] == 0
    with pytest.raises(MetricError, match="indices do not name the same"):
        metrics.bootstrap_interval(scores, rival=rival.rename({"a": "c"}))


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(MetricError, match=r"top_genes\(n=\)"):
        metrics.top_genes(np.ones((2, 3)), n=-1)
    with pytest.raises(MetricError, match="one condition per cell"):
        metrics.noise_ceiling(np.ones((4, 2)), ["a", "a"], lambda p, t: np.zeros(1), order=["a"])
