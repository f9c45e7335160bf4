"""Regression against scikit-learn where that has the case, else against the loss written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import approx_fprime, minimize
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from cellxpert.training import regression
from cellxpert.training.regression import fit_regression, fit_temperature

COARSE = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
"""What a cell with each label may be: label 1 is a kind of label 0."""


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the solver go on until nothing is left to gain."""
    monkeypatch.setattr(regression, "TOLERANCE", 1e-9)
    monkeypatch.setattr(regression, "MAX_ITERATIONS", 5000)


def _cells(
    n_cells: int = 150, n_inputs: int = 6, n_classes: int = 3, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, half of them 0, and classes that follow them loosely."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n_cells, n_inputs)) * (rng.random((n_cells, n_inputs)) < 0.5)
    logits = inputs @ rng.normal(size=(n_inputs, n_classes)) + rng.normal(size=n_classes)
    codes = np.array([rng.choice(n_classes, p=softmax(row)) for row in logits])
    codes[:n_classes] = np.arange(n_classes)
    return inputs, codes


def _written_out(
    flat: np.ndarray,
    inputs: np.ndarray,
    allowed: np.ndarray,
    *,
    inverse_penalty: float,
    weight: np.ndarray | None = None,
    margin: np.ndarray | None = None,
) -> float:
    """The loss of the docstring, cell by cell."""
    coefficients = flat.reshape(-1, allowed.shape[1])
    total = 0.0
    for i, cell in enumerate(inputs):
        odds = []
        for c in range(allowed.shape[1]):
            logit = sum(x * w for x, w in zip(cell, coefficients[:-1, c], strict=True)) + coefficients[-1, c]
            odds.append(math.exp(logit - (margin[c] if margin is not None and allowed[i, c] else 0.0)))
        p = sum(x for x, may in zip(odds, allowed[i], strict=True) if may) / sum(odds)
        total -= (1.0 if weight is None else weight[i]) * math.log(p)
    return inverse_penalty * total + 0.5 * float((coefficients[:-1] ** 2).sum())


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("inverse_penalty", [0.01, 0.3, 10.0])
def test_exact_labels_give_the_coefficients_of_scikit_learn(
    precise: None, n_classes: int, inverse_penalty: float
) -> None:
    inputs, codes = _cells(n_classes=n_classes)
    found = fit_regression(
        sparse.csr_matrix(inputs), np.eye(n_classes, dtype=bool)[codes], inverse_penalty=inverse_penalty
    )
    if n_classes == 2:  # scikit-learn has one column for two classes: of the difference, whose penalty is half ours
        truth = LogisticRegression(C=2 * inverse_penalty, tol=1e-9, max_iter=5000).fit(inputs, codes)
        assert np.allclose(found[:-1, 1] - found[:-1, 0], truth.coef_[0], atol=1e-4)
        assert np.allclose(found[-1, 1] - found[-1, 0], truth.intercept_, atol=1e-4)
        return
    truth = LogisticRegression(C=inverse_penalty, tol=1e-9, max_iter=5000).fit(inputs, codes)
    assert np.allclose(found[:-1], truth.coef_.T, atol=1e-4)
    # a constant added to all intercepts changes nothing
    assert np.allclose(found[-1] - found[-1].mean(), truth.intercept_ - truth.intercept_.mean(), atol=1e-4)


def test_sample_weights_are_those_of_scikit_learn(precise: None) -> None:
    inputs, codes = _cells()
    weight = np.random.default_rng(1).gamma(1.0, 1.0, len(codes))
    weight[10:20] = 0
    found = fit_regression(
        sparse.csr_matrix(inputs), np.eye(3, dtype=bool)[codes], inverse_penalty=0.5, weight_N=weight
    )
    truth = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(inputs, codes, sample_weight=weight)
    assert np.allclose(found[:-1], truth.coef_.T, atol=1e-4)


def test_the_usual_tolerance_changes_no_probability_much() -> None:
    inputs, codes = _cells(n_cells=400)
    found = fit_regression(sparse.csr_matrix(inputs), np.eye(3, dtype=bool)[codes], inverse_penalty=0.1)
    truth = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000).fit(inputs, codes).predict_proba(inputs)
    assert np.abs(softmax(inputs @ found[:-1] + found[-1], axis=1) - truth).max() < 5e-3


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("margin", [None, np.array([0.3, 2.0, 1.0])])
def test_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, marginal: bool, margin: np.ndarray | None) -> None:
    """The loss that the solver is given is the one written out, and its gradient that of finite differences."""
    inputs, codes = _cells(n_cells=12, n_inputs=3)
    allowed = (COARSE if marginal else np.eye(3, dtype=bool))[codes]
    weight = np.random.default_rng(1).gamma(1.0, 1.0, 12)
    given = []

    def spy(loss, begin, **options):
        given.append(loss)
        return minimize(loss, begin, **options)

    monkeypatch.setattr(regression, "minimize", spy)
    fit_regression(sparse.csr_matrix(inputs), allowed, inverse_penalty=0.7, weight_N=weight, margin_C=margin)
    size = 0.7 * weight.sum()
    for seed in range(3):
        at = np.random.default_rng(seed).normal(size=12)

        def written_out(flat: np.ndarray) -> float:
            loss = _written_out(flat, inputs, allowed, inverse_penalty=0.7, weight=weight, margin=margin)
            return loss / size

        value, gradient = given[0](at)
        assert value == pytest.approx(written_out(at), rel=1e-9)
        assert np.allclose(gradient, approx_fprime(at, written_out, 1e-7), atol=1e-5)


@pytest.mark.parametrize("margin", [None, np.array([0.5, 1.5, 2.0])])
@pytest.mark.parametrize("marginal", [False, True])
def test_the_optimum_is_that_of_the_loss_written_out(precise: None, margin: np.ndarray | None, marginal: bool) -> None:
    inputs, codes = _cells(n_cells=20, n_inputs=2)
    allowed = (COARSE if marginal else np.eye(3, dtype=bool))[codes]

    def loss(flat: np.ndarray) -> float:
        return _written_out(flat, inputs, allowed, inverse_penalty=0.5, margin=margin)

    found = fit_regression(sparse.csr_matrix(inputs), allowed, inverse_penalty=0.5, margin_C=margin)
    truth = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-6})
    assert loss(found.ravel()) == pytest.approx(truth.fun, abs=1e-6)
    # probabilities, not coefficients: the intercept of a label that no cell must have falls without end
    probabilities = [softmax(inputs @ w[:-1] + w[-1], axis=1) for w in (found, truth.x.reshape(3, 3))]
    assert np.allclose(*probabilities, atol=1e-3)


def test_coarse_labels_leave_the_choice_to_the_others(precise: None) -> None:
    """Cells that are called by a coarse label get the kind of it that they look like."""
    rng = np.random.default_rng(0)
    kind = np.arange(90) % 3  # kinds 1 and 2 of a coarse label 0, and another label 3
    inputs = np.eye(3)[kind] + 0.1 * rng.normal(size=(90, 3))
    allowed = np.eye(4, dtype=bool)[kind + 1]
    coarse = (np.arange(90) % 2 == 0) & (kind < 2)
    allowed[coarse] = [True, True, True, False]
    found = fit_regression(sparse.csr_matrix(inputs), allowed, inverse_penalty=10.0)
    chosen = (inputs @ found[:-1] + found[-1]).argmax(axis=1)
    assert (chosen == kind + 1).mean() > 0.95


def test_a_start_changes_the_way_and_not_the_end(precise: None) -> None:
    inputs, codes = _cells()
    allowed = np.eye(3, dtype=bool)[codes]
    whole = fit_regression(sparse.csr_matrix(inputs), allowed, inverse_penalty=0.3)
    start = np.random.default_rng(0).normal(size=whole.shape)
    kept = start.copy()
    again = fit_regression(sparse.csr_matrix(inputs), allowed, inverse_penalty=0.3, start=start)
    assert np.allclose(again[:-1], whole[:-1], atol=1e-4)
    assert np.array_equal(start, kept)


@pytest.mark.parametrize("marginal", [False, True])
@pytest.mark.parametrize("truth", [0.4, 1.0, 5.0])
def test_the_temperature_is_the_best_of_a_grid(truth: float, marginal: bool) -> None:
    """Labels are drawn from what the logits, divided by the true temperature, say."""
    rng = np.random.default_rng(0)
    logits = 2 * truth * rng.normal(size=(4000, 3))
    codes = (softmax(logits / truth, axis=1).cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    allowed = (COARSE if marginal else np.eye(3, dtype=bool))[codes]
    found, loss = fit_temperature(logits, allowed)

    def mean_loss(temperature: float) -> float:
        return -np.log((softmax(logits / temperature, axis=1) * allowed).sum(axis=1)).mean()

    grid = np.exp(np.linspace(-3, 3, 601))
    losses = [mean_loss(t) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.011)
    assert loss == pytest.approx(mean_loss(found), rel=1e-9)
    assert loss <= min(losses) + 1e-9
    if not marginal:
        assert found == pytest.approx(truth, rel=0.1)


def test_temperatures_have_bounds() -> None:
    """Logits that are always right ask for none at all, those that are always wrong for any."""
    logits, allowed = np.array([[3.0, 0.0], [0.0, 3.0]]), np.eye(2, dtype=bool)
    assert fit_temperature(logits, allowed)[0] < 1.0
    assert fit_temperature(-logits, allowed)[0] == pytest.approx(np.exp(3), rel=0.01)
