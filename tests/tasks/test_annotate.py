"""Labels of cells against a plain loop over cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellxpert.data.calibration import Calibration, quantiles_of
from cellxpert.data.cell_types import Components, TypeModel
from cellxpert.errors import ConfigError
from cellxpert.ontology import CellOntology
from cellxpert.tasks.annotate import (
    COARSER,
    FEW_GENES,
    LABELLED,
    LOW_CONFIDENCE,
    OUT_OF_DISTRIBUTION,
    Evidence,
    LabelOptions,
    annotate,
)

CLASSES = ("A", "B/C", "é")
TERMS = ("X:CD4", "X:CD8", "")
BLOOD = {
    "X:cell": ("cell", [], []),
    "X:blood": ("blood cell", ["X:cell"], []),
    "X:T": ("T cell", ["X:blood"], []),
    "X:CD4": ("CD4 T cell", ["X:T"], []),
    "X:CD8": ("CD8 T cell", ["X:T"], []),
    "X:B": ("B cell", ["X:blood"], []),
    **{f"X:{i}": (f"other {i}", ["X:cell"], []) for i in range(20)},
}


@pytest.fixture(scope="module")
def blood() -> CellOntology:
    return CellOntology.from_terms(BLOOD, version="v1")


def calibrated(*, confidence: np.ndarray, distance: np.ndarray, surprise: np.ndarray, **more) -> Calibration:
    """What was measured on cells with these scores."""
    types = TypeModel(Components(np.zeros(2), np.eye(2)), np.zeros((3, 2)), np.eye(2), np.ones(3), np.ones(3))
    given = {"source": "out-of-fold", "n_cells": len(surprise), "temperature": 1.0, "least_features": 3}
    return Calibration(
        confidence_Q=quantiles_of(confidence),
        distance_Q=quantiles_of(distance),
        surprise_Q=quantiles_of(surprise),
        steady_V=np.ones(2),
        types=types,
        **(given | more),
    )


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Scores 1/1007, 2/1007, ... of 1,007 cells, of which no kept level is a whole number; distances are ten times as large."""
    score = np.arange(1, 1008) / 1007
    return calibrated(confidence=score, distance=10 * score, surprise=score, temperature=2.0)


def evidence(n: int, *, seed: int = 0, **more) -> Evidence:
    rng = np.random.default_rng(seed)
    given = {
        "logits_NC": (6 * rng.normal(size=(n, 3))).astype(np.float32),
        "shown_N": rng.integers(0, 8, n),
        "distance_N": rng.uniform(0, 12, n),
    }
    return Evidence(**(given | more))


def decide(cells: Evidence, **more):
    return annotate(cells, classes=CLASSES, unlabeled_category="?", **({"calibration": None} | more))


def odds(logits: np.ndarray, temperature: float = 1.0) -> list[float]:
    powers = [math.exp((float(x) - float(max(logits))) / temperature) for x in logits]
    return [p / sum(powers) for p in powers]


def cluster_members(cells: Evidence, i: int) -> list[int]:
    """The cells that vote for cell i: itself alone where there is nobody to ask."""
    if cells.cluster_N is None or cells.cluster_N[i] < 0:
        return [i]
    same = [j for j in range(len(cells.shown_N)) if cells.cluster_N[j] == cells.cluster_N[i] and cells.shown_N[j] > 0]
    return same or [i]


def by_hand(cells: Evidence, calibration: Calibration, options: LabelOptions, ontology: CellOntology) -> list[tuple]:
    """Label, confidence, reason and term of each cell, one cell at a time, in the order of priority."""
    share = (1 - options.coverage) / 2
    # scores of the cells that the calibration was made of, which this share of them does not exceed
    least, most = -1.0, math.inf
    if options.coverage < 1:
        least, most = math.ceil(1007 * share) / 1007, 10 * math.ceil(1007 * (1 - share)) / 1007
    out = []
    for i in range(len(cells.shown_N)):
        voters = cluster_members(cells, i)
        learned = np.ones(len(cells.shown_N)) if cells.learned_N is None else cells.learned_N
        proba = [[learned[j] * p for p in odds(cells.logits_NC[j], calibration.temperature)] for j in voters]
        proba = np.mean(proba, axis=0)
        distance = np.median([cells.distance_N[j] for j in voters])
        shown = int(np.median([cells.shown_N[j] for j in voters]))
        best = int(np.argmax(proba))
        label, term, confidence, reason = CLASSES[best], TERMS[best], proba[best], LABELLED
        if options.back_off is None:
            unsure = confidence < least
        else:
            unsure = confidence < options.back_off
            # CD4 and CD8 are both T cells; "blood cell" is no more probable than "T cell" is
            if unsure and proba[0] + proba[1] >= options.back_off:
                label, term, confidence, reason, unsure = "T cell", "X:T", proba[0] + proba[1], COARSER, False
        few = shown < (calibration.least_features if options.coverage < 1 else 1)
        if options.unknown:
            if few:
                reason = FEW_GENES
            elif distance > most:
                reason = OUT_OF_DISTRIBUTION
            elif unsure:
                reason = LOW_CONFIDENCE
            if reason not in {LABELLED, COARSER}:
                label, term, confidence = "?", "", 0.0
        out.append((label, confidence, reason, term or "unknown"))
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    unknown=st.booleans(),
    coverage=st.sampled_from([0.6, 0.9, 0.95, 1]),
    threshold=st.sampled_from([None, 0.6, 0.9]),
    clusters=st.booleans(),
    new=st.booleans(),
)
def test_decisions_are_those_of_a_loop(calibration, blood, seed, unknown, coverage, threshold, clusters, new):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(-1, 6, 40) if clusters else None
    cells = evidence(40, seed=seed, cluster_N=cluster, learned_N=rng.random(40) if new else None)
    options = LabelOptions(unknown=unknown, coverage=coverage, back_off=threshold)
    found = decide(cells, calibration=calibration, options=options, label_terms=TERMS, ontology=blood)
    expected = by_hand(cells, calibration, options, blood)
    assert found.labels.tolist() == [e[0] for e in expected]
    assert found.reason.tolist() == [e[2] for e in expected]
    assert found.terms.tolist() == [e[3] for e in expected]
    assert np.allclose(found.confidence, [e[1] for e in expected], atol=1e-6)


def test_the_loop_sees_every_reason(calibration, blood):
    """Else it would say nothing of their order."""
    cells = evidence(300)
    options = LabelOptions(back_off=0.7)
    reasons = {e[2] for e in by_hand(cells, calibration, options, blood)}
    assert reasons == {LABELLED, COARSER, LOW_CONFIDENCE, OUT_OF_DISTRIBUTION, FEW_GENES}


@pytest.mark.parametrize(
    ("shown", "distance", "sure", "reason"),
    [
        (9, 1.0, True, LABELLED),
        (9, 1.0, False, LOW_CONFIDENCE),
        (9, 11.0, True, OUT_OF_DISTRIBUTION),
        (9, 11.0, False, OUT_OF_DISTRIBUTION),
        (2, 11.0, False, FEW_GENES),
        (2, 1.0, True, FEW_GENES),
        (0, 1.0, True, FEW_GENES),
    ],
)
def test_of_several_reasons_the_first_is_given(shown, distance, sure, reason):
    score = np.linspace(0.5, 1, 200)
    known = calibrated(confidence=score, distance=10 * score, surprise=score)
    logits = np.array([[9, 0, 0] if sure else [0.1, 0, 0]], np.float32)
    found = decide(
        Evidence(logits_NC=logits, shown_N=np.array([shown]), distance_N=np.array([distance])), calibration=known
    )
    assert found.reason.tolist() == [reason]
    assert (found.labels[0] == "?") == (found.confidence[0] == 0) == (reason != LABELLED)


# --- probabilities -----------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_whatever_is_decided(calibration):
    cells = evidence(9, shown_N=np.zeros(9, np.int64), cluster_N=np.zeros(9, np.int64))
    plain, tempered = decide(cells), decide(cells, calibration=calibration)
    assert np.allclose(plain.probabilities, [odds(row) for row in cells.logits_NC], atol=1e-6)
    assert np.allclose(tempered.probabilities, [odds(row, 2.0) for row in cells.logits_NC], atol=1e-6)
    assert plain.probabilities.dtype == plain.confidence.dtype == plain.ood.dtype == np.float32
    assert set(plain.labels) == {"?"}
    assert plain.classes == CLASSES


def test_probabilities_do_not_overflow():
    found = decide(evidence(1, logits_NC=np.array([[1e4, -1e4, 0.0]], np.float32)))
    assert found.probabilities.tolist() == [[1, 0, 0]]


def test_without_a_calibration_only_empty_cells_get_no_label():
    cells = evidence(50, distance_N=None)
    found = decide(cells, options=LabelOptions(coverage=0.6))
    assert (found.reason == FEW_GENES).tolist() == (cells.shown_N == 0).tolist()
    assert (found.reason == LABELLED).tolist() == (cells.shown_N > 0).tolist()
    assert np.isnan(found.ood).all()
    assert np.isnan(found.uncertainty).all()
    assert found.terms is None
    assert found.sets_NC is None


def test_ood_is_one_where_a_twentieth_of_known_cells_are_farther(calibration):
    cells = evidence(3, distance_N=np.array([1, 0, 2]) * 10 * 957 / 1007)
    assert np.allclose(decide(cells, calibration=calibration).ood, [1, 0, 2], atol=1e-6)


@pytest.mark.parametrize("coverage", [0.6, 0.8, 0.9, 0.98])
def test_of_cells_like_the_training_cells_the_asked_share_keeps_a_label(coverage):
    """Confidence and distance are independent here: half of what may be refused goes for each reason."""
    rng = np.random.default_rng(1)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(n, 3)), rng.chisquare(5, n)

    logits, distance = draw(4000)
    top = np.array([max(odds(row)) for row in logits])
    known = calibrated(confidence=top, distance=distance, surprise=1 - top)
    logits, distance = draw(4000)
    cells = Evidence(logits_NC=logits.astype(np.float32), shown_N=np.full(4000, 9), distance_N=distance)
    found = decide(cells, calibration=known, options=LabelOptions(coverage=coverage))
    share = (1 - coverage) / 2
    for reason, expected in ((LABELLED, (1 - share) ** 2), (OUT_OF_DISTRIBUTION, share)):
        error = 4 * math.sqrt(expected * (1 - expected) / 2000) + 0.005  # thresholds move by 1/200
        assert abs((found.reason == reason).mean() - expected) < error


@pytest.mark.parametrize("clusters", [False, True])
def test_uncertainty_tells_what_every_coverage_would_refuse(calibration, clusters):
    cells = evidence(400, seed=3, shown_N=np.full(400, 9), cluster_N=np.arange(400) // 4 if clusters else None)
    for percent in range(51, 100):
        found = decide(cells, calibration=calibration, options=LabelOptions(coverage=percent / 100))
        kept = found.uncertainty <= (100 + percent) / 200
        assert (kept == (found.reason == LABELLED)).all()
        assert kept.any()
        assert not kept.all()


# --- backing off -------------------------------------------------------------------------------------------------------


def test_backing_off_names_the_finest_type_that_is_probable_enough(blood):
    proba = np.array([[0.9, 0.05, 0.05], [0.45, 0.4, 0.15], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]])
    cells = Evidence(logits_NC=np.log(proba).astype(np.float32), shown_N=np.full(4, 9))
    found = decide(cells, options=LabelOptions(back_off=0.7), label_terms=TERMS, ontology=blood)
    assert found.labels.tolist() == ["A", "T cell", "?", "é"]
    assert found.terms.tolist() == ["X:CD4", "X:T", "unknown", "unknown"]
    assert found.reason.tolist() == [LABELLED, COARSER, LOW_CONFIDENCE, LABELLED]
    assert np.allclose(found.confidence, [0.9, 0.85, 0, 0.8])
    forced = decide(cells, options=LabelOptions(back_off=0.7, unknown=False), label_terms=TERMS, ontology=blood)
    assert forced.labels.tolist() == ["A", "T cell", "é", "é"]
    assert np.allclose(forced.confidence, [0.9, 0.85, 0.4, 0.8])


@pytest.mark.parametrize("share", [True, np.nan, "0.9", np.float32(1.5)])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ConfigError, match="coverage"):
        LabelOptions(coverage=share)


def test_a_share_may_be_a_number_of_numpy():
    assert LabelOptions(coverage=np.float32(0.75)).coverage == 0.75


def test_backing_off_reaches_a_coarse_type_that_is_a_label_too(blood):
    """It is then called as that label is: the ontology's name would be one class more."""
    proba = np.array([[0.5, 0.3, 0.2]])  # of CD8, T, B: 80 % a T cell
    found = annotate(
        Evidence(logits_NC=np.log(proba).astype(np.float32), shown_N=np.array([9])),
        classes=("CD8", "T cells", "B"),
        unlabeled_category="?",
        calibration=None,
        options=LabelOptions(back_off=0.7),
        label_terms=("X:CD8", "X:T", "X:B"),
        ontology=blood,
    )
    assert (found.labels[0], found.terms[0], found.reason[0]) == ("T cells", "X:T", COARSER)
    assert found.confidence[0] == pytest.approx(0.8)


def test_backing_off_takes_the_place_of_the_threshold_of_confidence(blood):
    score = np.linspace(0.9, 1, 200)
    known = calibrated(confidence=score, distance=score, surprise=score)
    cells = Evidence(
        logits_NC=np.log([[0.6, 0.2, 0.2]]).astype(np.float32), shown_N=np.array([9]), distance_N=np.array([0.0])
    )
    assert decide(cells, calibration=known).reason.tolist() == [LOW_CONFIDENCE]
    kept = decide(cells, calibration=known, options=LabelOptions(back_off=0.55), label_terms=TERMS, ontology=blood)
    assert kept.reason.tolist() == [LABELLED]


# --- clusters ----------------------------------------------------------------------------------------------------------


def test_cells_of_a_cluster_get_one_label_and_others_their_own(calibration):
    cluster = np.array([0, 0, 0, -1, -1, 1])
    logits = np.array([[4, 0, 0], [4, 0, 0], [0, 5, 0], [0, 9, 0], [0, 0, 9], [0, 0, 9]], np.float32)
    cells = evidence(6, logits_NC=logits, shown_N=np.full(6, 9), distance_N=np.ones(6), cluster_N=cluster)
    found = decide(cells, options=LabelOptions(coverage=1), calibration=calibration)
    assert found.labels.tolist() == ["A", "A", "A", "B/C", "é", "é"]
    assert len(set(found.confidence[:3])) == 1
    assert np.allclose(found.probabilities[2], odds(logits[2], 2.0), atol=1e-6)  # its own, not its cluster's


def test_a_cluster_of_empty_cells_gets_no_label_and_empty_cells_have_no_vote():
    cluster, shown = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 5])
    logits = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [0, 1, 0]], np.float32)
    found = decide(Evidence(logits_NC=logits, shown_N=shown, cluster_N=cluster))
    assert found.labels.tolist() == ["?", "?", "B/C", "B/C"]
    assert found.reason.tolist() == [FEW_GENES, FEW_GENES, LABELLED, LABELLED]
    assert np.allclose(found.confidence[2:], max(odds(logits[3])))


def test_evidence_is_not_changed(calibration):
    cells = evidence(20, cluster_N=np.arange(20) % 3)
    before = {name: getattr(cells, name).copy() for name in ("logits_NC", "shown_N", "distance_N", "cluster_N")}
    decide(cells, calibration=calibration, options=LabelOptions(set_coverage=0.9))
    assert all(np.array_equal(getattr(cells, name), value) for name, value in before.items())


# --- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "asked"), [(60, 0.9), (200, 0.9), (200, 0.95), (1000, 0.8)])
def test_sets_hold_the_true_label_as_often_as_promised(n, asked):
    """Mean over many draws of calibration and query cells: at least what was asked, and not much more.

    The probabilities are wrong on purpose: the promise does not rest on them.
    """
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(150):
        logits = 2 * rng.normal(size=(n + 200, 3))
        proba = np.array([odds(row) for row in logits])
        truth = (proba.cumsum(axis=1) < rng.random((len(proba), 1))).sum(axis=1).clip(max=2)
        stated = np.array([odds(row, 0.5) for row in logits])  # too sure of themselves
        surprise = 1 - stated[np.arange(n), truth[:n]]
        known = calibrated(confidence=stated[:n].max(axis=1), distance=surprise, surprise=surprise, temperature=0.5)
        cells = Evidence(logits_NC=logits[n:].astype(np.float32), shown_N=np.full(200, 9), distance_N=np.zeros(200))
        sets = decide(cells, calibration=known, options=LabelOptions(set_coverage=asked)).sets_NC
        covered.append(sets[np.arange(200), truth[n:]].mean())
    error = np.std(covered) / math.sqrt(len(covered))
    assert asked - 3 * error <= np.mean(covered) <= asked + 1 / n + 0.01 + 3 * error


@pytest.mark.parametrize(
    "allowed",
    [
        np.kron(np.eye(2), np.ones((2, 2))).astype(bool),  # two words for each of two types
        np.array([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool),  # two kinds of the first
    ],
)
@pytest.mark.parametrize("asked", [0.8, 0.9])
def test_sets_of_labels_that_contain_one_another_hold_what_they_promise(allowed, asked):
    """Scores of true labels are, as in the calibration, of all that a cell with them may have."""
    rng, covered, n = np.random.default_rng(4), [], 300
    for _ in range(60):
        logits = 1.5 * rng.normal(size=(n + 200, 4))
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth = (proba.cumsum(axis=1) < rng.random((len(proba), 1))).sum(axis=1).clip(max=3)
        surprise = 1 - (proba * allowed[truth]).sum(axis=1)[:n]
        known = calibrated(confidence=proba[:n].max(axis=1), distance=surprise, surprise=surprise)
        cells = Evidence(logits_NC=logits[n:].astype(np.float32), shown_N=np.full(200, 9), distance_N=np.zeros(200))
        found = annotate(
            cells,
            classes=("a", "b", "c", "d"),
            unlabeled_category="?",
            calibration=known,
            options=LabelOptions(set_coverage=asked),
            allowed_CC=allowed,
        )
        covered.append(found.sets_NC[np.arange(200), truth[n:]].mean())
    error = np.std(covered) / math.sqrt(len(covered))
    assert asked - 3 * error <= np.mean(covered) <= asked + 0.03 + 3 * error


@pytest.mark.parametrize("coverage", [0.95, 0.995, 0.999])
def test_no_more_is_refused_for_low_confidence_than_may_be(coverage):
    score = np.linspace(0, 1, 4001)
    known = calibrated(confidence=score, distance=score, surprise=score)
    logits = np.log(np.stack([score, (1 - score) * 0.6, (1 - score) * 0.4], axis=1).clip(1e-9))[2001:]
    low = known.threshold("confidence", (1 - coverage) / 2)
    assert (score < low).mean() <= (1 - coverage) / 2 + 1e-9
    cells = Evidence(logits_NC=logits.astype(np.float32), shown_N=np.full(2000, 9), distance_N=np.zeros(2000))
    assert (decide(cells, calibration=known, options=LabelOptions(coverage=coverage)).reason == LABELLED).all()


def test_a_set_is_what_is_no_more_surprising_than_known_true_labels_and_the_likeliest():
    surprise = np.arange(1, 201) / 1000  # 0.001 to 0.2
    known = calibrated(confidence=1 - surprise, distance=surprise, surprise=surprise)
    proba = np.array([[0.85, 0.1, 0.05], [0.5, 0.3, 0.2], [0.05, 0.9, 0.05]])
    cells = Evidence(logits_NC=np.log(proba).astype(np.float32), shown_N=np.full(3, 9), distance_N=np.zeros(3))
    for asked in (0.1, 0.5, 0.75, 0.9):
        limit = surprise[math.ceil(201 * asked) - 1]
        found = decide(cells, calibration=known, options=LabelOptions(set_coverage=asked)).sets_NC
        expected = [[1 - p <= limit + 0.001 or p == max(row) for p in row] for row in proba.tolist()]
        assert found.tolist() == expected


@pytest.mark.parametrize(("n", "asked"), [(50, 0.99), (50, 1), (1000, 1)])
def test_more_than_the_cells_can_promise_is_every_label(n, asked):
    surprise = np.full(n, 0.01)
    known = calibrated(confidence=1 - surprise, distance=surprise, surprise=surprise)
    found = decide(evidence(5), calibration=known, options=LabelOptions(set_coverage=asked))
    assert found.sets_NC.all()


def test_sets_need_a_calibration():
    with pytest.raises(ConfigError, match=r"set_coverage[\s\S]*not calibrated"):
        decide(evidence(5), options=LabelOptions(set_coverage=0.9))


# --- what is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0.9", 0, -0.1, 1.01, 90, float("nan"), float("inf"), [0.9], None])
@pytest.mark.parametrize("name", ["coverage", "back_off", "set_coverage"])
def test_shares_are_checked(name, value):
    if value is None:
        assert LabelOptions().back_off is None
        return
    with pytest.raises(ConfigError, match=rf"annotate\({name}=\)"):
        LabelOptions(**{name: value})


def test_fewer_than_half_of_the_cells_cannot_be_asked_for():
    with pytest.raises(ConfigError, match=r"0\.5 and at most 1"):
        LabelOptions(coverage=0.5)
    assert LabelOptions(coverage=0.51, back_off=0.1, set_coverage=1).set_coverage == 1


def test_the_defaults_are_those_of_the_method(calibration):
    cells = evidence(100)
    assert decide(cells, calibration=calibration).labels.tolist() == (
        decide(cells, calibration=calibration, options=LabelOptions(unknown=True, coverage=0.9)).labels.tolist()
    )
