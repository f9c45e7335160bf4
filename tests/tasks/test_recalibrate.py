"""Calibration on labelled cells of another kind, against a plain minimisation and a law that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from cellxpert.data.calibration import Calibration, quantiles_of
from cellxpert.data.cell_types import Components, TypeModel
from cellxpert.metrics import ece, ece_floor
from cellxpert.tasks.annotate import LABELLED, Evidence, LabelOptions, annotate
from cellxpert.tasks.recalibrate import SPREADS, recalibrate

OWN = np.arange(3)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    types = TypeModel(Components(np.zeros(2), np.eye(2)), np.zeros((3, 2)), np.eye(2), np.ones(3), np.ones(3))
    score = np.arange(1, 101) / 100
    return Calibration(
        source="out-of-fold",
        n_cells=100,
        temperature=2.0,
        confidence_Q=quantiles_of(score),
        distance_Q=quantiles_of(score),
        surprise_Q=quantiles_of(score),
        steady_V=np.ones(2),
        least_features=3,
        types=types,
    )


def drawn(n: int, *, seed: int, factor: float = 1.0, bias: np.ndarray | float = 0.0) -> tuple[Evidence, np.ndarray]:
    """Cells whose probabilities are softmax(z / (2 factor) + bias), and their labels."""
    rng = np.random.default_rng(seed)
    logits = (6 * rng.normal(size=(n, 3))).astype(np.float32)
    proba = softmax(logits / (2 * factor) + bias, axis=1)
    label = (rng.random(n)[:, None] > proba.cumsum(axis=1)).sum(axis=1)
    return Evidence(logits_NC=logits, shown_N=np.full(n, 9), distance_N=rng.chisquare(4, n)), label


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), words=st.booleans())
def test_temperature_and_biases_are_those_of_a_plain_minimisation(
    calibration: Calibration, seed: int, words: bool
) -> None:
    cells, label = drawn(40, seed=seed, factor=1.7, bias=np.array([1.0, 0.0, -0.5]))
    rows = np.random.default_rng(seed).choice(40, 25, replace=False)
    allowed = np.eye(3, dtype=bool)[label[rows]]
    if words:
        allowed[allowed[:, 0], 1] = True  # what is called 0 may be 1

    def loss(x: np.ndarray, some: list[int], spread: float | None) -> float:
        total = 0.0 if spread is None else x[0] ** 2 / 2 + sum(b**2 for b in x[1:]) / (2 * spread**2)
        for i in some:
            scaled = [z / 2 / math.exp(x[0]) for z in cells.logits_NC[rows[i]].tolist()]
            odds = [math.exp(z + b) for z, b in zip(scaled, x[1:], strict=True)]
            total -= math.log(sum(o for o, m in zip(odds, allowed[i], strict=True) if m) / sum(odds))
        return total

    def fit(some: list[int], spread: float) -> np.ndarray:
        return minimize(loss, np.zeros(4), args=(some, spread), method="BFGS", options={"gtol": 1e-6}).x

    def left_out(spread: float) -> float:
        parts = [[i for i in range(25) if i % 5 == fold] for fold in range(5)]
        return sum(loss(fit([i for i in range(25) if i not in part], spread), part, None) for part in parts)

    best = fit(list(range(25)), min(SPREADS, key=left_out))
    found, moved = recalibrate(calibration, cells, rows=rows, allowed_NC=allowed, type_C=OWN)
    assert found.temperature == pytest.approx(2 * math.exp(best[0]), rel=2e-3)
    bias = (moved.logits_NC - cells.logits_NC) / found.temperature
    assert np.allclose(bias, best[1:], atol=3e-3)
    assert (found.n_cells, found.source) == (25, "labelled cells")
    proba = softmax(cells.logits_NC[rows] / found.temperature + best[1:], axis=1)
    assert np.allclose(found.confidence_Q, quantiles_of(proba.max(axis=1)), atol=3e-3)
    assert np.allclose(found.surprise_Q, quantiles_of(1 - (proba * allowed).sum(axis=1)), atol=3e-3)
    assert np.array_equal(found.distance_Q, quantiles_of(cells.distance_N[rows]))


def test_other_cells_are_calibrated_and_labelled_better(calibration: Calibration) -> None:
    law = {"factor": 2.5, "bias": np.array([1.5, 0.0, -1.5])}
    cells, label = drawn(4000, seed=0, **law)
    rows, others = np.arange(200), np.arange(200, 4000)
    found, moved = recalibrate(calibration, cells, rows=rows, allowed_NC=np.eye(3, dtype=bool)[label[rows]], type_C=OWN)
    scores = {}
    for name, known, read in (("before", calibration, cells), ("after", found, moved)):
        table = annotate(
            read,
            classes=("0", "1", "2"),
            unlabeled_category="?",
            calibration=known,
            options=LabelOptions(unknown=False),
        )
        right = (table.labels.astype(int) == label)[others]
        confidence = table.confidence[others]
        scores[name] = (right.mean(), ece(confidence, right), ece_floor(confidence, n_draws=20))
    assert scores["after"][0] > scores["before"][0] + 0.03
    assert scores["before"][1] > 0.2
    assert scores["after"][1] < scores["after"][2] + 0.04


def test_the_share_that_was_asked_for_keeps_a_label(calibration: Calibration) -> None:
    cells, label = drawn(6000, seed=1, factor=3.0)
    rows = np.arange(3000)
    found, moved = recalibrate(calibration, cells, rows=rows, allowed_NC=np.eye(3, dtype=bool)[label[rows]], type_C=OWN)
    table = annotate(moved, classes=("0", "1", "2"), unlabeled_category="?", calibration=found)
    kept = (table.reason == LABELLED)[3000:].mean()
    assert abs(kept - 0.95**2) < 0.03  # confidence and distance are independent here


def test_few_cells_that_are_all_right_do_not_make_it_certain(calibration: Calibration) -> None:
    cells, _ = drawn(50, seed=2)
    right = np.eye(3, dtype=bool)[cells.logits_NC.argmax(axis=1)]
    found, _ = recalibrate(calibration, cells, rows=np.arange(50), allowed_NC=right, type_C=OWN)
    assert 0.1 < found.temperature < 2


def test_what_is_given_is_left_alone(calibration: Calibration) -> None:
    cells, label = drawn(60, seed=3)
    before, kept = cells.logits_NC.copy(), calibration.confidence_Q.copy()
    recalibrate(calibration, cells, rows=np.arange(60), allowed_NC=np.eye(3, dtype=bool)[label], type_C=OWN)
    assert np.array_equal(cells.logits_NC, before)
    assert np.array_equal(calibration.confidence_Q, kept)
    assert (calibration.temperature, calibration.source) == (2.0, "out-of-fold")
