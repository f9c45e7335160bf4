from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert import metrics
from cellxpert.errors import MetricError

PARENTS = {
    "cell": [],
    "lymph": ["cell"],
    "motile": ["cell"],
    "T": ["lymph", "motile"],
    "CD4": ["T"],
    "naive": ["T"],
    "nCD4": ["CD4", "naive"],
    "B": ["lymph"],
}


def up(term):
    """Ancestors by recursion over the parents."""
    return {a for parent in PARENTS[term] for a in {parent} | up(parent)}


ANCESTORS = {term: up(term) for term in PARENTS}
terms = st.sampled_from(sorted(PARENTS))
cells = st.lists(st.tuples(terms, st.one_of(terms, st.just(""))), min_size=1, max_size=25)


@settings(deadline=None, max_examples=100)
@given(cells, st.booleans())
def test_scores_equal_plain_loops(pairs, as_function):
    true, pred = [t for t, _ in pairs], [p for _, p in pairs]
    ancestors = up if as_function else ANCESTORS
    has_kinds = any(up(t) for t in [*true, *pred] if t)  # else the root is never met as an ancestor
    hits = n_true = n_pred = compatible = 0
    for t, p in pairs:
        root = {"cell"} if has_kinds else set()
        truth, answer = (up(t) | {t}) - root, (up(p) | {p}) - root if p else set()
        hits += len(truth & answer)
        n_true += len(truth)
        n_pred += len(answer)
        compatible += bool(p) and (t == p or t in up(p) or p in up(t))
    assert metrics.within_branch_accuracy(true, pd.Series(pred), ancestors=ancestors) == compatible / len(pairs)
    if not n_true:
        with pytest.raises(MetricError, match="roots of the hierarchy only"):
            metrics.hierarchical_f1(true, pred, ancestors=ancestors)
        return
    precision, recall = hits / n_pred if n_pred else 0, hits / n_true
    f1 = 2 * precision * recall / (precision + recall) if hits else 0
    scores = metrics.hierarchical_scores(np.array(true), pred, ancestors=ancestors)
    assert scores == pytest.approx({"precision": precision, "recall": recall, "f1": f1})
    assert metrics.hierarchical_f1(true, pred, ancestors=ancestors) == scores["f1"]


@settings(deadline=None, max_examples=60)
@given(cells)
def test_distances_are_means_over_wrong_answers_and_over_all(pairs):
    def distance(a, b):
        assert a != b, "right answers are at 0"
        return abs(len(up(a)) - len(up(b))) + 0.5

    true, pred = [t for t, _ in pairs], [p for _, p in pairs]
    answers = [(t, p) for t, p in pairs if p]
    wrong = [distance(t, p) for t, p in answers if t != p]
    table = {(t, p): distance(t, p) for t, p in answers if t != p}
    for given_distance in (distance, table):
        found = metrics.error_distance(true, pred, distance=given_distance)
        expected = {
            "wrong": np.mean(wrong) if wrong else math.nan,
            "all": sum(wrong) / len(answers) if answers else math.nan,
        }
        assert found == pytest.approx(expected, nan_ok=True)


def test_without_a_hierarchy_f1_is_accuracy():
    true, pred = ["a", "b", "b", "c"], ["a", "b", "c", "d"]
    scores = metrics.hierarchical_scores(true, pred, ancestors=lambda _: ())
    assert set(scores.values()) == {metrics.accuracy(true, pred)} == {0.5}


def test_near_misses_score_higher_than_far_ones():
    near = metrics.hierarchical_f1(["nCD4"], ["CD4"], ancestors=ANCESTORS)
    far = metrics.hierarchical_f1(["nCD4"], ["B"], ancestors=ANCESTORS)
    assert 1 > near > far > 0
    too_coarse = metrics.hierarchical_scores(["nCD4"], ["T"], ancestors=ANCESTORS)
    too_fine = metrics.hierarchical_scores(["T"], ["nCD4"], ancestors=ANCESTORS)
    assert too_coarse == {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert too_fine == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([], [], "shapes"),
        (["T"], ["T", "B"], "shapes"),
        (["T", None], ["T", "T"], "y_true: 1 missing"),
        (["", "T"], ["T", "T"], "y_true: 1 cells without a term"),
        (["T", "T"], ["T", 3], "y_pred: 3, which is no term"),
    ],
)
def test_arrays_that_cannot_be_compared(true, pred, message):
    calls = [
        lambda: metrics.hierarchical_scores(true, pred, ancestors=ANCESTORS),
        lambda: metrics.within_branch_accuracy(true, pred, ancestors=ANCESTORS),
        lambda: metrics.error_distance(true, pred, distance={}),
    ]
    for call in calls:
        with pytest.raises(MetricError, match=message):
            call()


def test_a_hierarchy_with_gaps_is_refused():
    with pytest.raises(MetricError, match="no entry for 'Q'"):
        metrics.within_branch_accuracy(["T"], ["Q"], ancestors=ANCESTORS)
    with pytest.raises(MetricError, match="no entry for 'cell'"):
        metrics.hierarchical_f1(["T"], ["T"], ancestors={"T": {"cell"}})
    with pytest.raises(MetricError, match=r"no entry for \('T', 'B'\)"):
        metrics.error_distance(["T"], ["B"], distance={})
    for value in (-1, math.nan):
        with pytest.raises(MetricError, match=rf"{value} for \('T', 'B'\)"):
            metrics.error_distance(["T"], ["B"], distance={("T", "B"): value})


def test_the_real_ontology_fits():
    pytest.importorskip("cellxgene_ontology_guide", reason='needs pip install "cellxpert[ontology]"')
    from cellxpert.ontology import CellOntology

    ontology = CellOntology()
    true = ["CL:0000895", "CL:0000895", "CL:0000236"]  # naive CD4 T, twice, and B
    pred = ["CL:0000084", "CL:0000625", "CL:0000236"]  # T, CD8 T, B
    assert metrics.within_branch_accuracy(true, pred, ancestors=ontology.ancestors) == pytest.approx(2 / 3)
    assert 0.5 < metrics.hierarchical_f1(true, pred, ancestors=ontology.ancestors) < 1
    distances = [ontology.distance(t, p) for t, p in zip(true, pred, strict=True)]
    found = metrics.error_distance(true, pred, distance=ontology.distance)
    assert found == {"wrong": sum(distances) / 2, "all": sum(distances) / 3}
