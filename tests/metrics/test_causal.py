from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cellxpert.errors import MetricError
from cellxpert.metrics.causal import ancestor_leak, descendant_auroc

# Kinds of a gene for one perturbation: 0 target or not looked at, 1 ancestor, 2 descendant, 3 unrelated.
tables = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))


def _draw(shape):
    n, g, seed = shape
    rng = np.random.default_rng(seed)
    # Few distinct values, so that ties and zeros occur.
    return rng.integers(-3, 4, (n, g)) / 2, rng.integers(0, 4, (n, g))


def _agrees(function, expected, effect, **masks):
    known = [v for v in expected if not math.isnan(v)]
    if not known:
        with pytest.raises(MetricError, match=f"none of {len(expected)}"):
            function(effect, **masks)
        return
    found = function(effect, **masks)
    np.testing.assert_allclose(found["values"], expected, rtol=1e-12)
    assert found["n"] == len(known)
    assert found["mean"] == pytest.approx(sum(known) / len(known))


@settings(deadline=None, max_examples=150)
@given(tables)
def test_leak_equals_a_plain_loop(shape):
    effect, kind = _draw(shape)
    expected = []
    for sizes, kinds in zip(np.abs(effect).tolist(), kind.tolist(), strict=True):
        up = [s for s, k in zip(sizes, kinds, strict=True) if k == 1]
        none = [s for s, k in zip(sizes, kinds, strict=True) if k == 3]
        if not up or not none or sum(up) == sum(none) == 0:
            expected.append(math.nan)
        else:
            expected.append(sum(up) / len(up) / (sum(none) / len(none)) if sum(none) else math.inf)
    _agrees(ancestor_leak, expected, effect, ancestor_PG=kind == 1, unrelated_PG=kind == 3)


@settings(deadline=None, max_examples=150)
@given(tables)
def test_auroc_equals_scikit_learn(shape):
    effect, kind = _draw(shape)
    expected = []
    for sizes, kinds in zip(np.abs(effect), kind, strict=True):
        used = (kinds == 1) | (kinds == 2)
        both = len(set(kinds[used])) == 2
        expected.append(roc_auc_score(kinds[used] == 2, sizes[used]) if both else math.nan)
    _agrees(descendant_auroc, expected, effect, descendant_PG=kind == 2, ancestor_PG=kind == 1)


def test_a_chain_conditioned_and_cut():
    # x0 -> x1 -> x2 with unit noise, and x3 apart. Cutting x1 moves x2 only; where x1 is low, x0 differs more than x2 does.
    weight = np.zeros((4, 4))
    weight[1, 0], weight[2, 1] = 0.8, 0.3
    total = np.linalg.inv(np.eye(4) - weight)
    covariance = total @ total.T
    cut = total[None, :, 1]
    conditioned = covariance[None, :, 1] / covariance[1, 1]
    up, down, none = np.eye(4, dtype=bool)[[0, 2, 3]][:, None]
    noise = np.array([[0.01, 0.0, 0.0, 0.01]])
    assert ancestor_leak(cut + noise, ancestor_PG=up, unrelated_PG=none)["mean"] == pytest.approx(1)
    leak = ancestor_leak(conditioned + noise, ancestor_PG=up, unrelated_PG=none)
    assert leak["mean"] == pytest.approx((0.8 / 1.64 + 0.01) / 0.01)
    assert descendant_auroc(cut, descendant_PG=down, ancestor_PG=up)["mean"] == 1
    assert descendant_auroc(conditioned, descendant_PG=down, ancestor_PG=up)["mean"] == 0


def test_perturbations_without_ancestors_do_not_count():
    effect = np.array([[1.0, 2.0, 4.0, np.nan], [8.0, 2.0, 4.0, np.nan]])
    up = np.array([[0, 0, 0, 0], [1, 0, 0, 0]])
    none = np.array([[1, 1, 0, 0], [0, 1, 0, 0]])
    down = np.array([[0, 0, 1, 0], [0, 0, 1, 0]])
    leak = ancestor_leak(effect, ancestor_PG=up, unrelated_PG=none)
    assert (leak["mean"], leak["n"]) == (4.0, 1)
    np.testing.assert_array_equal(leak["values"], [np.nan, 4.0])
    auroc = descendant_auroc(effect, descendant_PG=down, ancestor_PG=up)
    assert (auroc["mean"], auroc["n"]) == (0.0, 1)
    np.testing.assert_array_equal(auroc["values"], [np.nan, 0.0])


@pytest.mark.parametrize(
    ("effect", "up", "none", "message"),
    [
        ([1.0, 2.0], [1, 0], [0, 1], "perturbations x genes"),
        ([[1.0, 2.0]], [[1, 0, 0]], [[0, 1]], "shapes"),
        ([[1.0, 2.0]], [[1, 0]], [[0, 2]], "True and False"),
        ([[1.0, 2.0]], [[1, 0]], [[1, 1]], "1 genes in both"),
        ([[np.nan, 2.0]], [[1, 0]], [[0, 1]], "1 values that are not finite"),
        ([[np.inf, 2.0]], [[1, 0]], [[0, 1]], "1 values that are not finite"),
        ([[1.0, 2.0]], [[0, 0]], [[0, 1]], "none of 1"),
        (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)), "none of 0"),
    ],
)
def test_bad_arguments(effect, up, none, message):
    with pytest.raises(MetricError, match=message):
        ancestor_leak(effect, ancestor_PG=up, unrelated_PG=none)
    with pytest.raises(MetricError, match=message):
        descendant_auroc(effect, ancestor_PG=up, descendant_PG=none)
