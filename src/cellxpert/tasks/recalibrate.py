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

Floats = npt.NDArray[np.float64]
LEAST_LABELLED = 50
"""Fewest labelled cells."""


def recalibrate(
    calibration: Calibration,
    evidence: Evidence,
    *,
    rows: npt.NDArray[np.int64],
    allowed_NC: npt.NDArray[np.bool_],
    type_C: npt.NDArray[np.int64],
) -> tuple[Calibration, Evidence]:
    """Measure on labelled cells what was measured on training cells.

    Temperature scaling with a bias per label (Alexandari, Kundaje & Shrikumar 2020): of logits z the probabilities become
    softmax(z / T + b). It follows the frequencies of types in these cells, and mistakes that are common in them. The logarithm of the
    temperature, relative to that of the training cells, and each bias have a normal prior of mean 0 and standard deviation 1: what no labelled cell speaks of stays.

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

    def loss(x: Floats) -> tuple[float, Floats]:
        scaled_NC = logits_NC / np.exp(x[0])
        moved_NC = scaled_NC + x[1:]
        among_NC = np.where(allowed_NC, moved_NC, -np.inf)
        total_N, allowed_N = logsumexp(moved_NC, axis=1), logsumexp(among_NC, axis=1)
        slope_NC = np.exp(moved_NC - total_N[:, None]) - np.exp(among_NC - allowed_N[:, None])
        gradient = np.concatenate([[-(slope_NC * scaled_NC).sum()], slope_NC.sum(axis=0)]) + x
        return float((total_N - allowed_N).sum() + (x**2).sum() / 2), gradient

    found = minimize(loss, np.zeros(logits_NC.shape[1] + 1), jac=True, method="L-BFGS-B")
    factor, bias_C = float(np.exp(found.x[0])), found.x[1:]
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
