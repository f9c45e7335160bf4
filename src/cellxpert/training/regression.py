"""Multinomial logistic regression of cells that may be one of several classes: a label can be as coarse as its author was.

scikit-learn has the case of one class per cell, without margins.

Shape suffixes: N cells, X inputs, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

__all__ = ["fit_regression", "fit_temperature"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TOLERANCE = 1e-4
"""Largest element of the gradient of the mean loss at which the solver stops."""
MAX_ITERATIONS = 500
LOG_TEMPERATURES = (-3.0, 3.0)


def fit_regression(
    inputs_NX: sparse.csr_matrix | Floats,
    allowed_NC: Bools,
    *,
    inverse_penalty: float,
    weight_N: Floats | None = None,
    margin_C: Floats | None = None,
    start: Floats | None = None,
) -> Floats:
    """Minimise C * (sum over cells of -log p(one of the allowed classes)) + half the squared norm of the coefficients.

    Parameters
    ----------
    inputs_NX
        Inputs of each cell, sparse or dense.
    allowed_NC
        Classes that a cell may be of, at least one: p is summed over them (a marginal cross-entropy). With several it is not convex.
    inverse_penalty
        scikit-learn's C. The intercept is not penalised.
    weight_N
        Weight of each cell.
    margin_C
        How much higher than the others the logits of allowed classes must be to count as equal (Cao et al. 2019).
    start
        Coefficients to begin with.

    Returns
    -------
    Coefficients, intercepts in the last row, of shape (X + 1, C).
    """
    (n_cells, n_inputs), n_classes = inputs_NX.shape, allowed_NC.shape[1]
    weight_N = np.ones(n_cells) if weight_N is None else weight_N
    transposed_XN = inputs_NX.T.tocsr() if sparse.issparse(inputs_NX) else inputs_NX.T
    shift_NC = 0.0 if margin_C is None else -(allowed_NC * margin_C)
    size = inverse_penalty * weight_N.sum()

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight_XC = flat.reshape(n_inputs + 1, n_classes)
        logits_NC = inputs_NX @ weight_XC[:-1] + weight_XC[-1] + shift_NC
        total_N = logsumexp(logits_NC, axis=1)
        among_NC = np.where(allowed_NC, logits_NC, -np.inf)
        allowed_N = logsumexp(among_NC, axis=1)
        slope_NC = weight_N[:, None] * (np.exp(logits_NC - total_N[:, None]) - np.exp(among_NC - allowed_N[:, None]))
        value = inverse_penalty * (weight_N * (total_N - allowed_N)).sum() + 0.5 * (weight_XC[:-1] ** 2).sum()
        gradient_XC = inverse_penalty * np.vstack([transposed_XN @ slope_NC, slope_NC.sum(axis=0)])
        gradient_XC[:-1] += weight_XC[:-1]
        return value / size, gradient_XC.ravel() / size

    begin = np.zeros((n_inputs + 1) * n_classes) if start is None else start.ravel()
    options = {"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 1e-12}
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(n_inputs + 1, n_classes)


def fit_temperature(logits_NC: Floats, allowed_NC: Bools) -> tuple[float, float]:
    """Choose the temperature that logits are divided by (Guo et al. 2017), and return it with the mean loss in nats."""

    def loss(log_temperature: float) -> float:
        scaled_NC = logits_NC / np.exp(log_temperature)
        allowed_N = logsumexp(np.where(allowed_NC, scaled_NC, -np.inf), axis=1)
        return float((logsumexp(scaled_NC, axis=1) - allowed_N).mean())

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x)), float(found.fun)
