from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import sklearn.metrics as skm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cellxpert import metrics
from cellxpert.errors import MetricError

cells = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50)
coarse = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=5)


def test_the_floor_of_one_bin_is_the_mean_deviation_of_a_share():
    """The mean of |share - p| over binomial draws, exactly; and a generator goes on where the last call ended."""
    n, p = 40, 0.85
    k = np.arange(n + 1)
    expected = (np.abs(k / n - p) * binom.pmf(k, n, p)).sum()
    assert metrics.ece_floor(np.full(n, p), n_draws=4000) == pytest.approx(expected, rel=0.02)
    assert metrics.ece_floor([0.0, 1.0, 1.0]) == 0
    rng = np.random.default_rng(3)
    first, second = (metrics.ece_floor(np.full(n, p), n_draws=3, seed=rng) for _ in range(2))
    assert first != second
    assert first == metrics.ece_floor(np.full(n, p), n_draws=3, seed=3)
    with pytest.raises(MetricError, match="confidence"):
        metrics.ece_floor([1.2])


@settings(deadline=None, max_examples=60)
@given(cells, st.integers(1, 20))
def test_ece_equals_a_plain_loop(data, n_bins):
    edges = np.linspace(0, 1, n_bins + 1)
    expected = 0.0
    for i in range(n_bins):
        inside = [c for c in data if edges[i] < c[0] <= edges[i + 1] or (i == 0 and c[0] == 0)]
        if inside:
            conf, acc = np.mean([c[0] for c in inside]), np.mean([c[1] for c in inside])
            expected += len(inside) / len(data) * abs(acc - conf)
    confidence, correct = [c[0] for c in data], [c[1] for c in data]
    assert metrics.ece(confidence, correct, n_bins=n_bins) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(cells, st.integers(1, 20), st.randoms(use_true_random=False))
def test_bins_hold_every_cell_and_do_not_depend_on_the_order(data, n_bins, random):
    shuffled = data.copy()
    random.shuffle(shuffled)
    for bins in ("width", "mass"):
        table = metrics.reliability(*zip(*data, strict=True), n_bins=n_bins, bins=bins)
        again = metrics.reliability(*zip(*shuffled, strict=True), n_bins=n_bins, bins=bins)
        np.testing.assert_allclose(table, again, atol=1e-12)
        assert table["n"].sum() == len(data)
        assert (table["n"] > 0).all()
        assert len(table) <= n_bins
        assert (table["confidence"] <= table["high"] + 1e-12).all()
        assert (table["confidence"] >= table["low"] - 1e-12).all()


def test_the_least_confidence_is_a_bin_of_its_own_where_many_cells_share_it():
    confidence, right = np.repeat([0.2, 0.9], 50), np.r_[np.arange(50) < 45, np.arange(50) < 10]
    assert metrics.ece(confidence, right, bins="mass") == pytest.approx(0.7)
    table = metrics.reliability(np.r_[np.zeros(400), np.linspace(0.4, 1, 600)], np.ones(1000, bool), bins="mass")
    assert (table["n"].iloc[0], table["high"].iloc[0]) == (400, 0)
    assert table["n"].iloc[1:].max() <= 1000 / 15 + 1


def test_equal_mass_bins_hold_equally_many_cells():
    confidence = np.random.default_rng(0).random(150)
    table = metrics.reliability(confidence, confidence > 0.5, n_bins=15, bins="mass")
    assert set(table["n"]) <= {9, 10, 11}
    assert metrics.ece(confidence, confidence > 0.5, bins="mass") == pytest.approx(
        np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["n"])
    )
    assert metrics.ece(np.full(10, 0.7), np.arange(10) < 7, bins="mass") == pytest.approx(0)


def test_calibrated_confidence_has_a_small_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(50_000)
    assert metrics.ece(confidence, rng.random(50_000) < confidence) < 0.02
    assert metrics.ece(confidence, rng.random(50_000) < confidence**3) > 0.2


def _probabilities(n, k, seed=0):
    proba = np.random.default_rng(seed).dirichlet(np.ones(k), n)
    return np.random.default_rng(seed + 1).choice(k, n), proba


def test_nll_and_brier_equal_sklearn_and_loops():
    column, proba = _probabilities(100, 4)
    classes = ["d", "a", "c", "b"]  # in the order of the columns, not sorted
    true = [classes[c] for c in column]
    found = metrics.nll(true, proba, classes=classes)
    assert found == pytest.approx(-np.mean([np.log(proba[i, c]) for i, c in enumerate(column)]))
    by_name = np.argsort(classes)
    assert found == pytest.approx(skm.log_loss(true, proba[:, by_name], labels=sorted(classes)))
    expected = np.mean([sum((proba[i, k] - (k == c)) ** 2 for k in range(4)) for i, c in enumerate(column)])
    assert metrics.brier(true, proba, classes=classes) == pytest.approx(expected)
    assert metrics.brier(true, np.eye(4)[column], classes=classes) == 0
    assert metrics.brier(true, np.eye(4)[(column + 1) % 4], classes=classes) == 2


def test_nll_of_an_impossible_label_is_large_but_finite():
    for dtype in (np.float32, np.float64):
        found = metrics.nll(["b"], np.array([[1, 0]], dtype=dtype), classes=["a", "b"])
        assert found == pytest.approx(-np.log(np.finfo(dtype).eps))


@settings(deadline=None, max_examples=40)
@given(coarse)
def test_risk_coverage_is_the_mean_over_orders_of_ties(data):
    risks = []
    for order in permutations(data):
        if all(a[0] >= b[0] for a, b in zip(order, order[1:], strict=False)):
            wrong = np.cumsum([not c[1] for c in order])
            risks.append(wrong / np.arange(1, len(order) + 1))
    confidence, correct = zip(*data, strict=True)
    curve = metrics.risk_coverage(confidence, correct)
    np.testing.assert_allclose(curve["risk"], np.mean(risks, axis=0), atol=1e-12)
    np.testing.assert_allclose(curve["coverage"], np.arange(1, len(data) + 1) / len(data))
    assert metrics.aurc(confidence, correct) == pytest.approx(np.mean(risks))


def test_aurc_rewards_confidence_that_ranks():
    correct = np.arange(100) < 80
    good, bad = np.linspace(1, 0, 100), np.linspace(0, 1, 100)
    assert metrics.aurc(good, correct) < 0.03
    assert metrics.aurc(np.full(100, 0.5), correct) == pytest.approx(0.2)
    assert metrics.aurc(bad, correct) > 0.4


def test_unseen_auroc_equals_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    confidence, unseen = rng.integers(0, 10, 60) / 10, rng.random(60) < 0.3
    pairs = [
        (s > u) + 0.5 * (s == u) for u in confidence[unseen] for s in confidence[~unseen]
    ]  # a seen cell should be the more confident one
    assert metrics.unseen_auroc(confidence, unseen) == pytest.approx(np.mean(pairs))


def test_bad_arrays():
    with pytest.raises(MetricError, match="shapes"):
        metrics.ece([0.5], [True, False])
    with pytest.raises(MetricError, match="shapes"):
        metrics.aurc([], [])
    with pytest.raises(MetricError, match="outside"):
        metrics.ece([1.2], [True])
    with pytest.raises(MetricError, match="outside"):
        metrics.aurc([np.nan], [True])
    with pytest.raises(MetricError, match="other than True"):
        metrics.ece([0.2], [3])
    with pytest.raises(MetricError, match="n_bins"):
        metrics.ece([0.2], [1], n_bins=0)
    with pytest.raises(MetricError, match="one kind"):
        metrics.unseen_auroc([0.2, 0.3], [True, True])
    with pytest.raises(MetricError, match="sum to 1"):
        metrics.nll(["a"], [[0.2, 0.2]], classes=["a", "b"])
    with pytest.raises(MetricError, match="unseen types"):
        metrics.brier(["c"], [[0.5, 0.5]], classes=["a", "b"])
    with pytest.raises(MetricError, match="each class once"):
        metrics.brier(["a"], [[0.5, 0.5]], classes=["a"])
