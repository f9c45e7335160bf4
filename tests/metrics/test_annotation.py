from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert import metrics
from cellxpert.errors import MetricError

labels = st.sampled_from(["B", "T", "NK", "mono"])
pairs = st.lists(st.tuples(labels, st.one_of(labels, st.just("Unknown"))), min_size=1, max_size=40)


def _counts(true, pred, kind):
    hit = sum(t == p == kind for t, p in zip(true, pred, strict=True))
    return hit, sum(t == kind for t in true), sum(p == kind for p in pred)


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_scores_equal_plain_loops(cells):
    true, pred = [c[0] for c in cells], [c[1] for c in cells]
    kinds = sorted(set(true))
    f1 = {}
    for kind in kinds:
        hit, n_true, n_pred = _counts(true, pred, kind)
        f1[kind] = 2 * hit / (n_true + n_pred)
    weights = {kind: true.count(kind) / len(true) for kind in kinds}
    agreed = sum(t == p for t, p in cells) / len(cells)
    chance = sum(true.count(k) * pred.count(k) for k in set(true) | set(pred)) / len(cells) ** 2
    scores = metrics.annotation_scores(np.array(true), pd.Series(pred, dtype="category"))
    assert scores == pytest.approx(
        {
            "accuracy": agreed,
            "macro_f1": sum(f1.values()) / len(f1),
            "weighted_f1": sum(weights[k] * f1[k] for k in kinds),
            "median_f1": float(np.median(list(f1.values()))),
            "kappa": 1.0 if chance == 1 else (agreed - chance) / (1 - chance),
        }
    )
    table = metrics.per_class(true, pred)
    assert table["label"].tolist() == kinds
    for row in table.itertuples():
        hit, n_true, n_pred = _counts(true, pred, row.label)
        assert (row.n, row.recall) == (n_true, pytest.approx(hit / n_true))
        assert row.precision == pytest.approx(hit / n_pred if n_pred else 0)
        assert row.f1 == pytest.approx(f1[row.label])


def test_scores_equal_sklearn_where_the_definitions_meet():
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert metrics.accuracy(true, pred) == skm.accuracy_score(true, pred)
    assert metrics.macro_f1(true, pred) == pytest.approx(skm.f1_score(true, pred, average="macro"))
    assert metrics.weighted_f1(true, pred) == pytest.approx(skm.f1_score(true, pred, average="weighted"))
    assert metrics.kappa(true, pred) == pytest.approx(skm.cohen_kappa_score(true, pred))


def test_macro_f1_does_not_average_classes_that_are_only_predicted():
    true, pred = ["a", "a", "b", "b"], ["a", "a", "b", "Unknown"]
    assert metrics.macro_f1(true, pred) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.macro_f1(true, pred) > skm.f1_score(true, pred, average="macro", zero_division=0)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_confusion_counts_pairs(cells):
    true, pred = [c[0] for c in cells], [c[1] for c in cells]
    table = metrics.confusion(true, pred)
    assert list(table.index) == list(table.columns) == sorted(set(true) | set(pred))
    for t in table.index:
        for p in table.columns:
            assert table.loc[t, p] == cells.count((t, p))
    order = ["Unknown", "NK", "mono", "T", "B"]
    ordered = metrics.confusion(true, pred, labels=order)
    assert list(ordered.index) == order
    assert ordered.to_numpy().sum() == len(cells)
    assert (ordered.loc[table.index, table.columns].to_numpy() == table.to_numpy()).all()


def test_labels_may_be_of_any_type():
    assert metrics.accuracy([1, "1", True], [1, "1", True]) == 1
    assert metrics.confusion([1, "a"], ["a", "a"]).to_numpy().sum() == 2


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([], [], "shapes"),
        (["a"], ["a", "b"], "shapes"),
        ([["a"]], [["a"]], "shapes"),
        (["a", None], ["a", "a"], "y_true: 1 missing"),
        (["a", "b"], ["a", np.nan], "y_pred: 1 missing"),
    ],
)
def test_arrays_that_cannot_be_compared(true, pred, message):
    for function in (metrics.accuracy, metrics.macro_f1, metrics.weighted_f1, metrics.median_f1, metrics.kappa):
        with pytest.raises(MetricError, match=message):
            function(true, pred)


def test_confusion_needs_every_label_once():
    with pytest.raises(MetricError, match="not listed"):
        metrics.confusion(["a"], ["b"], labels=["a"])
    with pytest.raises(MetricError, match="twice"):
        metrics.confusion(["a"], ["b"], labels=["a", "b", "a"])
