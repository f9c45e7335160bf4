"""Labels of cells of another kind than the training cells' are calibrated on some whose label is known.

Shape suffixes: N cells, C labels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from cellxpert.data.calibration import Calibration, choose, quantiles_of
from cellxpert.tasks.annotate import Evidence

__all__ = ["LEAST_LABELLED", "recalibrate"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
LEAST_LABELLED = 50
"""Fewest labelled cells."""
N_FOLDS = 5
SPREADS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Standard deviations that the prior of the biases may have."""


def recalibrate(
    calibration: Calibration,
    evidence: Evidence,
    *,
    rows: npt.NDArray[np.int64],
    allowed_NC: Bools,
    type_C: npt.NDArray[np.int64],
) -> tuple[Calibration, Evidence]:
    """Measure on labelled cells what was measured on training cells.

    Temperature scaling with a bias per label (Alexandari, Kundaje & Shrikumar 2020): of logits z the probabilities become
    softmax(z / T + b). It follows the frequencies of types in these cells, and mistakes that are common in them. The logarithm of the
    temperature, relative to that of the training cells, has a standard normal prior; each bias one of that standard deviation which
    is the best for the fifths of the labelled cells, each fitted to the others. What no labelled cell speaks of stays.

    Parameters
    ----------
    calibration
        What was measured on training cells.
    evidence
        What was read of cells.
    rows, allowed_NC
        Which of them are labelled, and the labels that each of these may have.
    type_C
        As for :func:`cellxpert.tasks.annotate.annotate`.

    Returns
    -------
    The calibration of cells like these, and the evidence with the biases in its logits.
    """
    logits_NC = evidence.logits_NC[rows].astype(np.float64) / calibration.temperature
    fold_N = np.arange(len(rows)) % N_FOLDS
    losses = [_left_out_loss(logits_NC, allowed_NC, fold_N, spread=spread) for spread in SPREADS]
    factor, bias_C = _fit(logits_NC, allowed_NC, spread=SPREADS[int(np.argmin(losses))])
    proba_NC = softmax(logits_NC / factor + bias_C, axis=1)
    temperature = calibration.temperature * factor
    assert evidence.distance_N is not None
    measured = replace(
        calibration,
        source="labelled cells",
        n_cells=len(rows),
        temperature=temperature,
        confidence_Q=quantiles_of(choose(proba_NC, type_C)[1]),
        surprise_Q=quantiles_of(1 - np.where(allowed_NC, proba_NC, 0.0).sum(axis=1)),
        distance_Q=quantiles_of(evidence.distance_N[rows]),
    )
    moved_NC = evidence.logits_NC + (temperature * bias_C).astype(np.float32)
    return measured, replace(evidence, logits_NC=moved_NC)


def _left_out_loss(logits_NC: Floats, allowed_NC: Bools, fold_N: npt.NDArray[np.int64], *, spread: float) -> float:
    """Loss of the cells of every fold where all others were fitted to, in nats."""
    total = 0.0
    for fold in range(N_FOLDS):
        here_N = fold_N == fold
        factor, bias_C = _fit(logits_NC[~here_N], allowed_NC[~here_N], spread=spread)
        moved_NC = logits_NC[here_N] / factor + bias_C
        among_NC = np.where(allowed_NC[here_N], moved_NC, -np.inf)
        total += float((logsumexp(moved_NC, axis=1) - logsumexp(among_NC, axis=1)).sum())
    return total


def _fit(logits_NC: Floats, allowed_NC: Bools, *, spread: float) -> tuple[float, Floats]:
    """Return the factor that logits are divided by and the bias of each label, the mode under normal priors."""
    prior_X = np.concatenate([[1.0], np.full(logits_NC.shape[1], spread**-2)])

    def loss(x: Floats) -> tuple[float, Floats]:
        scaled_NC = logits_NC / np.exp(x[0])
        moved_NC = scaled_NC + x[1:]
        among_NC = np.where(allowed_NC, moved_NC, -np.inf)
        total_N, allowed_N = logsumexp(moved_NC, axis=1), logsumexp(among_NC, axis=1)
        slope_NC = np.exp(moved_NC - total_N[:, None]) - np.exp(among_NC - allowed_N[:, None])
        slope_X = np.concatenate([[-(slope_NC * scaled_NC).sum()], slope_NC.sum(axis=0)])
        return float((total_N - allowed_N).sum() + (prior_X * x**2).sum() / 2), slope_X + prior_X * x

    found = minimize(loss, np.zeros(len(prior_X)), jac=True, method="L-BFGS-B")
    return float(np.exp(found.x[0])), found.x[1:]
