"""Labels of cells of another kind than the training cells' are learned anew from some whose label is known, near to what they were.

Shape suffixes: N cells, L labelled cells, X inputs of the label head, R directions, F features, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logit, logsumexp, softmax

from cellxpert.data.calibration import Calibration, choose, quantiles_of
from cellxpert.tasks.annotate import Evidence

__all__ = ["recalibrate"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
N_FOLDS = 5
N_DIRECTIONS = 200
NEW_SPREAD = 4.0
"""Standard deviation of the prior for how common types are that were not learned: wide, as little is known of it."""
BIAS_SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)
WEIGHT_SPREADS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Standard deviations that the priors of biases and weights may have; weights may also stay as they are."""


@dataclass(frozen=True)
class _Move:
    """By what logits z, and directions f of the inputs, become softmax(z / factor + bias + f @ weight)."""

    factor: float
    bias_C: Floats
    weight_RC: Floats

    def logits(self, logits_LC: Floats, direct_LR: Floats) -> Floats:
        return logits_LC / self.factor + self.bias_C + direct_LR @ self.weight_RC


def recalibrate(
    calibration: Calibration,
    evidence: Evidence,
    *,
    inputs_NX: sparse.csr_matrix,
    rows: Ints,
    allowed_LC: Bools,
    type_C: Ints,
) -> tuple[Calibration, Evidence]:
    """Move a label head towards labelled cells, and measure on them what was measured on training cells.

    A logistic regression with the head as its starting point: temperature and a bias per label (Alexandari, Kundaje & Shrikumar 2020),
    which follow the frequencies of types in these cells, and weights along the principal directions of what the head reads of them. All
    have normal priors about the head as it is: of standard deviation 1 (logarithm of the temperature), and of those for biases and
    weights that are best for the fifths of the labelled cells, each left out in turn. What these fits say of the cells that they left out is
    what the calibration is made of.

    Where labelled cells are of types that the head did not learn, a second regression tells how probable such a type is, from confidence, distance
    and directions of all labelled cells; labels share the rest.

    Parameters
    ----------
    calibration
        What was measured on training cells.
    evidence
        What was read of cells.
    inputs_NX
        What the label head reads of them.
    rows, allowed_LC
        Which of them are labelled, and the labels that each of these may have: none for a type that was not learned.
    type_C
        As for :func:`cellxpert.tasks.annotate.annotate`.

    Returns
    -------
    The calibration of cells like these, as far as their types were learned, and the evidence with the logits of the moved head.
    """
    learned_N, aside_L, learned_L = None, np.ones(len(rows)), allowed_LC.any(axis=1)
    if not learned_L.all():
        learned_N, aside_L = _learned(calibration, evidence, inputs_NX=inputs_NX, rows=rows, learned_L=learned_L)
    rows, allowed_LC, aside_L = rows[learned_L], allowed_LC[learned_L], aside_L[learned_L]
    logits_LC = evidence.logits_NC[rows].astype(np.float64) / calibration.temperature
    direct_LR, axis_XR = _directions(inputs_NX[rows])

    def left_out(bias: float, weight: float) -> tuple[float, Floats]:
        found_LC = _left_out(logits_LC, direct_LR, allowed_LC, bias=bias, weight=weight)
        return _loss(found_LC, allowed_LC), found_LC

    without = {spread: left_out(spread, 0.0) for spread in BIAS_SPREADS}
    bias = min(without, key=lambda spread: without[spread][0])
    tried = {0.0: without[bias]} | {spread: left_out(bias, spread) for spread in WEIGHT_SPREADS}
    weight = min(tried, key=lambda spread: tried[spread][0])
    found_LC = tried[weight][1]
    sharpness = minimize_scalar(lambda x: _loss(found_LC / np.exp(x), allowed_LC) + x**2 / 2, bounds=(-3, 3))
    rest = float(np.exp(sharpness.x))
    proba_LC = softmax(found_LC / rest, axis=1) * aside_L[:, None]
    move = _fit(logits_LC, direct_LR, allowed_LC, bias=bias, weight=weight)
    temperature = calibration.temperature * move.factor * rest
    weight_XC = axis_XR @ move.weight_RC
    moved_NC = inputs_NX @ weight_XC - np.asarray(inputs_NX[rows].mean(axis=0)) @ weight_XC + move.bias_C
    assert evidence.distance_N is not None
    measured = replace(
        calibration,
        source="labelled cells",
        n_cells=len(rows),
        temperature=temperature,
        confidence_Q=quantiles_of(choose(proba_LC, type_C)[1]),
        surprise_Q=quantiles_of(1 - np.where(allowed_LC, proba_LC, 0.0).sum(axis=1)),
        distance_Q=quantiles_of(evidence.distance_N[rows]),
    )
    logits_NC = evidence.logits_NC + (temperature / rest * moved_NC).astype(np.float32)
    return measured, replace(evidence, logits_NC=logits_NC, learned_N=learned_N)


def _learned(
    calibration: Calibration, evidence: Evidence, *, inputs_NX: sparse.csr_matrix, rows: Ints, learned_L: Bools
) -> tuple[Floats, Floats]:
    """Return how probable it is that a cell's type was learned: of all cells (N,), and of labelled ones by fits without them (L,)."""
    assert evidence.distance_N is not None
    _, axis_XR = _directions(inputs_NX[rows])
    direct_NR = inputs_NX @ axis_XR - np.asarray(inputs_NX[rows].mean(axis=0)) @ axis_XR
    best_N = softmax(evidence.logits_NC.astype(np.float64) / calibration.temperature, axis=1).max(axis=1)
    doubt_N2 = np.stack(
        [-logit(np.clip(best_N, 1e-4, 1 - 1e-4)), np.log(np.maximum(evidence.distance_N, 1e-12))], axis=1
    )
    doubt_N2 = (doubt_N2 - doubt_N2[rows].mean(axis=0)) / np.maximum(doubt_N2[rows].std(axis=0), 1e-12)
    feature_NF = np.concatenate([doubt_N2, direct_NR], axis=1)
    side_L2 = np.stack([~learned_L, learned_L], axis=1)
    even_L2 = np.zeros(side_L2.shape)
    tried = {
        spread: _left_out(even_L2, feature_NF[rows], side_L2, bias=NEW_SPREAD, weight=spread)
        for spread in (0.0, *WEIGHT_SPREADS)
    }
    spread = min(tried, key=lambda weight: _loss(tried[weight], side_L2))
    move = _fit(even_L2, feature_NF[rows], side_L2, bias=NEW_SPREAD, weight=spread)
    logits_N2 = move.logits(np.zeros((len(feature_NF), 2)), feature_NF)
    return softmax(logits_N2, axis=1)[:, 1], softmax(tried[spread], axis=1)[:, 1]


def _directions(inputs_LX: sparse.csr_matrix) -> tuple[Floats, Floats]:
    """Return the places of cells along principal directions, of mean squared length 1, and what leads there from centred inputs."""
    gram_LL = np.asarray((inputs_LX @ inputs_LX.T).todense(), dtype=np.float64)
    gram_LL = gram_LL - gram_LL.mean(axis=0) - gram_LL.mean(axis=1)[:, None] + gram_LL.mean()
    size_L, vector_LL = np.linalg.eigh(gram_LL)
    kept = np.flatnonzero(size_L > 1e-9 * max(float(size_L.max()), 1e-12))[-N_DIRECTIONS:]
    size_R, vector_LR = size_L[kept], vector_LL[:, kept]
    scale = np.sqrt(max(float(np.trace(gram_LL)) / len(gram_LL), 1e-12))
    return vector_LR * np.sqrt(size_R) / scale, np.asarray(inputs_LX.T @ (vector_LR / np.sqrt(size_R))) / scale


def _loss(logits_LC: Floats, allowed_LC: Bools) -> float:
    among_LC = np.where(allowed_LC, logits_LC, -np.inf)
    return float((logsumexp(logits_LC, axis=1) - logsumexp(among_LC, axis=1)).sum())


def _left_out(logits_LC: Floats, direct_LR: Floats, allowed_LC: Bools, *, bias: float, weight: float) -> Floats:
    """Return the logits of each fifth of the cells by what was fitted to the others."""
    found_LC, fold_L = np.zeros(logits_LC.shape), np.arange(len(logits_LC)) % N_FOLDS
    for fold in range(N_FOLDS):
        here = fold_L == fold
        move = _fit(logits_LC[~here], direct_LR[~here], allowed_LC[~here], bias=bias, weight=weight)
        found_LC[here] = move.logits(logits_LC[here], direct_LR[here])
    return found_LC


def _fit(logits_LC: Floats, direct_LR: Floats, allowed_LC: Bools, *, bias: float, weight: float) -> _Move:
    """Return the mode under normal priors; weights of spread 0 are 0."""
    (n_labels, n_directions), n_bias = (logits_LC.shape[1], direct_LR.shape[1]), logits_LC.shape[1] + 1
    spread_LR = weight * direct_LR
    prior = np.concatenate([[1.0], np.full(n_labels, bias**-2), np.ones(n_directions * n_labels * (weight > 0))])

    def unpack(x: Floats) -> _Move:
        inner = x[n_bias:].reshape(n_directions, n_labels) if weight > 0 else np.zeros((n_directions, n_labels))
        return _Move(float(np.exp(x[0])), x[1:n_bias], weight * inner)

    def loss(x: Floats) -> tuple[float, Floats]:
        move = unpack(x)
        moved_LC = move.logits(logits_LC, direct_LR)
        among_LC = np.where(allowed_LC, moved_LC, -np.inf)
        total_L, allowed_L = logsumexp(moved_LC, axis=1), logsumexp(among_LC, axis=1)
        slope_LC = np.exp(moved_LC - total_L[:, None]) - np.exp(among_LC - allowed_L[:, None])
        slopes = [np.array([-(slope_LC * logits_LC).sum() / move.factor]), slope_LC.sum(axis=0)]
        slopes += [(spread_LR.T @ slope_LC).ravel()] if weight > 0 else []
        value = float((total_L - allowed_L).sum() + (prior * x**2).sum() / 2)
        return value, np.concatenate(slopes) + prior * x

    return unpack(minimize(loss, np.zeros(len(prior)), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x)
